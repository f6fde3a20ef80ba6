"""Limits on what a form loses: what they are held against, whom they fit, and that their bounds are bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vitdeploy.core.errors import DatasetError, InputError, ModelError
from vitdeploy.data import load_dataset
from vitdeploy.data.folders import UNLABELLED
from vitdeploy.evaluation.accuracy import Answers
from vitdeploy.evaluation.judges import (
    KeptVectors,
    OfClasses,
    OfVectors,
    Verdict,
    judge_of,
    require_shown_by,
    too_few,
)
from vitdeploy.evaluation.limits import Limits
from vitdeploy.evaluation.paired import PairedDrop, Truth, compare_classes
from vitdeploy.evaluation.vectors import Comparison, most_recall, summarise_vectors
from vitdeploy.models.tasks import CLASSIFICATION, EMBEDDING, TASKS

COUNT, WIDTH = 200, 16
CONFIDENCE = 0.95


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FP32's vectors in clusters of a class, those of a form, and the classes."""
    draw = np.random.default_rng(0)
    classes = draw.integers(0, 5, COUNT)
    exact = draw.normal(size=(5, WIDTH))[classes] + 0.4 * draw.normal(size=(COUNT, WIDTH))
    return exact.astype(np.float32), (exact + 0.1 * draw.normal(size=exact.shape)).astype(np.float32), classes


