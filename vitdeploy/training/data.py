"""Images to batches: decoded and put through the model's own image processor in the collate function."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitdeploy.datasets import ImageDataset
from vitdeploy.errors import require

__all__ = ["Augmenter", "Batcher", "Rows"]

_CACHE_LIMIT_BYTES = 256 << 20
_SHIFT_FRACTION = 8  # up to an eighth of the side, as 4 of 32 pixels is usual for CIFAR-10


class Rows:
    """The dataset the Trainer sees: positions, which the collate function turns into images."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[ImageDataset, int]:
        return self._dataset, int(index)


class Batcher:
    """The collate function: rows -> {pixel_values (batch, 3, height, width) float32, labels (batch,) int64}.

    Processed images of the training set are kept when all of them fit into 256 MiB, so that later epochs neither
    decode nor resize. Only training images are augmented.
    """

    def __init__(self, processor: Any, train: ImageDataset, augmenter: Augmenter) -> None:
        self._torch = require("torch", extra="build")
        self._processor = processor
        self._train = train
        self._augmenter = augmenter
        self._cache: dict[int, Any] = {}
        self._fits: bool | None = None  # known after the first image

    def __call__(self, rows: list[tuple[ImageDataset, int]]) -> dict[str, Any]:
        dataset = rows[0][0]
        indices = [index for _, index in rows]
        is_train = dataset is self._train
        pixels = self._cached(indices) if is_train else self.process(dataset, indices)
        labels = self._torch.as_tensor(dataset.label_ids[np.array(indices)])
        return {"pixel_values": self._augmenter(pixels) if is_train else pixels, "labels": labels}

    def process(self, dataset: ImageDataset, indices: list[int]) -> Any:
        """Images through the processor: (batch, 3, height, width) float32."""
        images = [dataset.image(index) for index in indices]
        return self._processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    def _cached(self, indices: list[int]) -> Any:
        if self._fits is None:
            one = self.process(self._train, indices[:1])
            self._fits = one.numel() * one.element_size() * len(self._train) <= _CACHE_LIMIT_BYTES
        if not self._fits:
            return self.process(self._train, indices)
        new = [index for index in dict.fromkeys(indices) if index not in self._cache]
        if new:
            self._cache.update(zip(new, self.process(self._train, new), strict=True))
        return self._torch.stack([self._cache[index] for index in indices])


class Augmenter:
    """Random changes that keep an image's meaning, on (batch, 3, height, width); another draw for each image."""

    def __init__(self, kind: str, seed: int) -> None:
        self._torch = require("torch", extra="build")
        self._flip, self._shift = kind == "flip-shift", kind in ("shift", "flip-shift")
        self._generator = self._torch.Generator().manual_seed(seed)

    def __call__(self, pixels: Any) -> Any:
        """A changed copy (or `pixels` itself where nothing is asked for)."""
        torch = self._torch
        count, _, height, width = pixels.shape
        if self._flip:
            mirrored = torch.rand(count, 1, 1, 1, generator=self._generator) < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        if self._shift:
            rows = self._moved(count, height)  # (batch, height)
            columns = self._moved(count, width)  # (batch, width)
            image = torch.arange(count)
            pixels = pixels.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]
            pixels = pixels.permute(0, 3, 1, 2).contiguous()  # (batch, 3, height, width)
        return pixels

    def _moved(self, count: int, side: int) -> Any:
        """Which row (or column) each one is taken from after a shift: (batch, side), edges repeated."""
        most = side // _SHIFT_FRACTION
        offsets = self._torch.randint(-most, most + 1, (count, 1), generator=self._generator)
        return (self._torch.arange(side)[None, :] + offsets).clamp(0, side - 1)
