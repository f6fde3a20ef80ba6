"""scikit-learn's handwritten digits as a dataset: 1,797 real images of 8x8 pixels that need no download.

The original is UCI's "Optical Recognition of Handwritten Digits" (test part), values 0..16, here 0..255 in RGB.
The split is fixed: 360 test images, each class in its proportion, and the rest for training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.core.errors import require
from vitdeploy.data.dataset import ImageDataset
from vitdeploy.data.sampling import stratified_indices

__all__ = ["DIGITS_SPLITS", "load_digits"]

DIGITS_SPLITS = ("train", "test")
_TEST_IMAGES = 360
_SPLIT_SEED = 0


class PixelSource:
    """Images that exist only as pixels: (count, height, width, 3) uint8."""

    def __init__(self, pixels: NDArray[np.uint8], what: str) -> None:
        self._pixels, self._what = pixels, what

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._pixels[index]
        return pixels

    def where(self, index: int) -> str:
        return f"{self._what} {index}"


def load_digits(split: str) -> ImageDataset:
    """The digits' `train` (1,437 images) or `test` (360)."""
    data = require("sklearn.datasets", extra="build").load_digits()
    grey = np.rint(data.images * (255.0 / 16.0)).astype(np.uint8)  # (count, 8, 8), 0..255
    pixels = np.repeat(grey[..., None], 3, axis=-1)  # (count, 8, 8, 3)
    label_ids = data.target.astype(np.int64)
    test, train = stratified_indices(label_ids, [_TEST_IMAGES], seed=_SPLIT_SEED)
    indices = {"train": train, "test": test}[split]
    labels = tuple(str(digit) for digit in range(10))
    return ImageDataset("digits", "known", split, labels, label_ids[indices], indices, PixelSource(pixels, "digit"))
