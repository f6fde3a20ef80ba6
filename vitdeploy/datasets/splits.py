"""Names of splits, and what is done with data that has none.

Data without splits gets a fixed one, so that every command takes the same images for the same purpose: `test` is
a stratified fifth, `train` the rest, `all` everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitdeploy import progress
from vitdeploy.datasets.sampling import stratified_indices
from vitdeploy.errors import DatasetError

__all__ = ["UNSPLIT", "ChosenSplit", "choose_split", "split_of"]

UNSPLIT = ("train", "test", "all")
TEST_FRACTION = 0.2
_SPLIT_SEED = 0
_ALIASES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
}


def split_of(word: str) -> str | None:
    """The split that a folder's name or a word of a file's name stands for, if it does."""
    return _ALIASES.get(word.lower())


@dataclass(frozen=True)
class ChosenSplit:
    """A split that exists; `carve` if it must be cut out of data that has no splits."""

    name: str
    carve: bool

    def indices(self, label_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the images with these classes belong to it."""
        if not self.carve:
            return np.arange(len(label_ids), dtype=np.int64)
        count = round(TEST_FRACTION * len(label_ids))
        test, train = stratified_indices(label_ids, [count], seed=_SPLIT_SEED)
        return test if self.name == "test" else train


def choose_split(dataset: str, asked: str, existing: list[str]) -> ChosenSplit:
    """Find the split that was asked for among those that exist (none: the data is not split).

    Raises:
        DatasetError: there is no such split; the message names those that exist.
    """
    if existing:
        found = asked if asked in existing else split_of(asked)
        if found in existing:
            return ChosenSplit(str(found), carve=False)
        raise DatasetError(
            f"{dataset} has no split {asked!r}; it has {', '.join(sorted(existing))}",
            hint="ask for one of those",
        )
    if asked not in UNSPLIT:
        raise DatasetError(
            f"{dataset} has no splits, so it can give {', '.join(UNSPLIT)}, but not {asked!r}",
            hint=f"ask for one of those, or put the images of {asked!r} in a folder of that name",
        )
    if asked != "all":
        progress.note(
            f"{dataset} has no splits: test is a fixed {TEST_FRACTION:.0%} of it in every command, train the rest."
        )
    return ChosenSplit(asked, carve=asked != "all")
