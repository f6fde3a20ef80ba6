"""mAP, F1 and exact match of several labels an image are scikit-learn's, and their intervals mean what they say."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from vitdeploy.evaluation import multi_label
from vitdeploy.evaluation.accuracy import Answers
from vitdeploy.evaluation.multi_label import (
    UNKNOWN,
    MultiLabelAccuracy,
    best_threshold,
    set_metrics,
    summarise_sets,
)
from vitdeploy.models.tasks import sigmoid
from vitdeploy.report.serial import as_text


def answers(logits: np.ndarray) -> Answers:
    return Answers(logits.astype(np.float32), np.ones(len(logits), np.bool_))


def drawn(count: int = 120, labels: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which labels images have, and logits that know something of it, in steps, so that many are equal."""
    generator = np.random.default_rng(seed)
    has = generator.random((count, labels)) < np.linspace(0.1, 0.6, labels)
    logits = np.round(2 * (2.0 * has - 1 + generator.normal(0, 2, has.shape))) / 2
    return has.astype(np.int8), logits


def summary(logits: np.ndarray, has: np.ndarray, base: np.ndarray | None = None, at: float = 0.5) -> MultiLabelAccuracy:
    found = summarise_sets(answers(logits), has, at, None if base is None else answers(base))
    assert found is not None
    return found


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_values_are_those_of_scikit_learn(threshold: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    has, logits = drawn()
    found, said = summary(logits, has, at=threshold), sigmoid(logits) >= threshold
    assert found.mean_average_precision == pytest.approx(metrics.average_precision_score(has, logits, average="macro"))
    np.testing.assert_allclose(found.per_label, metrics.average_precision_score(has, logits, average=None))
    assert found.f1_micro == pytest.approx(metrics.f1_score(has, said, average="micro"))
    assert found.f1_macro == pytest.approx(metrics.f1_score(has, said, average="macro"))
    assert found.exact_match == pytest.approx(metrics.accuracy_score(has, said))
    assert found.ci95[0] < found.mean_average_precision < found.ci95[1]


def test_the_numbers_without_intervals_are_the_same() -> None:
    has, logits = drawn()
    plain, whole = set_metrics(logits, has == 1, 0.4), summary(logits, has, at=0.4)
    assert plain.mean_average_precision == whole.mean_average_precision and plain.exact_match == whole.exact_match
    assert (plain.f1_micro, plain.f1_macro) == (whole.f1_micro, whole.f1_macro)
    nothing = set_metrics(np.full((4, 2), -9.0), np.array([[1, 0]] * 4, bool), 0.5)
    assert (nothing.f1_micro, nothing.f1_macro, nothing.exact_match) == (0, 0, 0)


def test_intervals_of_f1_hold_it_and_shrink_with_more_images() -> None:
    widths = []
    for count in (60, 2000):
        has, logits = drawn(count)
        found = summary(logits, has)
        for value, interval in ((found.f1_micro, found.f1_micro_ci95), (found.f1_macro, found.f1_macro_ci95)):
            assert value is not None and interval is not None and interval[0] < value < interval[1]
            widths.append(interval[1] - interval[0])
    assert widths[2] < widths[0] / 3 and widths[3] < widths[1] / 3


@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_finds_more_than_the_best_one(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    has, logits = drawn(60, 5, seed)  # many scores are equal
    scores, chosen = sigmoid(logits), best_threshold(logits, has == 1)

    def f1(threshold: float) -> float:
        return float(metrics.f1_score(has, scores >= threshold, average="micro"))

    every = [f1(score) for score in np.unique(scores)]
    assert f1(chosen) == pytest.approx(max(every)) and 0 < chosen < 1
    assert not np.isclose(scores, chosen, atol=1e-6).any(), "it lies between two scores, not on one"


def test_the_best_threshold_of_scores_at_the_ends_lies_between_0_and_1() -> None:
    has = np.array([[1, 1], [1, 1]], bool)
    assert 0 < best_threshold(np.full((2, 2), -80.0), has) < 1
    assert 0 < best_threshold(np.full((2, 2), 80.0), has) < 1


def test_labels_that_the_data_do_not_know_count_for_nothing() -> None:
    has, logits = drawn()
    wide = np.concatenate([np.full((len(has), 1), UNKNOWN, np.int8), has], axis=1)
    more = np.concatenate([np.full((len(has), 1), 9.0), logits], axis=1)
    found, plain = summary(more, wide), summary(logits, has)
    assert (found.mean_average_precision, found.f1_micro, found.exact_match) == (
        plain.mean_average_precision,
        plain.f1_micro,
        plain.exact_match,
    )
    assert found.per_label == (None, *plain.per_label) and found.labels == 6


def test_a_label_without_images_has_no_average_precision() -> None:
    has, logits = drawn()
    has[:, 2] = 0
    found = summary(logits, has)
    assert found.per_label[2] is None and found.labels == 6
    others = [value for value in found.per_label if value is not None]
    assert found.mean_average_precision == pytest.approx(np.mean(others))
    assert summarise_sets(answers(logits), np.zeros_like(has), 0.5) is None, "nothing to find: no number"


def test_the_same_answers_lose_nothing_and_worse_ones_do() -> None:
    has, logits = drawn(400)
    same = summary(logits, has, logits)
    assert (same.delta, same.delta_ci95, same.drop_bound, same.agreement) == (0, (0, 0), 0, 1)
    worse = summary(logits + np.random.default_rng(1).normal(0, 3, logits.shape), has, logits)
    assert worse.delta is not None and worse.delta_ci95 is not None and worse.drop_bound is not None
    assert worse.delta_ci95[1] < 0 and worse.delta_ci95[0] < worse.delta < worse.delta_ci95[1]
    assert -worse.delta < worse.drop_bound < -worse.delta_ci95[0], "one-sided 95 % lies within two-sided 95 %"
    assert worse.agreement is not None and worse.agreement < 0.7
    assert worse.f1_micro_delta is not None and worse.f1_micro_delta < 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_resamples_without_any_label_say_nothing(count: int) -> None:
    """Where one image alone has a label, more than a third of the resamples have none."""
    has = np.zeros((count, 3), np.int8)
    has[0, 1] = 1
    base, other = (np.random.default_rng(seed).normal(0, 2, has.shape) for seed in (0, 1))
    same, moved = summary(base, has, base), summary(other, has, base)
    assert same.drop_bound == 0 and same.delta_ci95 == (0, 0)
    assert moved.drop_bound is not None and moved.delta is not None and moved.delta_ci95 is not None
    assert -moved.delta_ci95[1] <= moved.drop_bound <= -moved.delta_ci95[0]
    as_text(asdict(moved))  # which takes no NaN


def test_the_interval_of_a_change_holds_the_truth_about_as_often_as_it_says() -> None:
    """Two equally good forms: 0 is the true change. Of 60 intervals three may miss it; more than eight is no chance."""
    missed = 0
    for seed in range(60):
        has, first = drawn(80, 3, seed)
        generator = np.random.default_rng(seed + 2000)
        one, other = (first + generator.normal(0, 1, first.shape) for _ in range(2))
        change = summary(one, has, other).delta_ci95
        assert change is not None
        missed += not change[0] <= 0 <= change[1]
    assert missed <= 8


@pytest.mark.parametrize("at_once", [1, 119, 120, 1000, 10**7])
def test_resamples_are_the_same_however_many_are_made_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one of them alone is more than may be made at once."""
    has, logits = drawn()
    whole = summary(logits, has)
    monkeypatch.setattr(multi_label, "_AT_ONCE", at_once)
    assert summary(logits, has).ci95 == pytest.approx(whole.ci95, abs=1e-6)
