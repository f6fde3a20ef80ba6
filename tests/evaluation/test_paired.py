"""What an INT8 form loses on labelled images, and which images and classes it is asked about."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.tools.engines import Recorder
from vitdeploy.core import progress
from vitdeploy.core.errors import DatasetError
from vitdeploy.data import load_dataset
from vitdeploy.evaluation.paired import PairedDrop, Truth, compare_answers, compare_classes
from vitdeploy.evaluation.statistics import drop_bound

DIGITS = tuple(str(digit) for digit in range(10))


def test_drop_and_agreement_by_hand() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    wanted = np.array([0, 0, 0, 1, 1, 1, 1, 0, 2, 0])  # seven right
    answer = np.array([1, 1, 0, 0, 1, 1, 1, 2, 2, 0])  # 0, 1 lost, 3 won, 7 wrong in another way
    found = compare_classes(answer, wanted, truth)
    assert (found.count, found.drop, found.agreement) == (10, pytest.approx(10), pytest.approx(60))
    assert found.drop_bound == pytest.approx(100 * drop_bound(2, 1, 10))
    assert compare_classes(answer, wanted, truth, 0.99).drop_bound > found.drop_bound
    assert compare_answers(np.eye(3)[answer], np.eye(3)[wanted], truth) == found
    assert found.to_json()["drop_bound"] == round(found.drop_bound, 4)
    said = "drop -0.50 points, with 95 % confidence at most +0.25; agreement 99.00 % (8 images)"
    assert str(PairedDrop(8, -0.5, 0.25, 99.0)) == said


def test_classes_are_those_of_the_model_and_a_doubt_is_said() -> None:
    digits = load_dataset("digits", "test")
    recorder = Recorder()
    with progress.use(recorder):
        plain = Truth.of(digits, DIGITS)
        assert np.array_equal(plain.classes, digits.label_ids) and not recorder.notes
        turned = Truth.of(digits, DIGITS[::-1])
        assert np.array_equal(turned.classes, 9 - digits.label_ids)
    assert turned.match is not None and turned.describe()["matching"] == turned.match.to_json()
    with pytest.raises(DatasetError):
        Truth.of(digits, ("cat", "dog"))


def test_what_is_said_of_a_match_is_what_the_match_says() -> None:
    digits, recorder = load_dataset("digits", "test"), Recorder()
    named = replace(digits, labels=tuple(f"class {digit}" for digit in digits.labels))
    with progress.use(recorder):
        found = Truth.of(named, DIGITS, "position")
    assert found.match is not None and found.match.sentence
    assert recorder.notes == [f"Note: {found.match.sentence}."]


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (7, 7), (360, 360), (1000, 360)])
def test_some_images_are_spread_over_all(count: int, taken: int) -> None:
    digits = load_dataset("digits", "test")
    truth = Truth(digits, digits.label_ids)
    found = truth.spread(count)
    assert len(found.images) == taken and np.array_equal(found.classes, found.images.label_ids)
    places = [list(digits.indices).index(index) for index in found.images.indices]
    assert places[0] == 0 and (taken == 1 or places[-1] == 359) and sorted(set(places)) == places
    steps = np.diff(places)
    assert not len(steps) or steps.max() - steps.min() <= 1
