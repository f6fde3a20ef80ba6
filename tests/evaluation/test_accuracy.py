"""Which answers count, in which batches, against which labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tools.forms import Clock, KnownRunner, Pictures
from vitdeploy.core.errors import InputError
from vitdeploy.evaluation import batches
from vitdeploy.evaluation.accuracy import (
    AccuracyRun,
    Answers,
    classify,
    summarise,
)
from vitdeploy.evaluation.batches import image_batches
from vitdeploy.evaluation.changes import unpacked
from vitdeploy.models.tasks import TASKS

SIZES = ((4, 4), (6, 4), (4, 8))


def answers(runner: KnownRunner, images: Pictures, batch_size: int) -> Answers:
    with runner:
        run = AccuracyRun({"a": runner}, images, len(images.labels), batch_size)
        run.run()
    return run.answers["a"]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_batches_hold_every_image_once_and_one_size_each(batch_size: int) -> None:
    images = Pictures(50, 5, SIZES)
    seen = []
    for indices, pixels in image_batches(images, batch_size):
        assert 1 <= len(indices) == len(pixels) <= batch_size
        assert all(np.array_equal(images.image(i), p) for i, p in zip(indices, pixels, strict=True))
        seen += indices
    assert sorted(seen) == list(range(50))


@pytest.mark.parametrize("held", [1, 100, 300, 1000])
def test_large_images_wait_in_small_batches(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "HELD_BYTES", held)
    images, seen = Pictures(50, 5, SIZES), []
    for indices, pixels in image_batches(images, 16):
        assert len(indices) == 1 or pixels.nbytes <= held + pixels[0].nbytes
        seen += indices
    assert sorted(seen) == list(range(50))


def test_images_that_all_differ_in_size_do_not_pile_up() -> None:
    images = Pictures(200, 5, tuple((1, width) for width in range(1, 201)))
    read = []
    images_read = type(
        "Spy", (), {"__len__": lambda s: 200, "image": lambda s, i: (read.append(i), images.image(i))[1]}
    )()
    waiting = []
    done = 0
    for indices, _ in image_batches(images_read, 2):
        done += len(indices)
        waiting.append(len(read) - done)
    assert max(waiting) <= 32


def test_answers_depend_neither_on_batch_size_nor_on_order() -> None:
    flip = lambda number: number % 9 == 0  # noqa: E731
    images = Pictures(120, 7, SIZES)
    shuffled = images.subset(np.random.default_rng(0).permutation(120))
    expected = answers(KnownRunner(Clock(), 7, flip=flip), images, 1)
    for batch_size in (5, 16, 200):
        found = answers(KnownRunner(Clock(), 7, flip=flip), images, batch_size)
        assert np.array_equal(found.logits, expected.logits) and found.done.all()
        moved = answers(KnownRunner(Clock(), 7, flip=flip), shuffled, batch_size)
        assert np.array_equal(moved.logits, expected.logits[shuffled.numbers])
        ours, theirs = summarise(moved, shuffled.label_ids), summarise(expected, images.label_ids)
        assert ours is not None and theirs is not None and ours.correct is not None and theirs.correct is not None
        right = unpacked(theirs.correct, 120)
        assert right.sum() == round(120 * theirs.top1)
        assert np.array_equal(unpacked(ours.correct, 120), right[shuffled.numbers])
        assert replace(ours, correct=None) == replace(theirs, correct=None)
    other = answers(KnownRunner(Clock(), 7), images, 16)
    assert not np.array_equal(other.logits, expected.logits)  # the flipped answers are there to be seen


def test_a_first_batch_that_is_answered_by_chance_is_refused() -> None:
    # Seen in the field: the first answer after each change of the batch size came from memory nobody had written.
    images, runner, seen = Pictures(20, 5), KnownRunner(Clock(), 5), set()
    answer = runner.infer

    def infer(feeds: Any) -> Any:
        new = len(feeds["image"]) == 4 and 4 not in seen
        seen.add(len(feeds["image"]))
        return {"logits": answer(feeds)["logits"] + np.arange(5) * 9 * new}

    runner.infer = infer  # type: ignore[method-assign]
    with runner:
        run = AccuracyRun({"a": runner, "b": runner}, images, 5, 16)  # batches of 16 and 4
        run.run()
    assert "two different answers" in str(run.failures["a"]) and "b" not in run.failures


def test_three_percent_of_labels_flipped_show_as_that_drop() -> None:
    images = Pictures(2000, 10)
    plain = answers(KnownRunner(Clock(), 10), images, 64)
    flipped = answers(KnownRunner(Clock(), 10, flip=lambda number: number % 100 < 3), images, 64)
    found = summarise(flipped, images.label_ids, plain)
    assert found is not None and found.delta_ci95 is not None and found.mcnemar_p is not None
    assert found.delta == pytest.approx(-0.03) and found.agreement == pytest.approx(0.97)
    assert found.delta_ci95[0] < -0.03 < found.delta_ci95[1] < 0
    assert found.mcnemar_p < 1e-10
    same = summarise(plain, images.label_ids, plain)
    assert same is not None and (same.delta, same.mcnemar_p, same.agreement, same.top1) == (0, 1, 1, 1)


def test_top5_counts_the_five_best() -> None:
    logits = np.tile(np.arange(8, dtype=np.float32), (8, 1))  # classes 3..7 are the five best
    found = summarise(Answers(logits, np.ones(8, np.bool_)), np.arange(8))
    assert found is not None and found.top5 == 5 / 8 and found.top1 == 1 / 8
    for classes in (6, 1000):  # a dead form: of equals the first five are the best, as the first is for top-1
        dead = Answers(np.zeros((classes, classes), np.float32), np.ones(classes, np.bool_))
        found = summarise(dead, np.arange(classes))
        assert found is not None and (found.top1, found.top5) == (1 / classes, 5 / classes)
    few = summarise(Answers(logits[:, :5], np.ones(8, np.bool_)), np.zeros(8, np.int64))
    assert few is not None and few.top5 is None


def test_how_sure_a_form_is_is_the_score_that_its_task_has() -> None:
    """SigLIP scores each class by a sigmoid: 0.2 for the best, which is right twice in ten, is no overconfidence."""
    logits, truth = np.full((10, 4), -9.0, np.float32), np.array([0] * 2 + [1] * 8)
    logits[:, 0] = np.log(0.2 / 0.8)
    form = Answers(logits, np.ones(10, np.bool_))
    apart, joined = (summarise(form, truth, form, TASKS[n]) for n in ("single_label_sigmoid", "single_label"))
    assert apart is not None and joined is not None and apart.changes is not None and joined.changes is not None
    assert apart.changes.confidence == pytest.approx(0.2) and apart.calibration_error == pytest.approx(0, abs=1e-6)
    assert joined.changes.confidence > 0.99 and joined.calibration_error > 0.79
    assert apart.top1 == joined.top1 == 0.2


def test_only_images_that_both_saw_are_compared() -> None:
    logits = np.eye(3, dtype=np.float32)
    form = Answers(logits, np.array([True, True, False]))
    base = Answers(logits, np.array([False, True, True]))
    found = summarise(form, np.arange(3), base)
    assert found is not None and found.count == 1 and found.per_class == (None, 1.0, None)
    assert summarise(Answers(logits, np.zeros(3, np.bool_)), np.arange(3)) is None


def test_a_form_that_takes_smaller_batches_is_given_smaller_ones() -> None:
    images = Pictures(40, 5)
    assert np.array_equal(
        answers(KnownRunner(Clock(), 5, max_batch=3), images, 16).logits,
        answers(KnownRunner(Clock(), 5), images, 16).logits,
    )
    with KnownRunner(Clock(), 5, max_batch=0) as none_fits, pytest.raises(InputError, match="outside"):
        classify(none_fits, images.image(0)[np.newaxis], 5)


def test_wrong_scores_are_named() -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    runner = KnownRunner(Clock(), 5)
    with runner, pytest.raises(InputError, match="6 classes are expected"):
        classify(runner, pixels, 6)
    broken = type("NaN", (), {"infer": lambda s, f: {"logits": np.full((2, 5), np.nan, np.float32)}})()
    with pytest.raises(InputError, match="NaN"):
        classify(broken, pixels, 5)
