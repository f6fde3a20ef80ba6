"""Which images of a dataset can't be decoded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vitdeploy.core import progress
from vitdeploy.core.errors import DatasetError, ImageError
from vitdeploy.core.machine import usable_cores
from vitdeploy.data.dataset import ImageDataset

__all__ = ["BadImage", "check_images", "find_bad_images", "without_images"]

_CHUNK = 256
_SHOWN = 3


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
            why = error.message.removeprefix(dataset.title(index)).strip()
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


def check_images(dataset: ImageDataset) -> None:
    """Find out before long work whether all images can be decoded.

    Raises:
        DatasetError: some can't; the message names them.
    """
    bad = find_bad_images(dataset)
    if bad:
        named = "; ".join(f"{image.where} {image.problem}" for image in bad[:_SHOWN])
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DatasetError(
            f"{len(bad)} of the {len(dataset)} images of {dataset} can't be decoded: {named}{more}",
            hint="repair or remove them; finetune leaves them out with --skip-bad",
        )


def without_images(dataset: ImageDataset, indices: Sequence[int]) -> ImageDataset:
    """The dataset without the images at `indices`.

    Raises:
        DatasetError: that leaves none.
    """
    left = np.setdiff1d(np.arange(len(dataset)), np.asarray(indices, dtype=np.int64))
    if not len(left):
        raise DatasetError(f"no image of {dataset} can be decoded", hint="check the files, or copy them again")
    return dataset.subset(left) if len(indices) else dataset
