"""Names of splits, and what is done with data that has none.

Data without splits gets a fixed one, so that every command takes the same images for the same purpose: `test` is
a stratified fifth, `train` the rest, `all` everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitdeploy.core import progress
from vitdeploy.core.errors import DatasetError
from vitdeploy.data.sampling import stratified_indices

__all__ = ["UNSPLIT", "ChosenSplit", "choose_split", "own_split", "split_of"]

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
_OWN = ("train", "test", "val", "valid", "validation")


def split_of(word: str) -> str | None:
    """The split that a folder's name or a word of a file's name stands for, if it does."""
    return _ALIASES.get(word.lower())


def own_split(name: str) -> str | None:
    """The split that a folder of images is by its own name: taken whole, never divided."""
    return split_of(name) if name.lower() in _OWN else None


@dataclass(frozen=True)
class ChosenSplit:
    """A split that exists; `carve` if it must be cut out of a dataset that has no splits."""

    dataset: str
    name: str
    carve: bool

    def indices(self, label_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the images with these classes belong to it; says so where that is a part of them."""
        if not self.carve:
            return np.arange(len(label_ids), dtype=np.int64)
        count = round(TEST_FRACTION * len(label_ids))
        test, train = stratified_indices(label_ids, [count], seed=_SPLIT_SEED)
        chosen = test if self.name == "test" else train
        progress.note(
            f"{self.dataset} has no splits: {self.name} is {len(chosen)} of its {len(label_ids)} images (test is the"
            f" same {TEST_FRACTION:.0%} in every command, train the rest)."
        )
        return chosen


def choose_split(dataset: str, asked: str, existing: list[str], *, unlabelled: Sequence[str] = ()) -> ChosenSplit:
    """Find the split that was asked for among those that exist (none: the data is not split).

    Where there is no test split, the validation split is what is tested on, as in ImageNet and most tools' layouts.

    Args:
        unlabelled: what is there and is not a split, in words, for a message.

    Raises:
        DatasetError: there is no such split; the message names those that exist.
    """
    if existing:
        found = asked if asked in existing else split_of(asked)
        if found in existing:
            return ChosenSplit(dataset, str(found), carve=False)
        if found == "test" and "validation" in existing:
            progress.note(f"{dataset} has no test split: its validation split is what is tested on.")
            return ChosenSplit(dataset, "validation", carve=False)
        if asked == "all" and len(existing) == 1:
            return ChosenSplit(dataset, existing[0], carve=False)
        carve = "; or move the classes out of train, and a fixed fifth of them is for testing"
        also = f" ({'; '.join(unlabelled)})" if unlabelled else ""
        raise DatasetError(
            f"{dataset} has no split {asked!r}; it has {', '.join(sorted(existing))}{also}",
            hint=f"ask for one of those, or put the images of {asked!r} beside them"
            + (carve if existing == ["train"] else ""),
        )
    if asked not in UNSPLIT:
        raise DatasetError(
            f"{dataset} has no splits, so it can give {', '.join(UNSPLIT)}, but not {asked!r}",
            hint=f"ask for one of those, or put the images of {asked!r} in a folder of that name",
        )
    return ChosenSplit(dataset, asked, carve=asked != "all")