def verdict(limits: Limits, vectors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Verdict:
    exact, form, classes = vectors
    return OfVectors(classes, exact, limits)(form, np.arange(COUNT), CONFIDENCE)


def test_vectors_are_judged_by_the_numbers_of_bench(vectors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    exact, form, classes = vectors
    kept = verdict(Limits(min_cosine=0.5, neighbours=7), vectors).kept
    assert isinstance(kept, KeptVectors)
    seen = np.ones(COUNT, np.bool_)
    assert kept.quality == summarise_vectors(Answers(form, seen), classes, 7, Answers(exact, seen))
    assert kept.quality.cosine is not None and kept.quality.recall is not None
    assert 0 < kept.quality.cosine.value - kept.bounds.cosine < 0.01
    assert 0 < kept.quality.recall.value - kept.bounds.recall < 0.1
    right = [Comparison(v, v, classes, 7).quality.knn for v in (form, exact)]
    assert right[0] is not None and right[1] is not None and kept.quality.delta is not None
    assert kept.quality.delta == pytest.approx(right[0].top1 - right[1].top1)
    assert kept.bounds.drop is not None and kept.bounds.drop > -kept.quality.delta
    assert "recall@7" in str(kept) and "7NN drop" in str(kept) and kept.to_json()["bounds"]["cosine"] < 1


@pytest.mark.parametrize("name", ["max_drop", "min_cosine", "min_recall"])
def test_each_limit_is_held_against_its_bound(name: str, vectors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    kept = verdict(Limits(min_cosine=0.5), vectors).kept
    assert isinstance(kept, KeptVectors) and kept.bounds.drop is not None
    at = {"max_drop": 100 * kept.bounds.drop, "min_cosine": kept.bounds.cosine, "min_recall": kept.bounds.recall}[name]
    stricter = -1 if name == "max_drop" else 1
    eased, strict = (verdict(Limits(**{name: at + side * stricter * 1e-6}), vectors) for side in (-1, 1))
    assert eased.met and not strict.met and eased.excess < 0 < strict.excess
    # with others that hold, the broken one decides
    easy: dict[str, Any] = {"max_drop": 99.0, "min_cosine": 0.01, "min_recall": 0.01}
    assert verdict(Limits(**easy), vectors).met
    assert not verdict(Limits(**{**easy, name: at + stricter * 1e-6}), vectors).met


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_no_numbers_break_each_limit(
    bad: float, vectors: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    exact, form, classes = vectors
    broken = form.copy()
    broken[7, 3] = bad
    limits = Limits(max_drop=99.0, min_cosine=0.01, min_recall=0.01)
    with np.errstate(invalid="ignore"):
        assert verdict(limits, vectors).met and not verdict(limits, (exact, broken, classes)).met
    scores = np.eye(5, dtype=np.float32)[classes]
    judge = OfClasses(classes, classes, 99.0)
    scores[:20] = bad
    kept = judge(judge.compared(scores), np.arange(COUNT), CONFIDENCE).kept
    assert isinstance(kept, PairedDrop) and (kept.drop, kept.agreement) == (10, 90), "none of the 20 is right by chance"


def test_classes_are_judged_as_ever() -> None:
    draw = np.random.default_rng(1)
    truth, exact, found = draw.integers(0, 3, (3, 400))
    judge = OfClasses(truth, exact, 12.0)
    places = np.arange(100, 300)
    kept = compare_classes(found[places], exact[places], truth[places], CONFIDENCE)
    assert judge(found[places], places, CONFIDENCE) == Verdict(kept, (kept.drop_bound - 12.0) / 100)
    logits = draw.random((400, 3)).astype(np.float32)
    images = load_dataset("digits", "train", limit=400)
    assert isinstance(judge_of(CLASSIFICATION, Limits(12.0), Truth(images, truth), logits), OfClasses)
    assert isinstance(judge_of(EMBEDDING, Limits(12.0), Truth(images, truth), logits), OfVectors)
    assert judge.compared(logits).tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("skewed", [True, False], ids=["cosines", "recalls"])
@pytest.mark.parametrize("count", [100, 400])
def test_a_bound_is_above_the_truth_about_as_seldom_as_it_says(skewed: bool, count: int) -> None:
    """A bound of 98 %, of losses that few queries have most of: a plain bootstrap's is wrong more often."""
    from vitdeploy.evaluation.vectors import _Bootstrap

    draw, boot, bare = np.random.default_rng(2), _Bootstrap(count + 1), _Bootstrap(count)
    wrong, plain, trials = 0, 0, 300
    for _ in range(trials):
        if skewed:
            values, truth = 1 - 0.001 * draw.lognormal(0, 0.7, count), 1 - 0.001 * np.exp(0.245)
        else:
            values, truth = draw.binomial(10, 0.99, count) / 10, 0.99
        wrong += boot.least(np.append(values, min(values.min(), 1 if skewed else 0.9)), 0.98) > truth
        plain += bare.least(values, 0.98) > truth
    assert wrong <= 0.02 * trials + 4 * (0.02 * 0.98 * trials) ** 0.5
    assert plain > wrong or wrong == 0


def test_where_nothing_is_lost_images_show_no_more_than_they_can() -> None:
    found = [most_recall(count, 10, 0.98) for count in (100, 1000, 10_000)]
    assert 0.99 < found[0] < found[1] < found[2] < 1
    assert (
        too_few(100, Limits(min_recall=0.9999), 0.98) is not None and too_few(100, Limits(min_recall=0.9), 0.98) is None
    )
    assert "100 images can't show less than" in str(too_few(100, Limits(max_drop=0.5), 0.98))
    assert too_few(100, Limits(min_cosine=0.999999), 0.98) is None
    exact = np.random.default_rng(3).normal(size=(100, 8)).astype(np.float32)
    assert Comparison(exact, exact, None, 10).bounds(0.98).recall == found[0]


def test_limits_in_words_and_in_json() -> None:
    every = Limits(0.5, 0.99, 0.9, 5)
    assert str(every) == "0.5 points and a mean cosine of 0.99 and recall@5 of 0.9"
    assert every.to_json() == {"max_drop": 0.5, "min_cosine": 0.99, "min_recall": 0.9, "neighbours": 5}
    assert Limits(min_recall=0.9).to_json() == {"min_recall": 0.9} and Limits(min_recall=0.9).k == 10
    assert not Limits() and Limits(1.0)


def test_limits_of_embeddings_are_refused_for_classifiers() -> None:
    one, several, number = (TASKS[name] for name in ("single_label", "multi_label", "regression"))
    for limits, option in ((Limits(min_cosine=0.9), "--min-cosine"), (Limits(1.0, min_recall=0.9), "--min-recall")):
        with pytest.raises(InputError, match=f"{option} is for embeddings, and model gives one class") as caught:
            limits.require_fits(one, "model")
        assert "--max-drop POINTS" in str(caught.value.hint)
        with pytest.raises(InputError, match="several labels") as caught:
            limits.require_fits(several, "model")
        assert caught.value.hint == f"leave {option} out"
    for task in (several, number):
        with pytest.raises(ModelError, match="budget of top-1 is not supported for model"):
            Limits(1.0).require_fits(task, "model")
        Limits().require_fits(task, "model")
    Limits(1.0).require_fits(one, "model")
    Limits(1.0, 0.9, 0.9, 3).require_fits(TASKS["embedding"], "model")


def test_images_that_can_not_show_it_are_refused() -> None:
    digits = load_dataset("digits", "train", limit=150)
    truth = Truth.of_vectors(digits)
    assert truth.classes is not None and truth.describe()["matching"] is None
    require_shown_by(truth, Limits(1.0, 0.9))
    bare = Truth.of_vectors(replace(digits, labels=(UNLABELLED,), label_ids=np.zeros(150, np.int64)))
    assert bare.classes is None and bare.spread(20).classes is None
    require_shown_by(bare, Limits(min_cosine=0.9, min_recall=0.5))
    with pytest.raises(DatasetError, match="no class an image") as caught:
        require_shown_by(bare, Limits(1.0, 0.9))
    assert "--min-cosine or --min-recall" in str(caught.value.hint)
    with pytest.raises(DatasetError, match=r"99 images .* needs 100"):
        require_shown_by(truth.spread(99), Limits(min_cosine=0.9))
