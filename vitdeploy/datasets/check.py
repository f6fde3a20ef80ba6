"""Which images of a dataset can't be decoded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vitdeploy import progress
from vitdeploy.datasets.core import ImageDataset
from vitdeploy.errors import DatasetError, ImageError
from vitdeploy.machine import usable_cores

__all__ = ["BadImage", "find_bad_images", "without_images"]

_CHUNK = 256


@dataclass(frozen=True)
class BadImage:
    """Image `index` of the dataset, what it is called there, and why it can't be decoded."""

    index: int
    where: str
    problem: str


def find_bad_images(dataset: ImageDataset) -> list[BadImage]:
    """Decode every image once, keeping none of them.

    Raises:
        DatasetError: the dataset itself can't be read any more.
    """

    def problem(index: int) -> BadImage | None:
        try:
            dataset.image(index)
        except ImageError as error:
            cause = error.__cause__
            why = cause.message if isinstance(cause, ImageError) else error.message
            return BadImage(index, dataset.source.where(int(dataset.indices[index])), why)
        return None

    found: list[BadImage] = []
    with (
        progress.task(f"Decoding {dataset} once", total=len(dataset), unit="images") as step,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        for start in range(0, len(dataset), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(dataset)))
            found += [bad for bad in pool.map(problem, chunk) if bad is not None]
            step.advance(len(chunk))
    return found


def without_images(dataset: ImageDataset, indices: Sequence[int]) -> ImageDataset:
    """The dataset without the images at `indices`.

    Raises:
        DatasetError: that leaves none.
    """
    left = np.setdiff1d(np.arange(len(dataset)), np.asarray(indices, dtype=np.int64))
    if not len(left):
        raise DatasetError(f"no image of {dataset} can be decoded", hint="check the files, or copy them again")
    return dataset.subset(left) if len(indices) else dataset
