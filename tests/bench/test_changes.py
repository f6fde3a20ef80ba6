"""Confusion, changed answers and flows are what counting by hand gives."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.bench.changes import changed, confusion, packed, unpacked

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
