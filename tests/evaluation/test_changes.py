"""Confusion, changed answers and flows are what counting by hand gives."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vitdeploy.evaluation.accuracy import Answers
from vitdeploy.evaluation.changes import changed, confusion, disagreements, packed, unpacked
from vitdeploy.models.tasks import TASKS

TRUTH = np.array([0, 0, 1, 1, 2, 2])


def logits(best: list[int], sure: float) -> np.ndarray:
    """Scores whose best class is given, with a probability of about `sure`."""
    scores = np.zeros((len(best), 3), np.float32)
    scores[np.arange(len(best)), best] = np.log(2 * sure / (1 - sure))
    return scores


def test_confusion_counts_pairs() -> None:
    found = confusion(np.array([0, 1, 1, 1, 0, 2]), TRUTH, 3)
    pairs = dict(zip(zip(found.true, found.answer, strict=True), found.count, strict=True))
    assert pairs == {(0, 0): 1, (0, 1): 1, (1, 1): 2, (2, 0): 1, (2, 2): 1}


def test_changes_are_told_apart_and_flows_are_counted() -> None:
    before, after = [0, 1, 1, 0, 0, 0], [1, 0, 1, 2, 2, 1]
    found = changed(logits(after, 0.6), logits(before, 0.9), TRUTH)
    # 0: right -> wrong. 1: wrong -> right. 3: wrong -> wrong. 4: wrong -> right. 5: wrong -> wrong.
    assert (found.lost, found.won, found.moved) == (1, 2, 2)
    flows = dict(zip(zip(found.before, found.after, strict=True), found.count, strict=True))
    assert flows == {(0, 1): 2, (0, 2): 2, (1, 0): 1} and list(found.count) == [2, 2, 1]
    assert found.confidence == pytest.approx(0.6) and found.baseline_confidence == pytest.approx(0.9)


def test_only_the_most_frequent_flows_are_kept() -> None:
    draw = np.random.default_rng(0)
    before, after = draw.normal(size=(2, 500, 12)).astype(np.float32)
    found = changed(after, before, draw.integers(0, 12, 500))
    assert len(found.count) == 20 and list(found.count) == sorted(found.count, reverse=True)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_bits_come_back(count: int) -> None:
    right = np.random.default_rng(count).random(count) < 0.7
    assert np.array_equal(unpacked(packed(right), count), right)


class Views:
    """Images, each of one colour, its index."""

    def image(self, index: int) -> np.ndarray:
        return np.full((200, 100, 3), index, np.uint8)


def seen(best: list[int], sure: float = 0.9, done: list[bool] | None = None) -> Answers:
    return Answers(logits(best, sure), np.array([True] * len(best) if done is None else done))


def test_the_most_disputed_images_come_first() -> None:
    forms = {
        "fp32": seen([0, 1, 2, 0, 1, 2]),
        "fp16": seen([0, 1, 1, 0, 1, 0], 0.6),
        "int8": seen([0, 2, 1, 0, 1, 0], done=[True, True, True, True, True, False]),
    }
    shown, count = disagreements(forms, "fp32", TRUTH, Views(), ("cat", "dog", "owl"))
    assert count == 2 and [found.index for found in shown] == [2, 1], "both differ on 2, one on 1; one has not seen 5"
    assert [found.label for found in shown] == ["dog", "cat"]
    assert shown[0].answers == {"fp32": ("owl", 0.9), "fp16": ("dog", 0.6), "int8": ("dog", 0.9)}
    picture = Image.open(io.BytesIO(base64.b64decode(shown[0].image_png)))
    assert picture.format == "PNG" and picture.size == (48, 96) and picture.getpixel((5, 5)) == (2, 2, 2)


def test_answers_in_dispute_have_the_score_of_their_task() -> None:
    scores = np.array([[-1.0, 0.0, -9.0]], np.float32)
    forms = {key: Answers(z, np.array([True])) for key, z in (("fp32", scores), ("int8", scores[:, [1, 0, 2]]))}
    shown, _ = disagreements(forms, "fp32", TRUTH[:1], Views(), ("cat", "dog", "owl"), TASKS["single_label_sigmoid"])
    assert shown[0].answers == {"fp32": ("dog", 0.5), "int8": ("cat", 0.5)}


def test_equally_disputed_images_are_shown_in_order_and_not_too_many() -> None:
    forms = {"fp32": seen([0] * 40), "int8": seen([1] * 40)}
    shown, count = disagreements(forms, "fp32", np.zeros(40, np.int64), Views(), ("cat", "dog", "owl"))
    assert count == 40 and [found.index for found in shown] == list(range(12))


@pytest.mark.parametrize("reference", [None, "pytorch", "fp32"])
def test_without_two_forms_nothing_is_disputed(reference: str | None) -> None:
    forms = {"fp32": seen([0, 1]), "int8": seen([1, 1])}
    if reference == "fp32":
        del forms["int8"]
    assert disagreements(forms, reference, TRUTH[:2], Views(), ("cat", "dog", "owl")) == ((), 0)
