"""Images to batches: decoded and put through the model's own image processor in the collate function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitdeploy.core.errors import require
from vitdeploy.data import ImageDataset
from vitdeploy.training.augment import Augmenter, Mixer
from vitdeploy.training.scoring import targets

__all__ = ["Batcher", "EpochSampler", "Example", "Rows"]

_CACHE_LIMIT_BYTES = 256 << 20


@dataclass(frozen=True)
class Example:
    """Image `index` of a dataset, in pass `epoch` over it."""

    dataset: ImageDataset
    index: int
    epoch: int = 0


class Rows:
    """The dataset the Trainer sees: positions, which the collate function turns into images."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        """Row `index`, or with its epoch as an EpochSampler gives it."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        return Example(self._dataset, int(index), int(epoch))


class EpochSampler:
    """Every image once an epoch, in an order that only the seed and the epoch decide.

    A run that is taken up in the middle of an epoch, or spread over processes, thus meets the same images in the same
    order, with the same augmentation: epoch and position are all that a random draw depends on.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
        return iter([(int(index), epoch) for index in order])


def processed(processor: Any, dataset: ImageDataset, indices: Iterable[int]) -> Any:
    """Images of a dataset through an image processor: (images, 3, height, width) float32; few are decoded at a time."""
    torch = require("torch", extra="build")
    parts = [
        processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        for images in dataset.parts(indices)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Batcher:
    """The collate function: rows -> {pixel_values (batch, 3, height, width) float32, labels}.

    Labels are (batch,) int64, or (batch, classes) float32 where images were mixed or may have several labels.
    Processed images of the training set are kept when all of them fit into 256 MiB (and no worker process would keep
    its own), so that later epochs neither decode nor resize; a larger set is decoded again each time. Only training
    images are augmented.
    """

    def __init__(
        self,
        processor: Any,
        train: ImageDataset,
        augmenter: Augmenter,
        mixer: Mixer | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self._torch = require("torch", extra="build")
        self._processor = processor
        self._train = train
        self._augmenter, self._mixer = augmenter, mixer
        self._cache: dict[int, Any] = {}
        self._fits: bool | None = None if keep else False  # known after the first image

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        dataset = rows[0].dataset
        indices = [row.index for row in rows]
        labels = self._torch.as_tensor(targets(dataset, np.array(indices)))
        if dataset is not self._train:
            return {"pixel_values": self.process(dataset, indices), "labels": labels}
        draws = [(row.epoch, row.index) for row in rows]
        pixels = self._augmenter(self._cached(indices), draws)
        if self._mixer is not None:
            pixels, labels = self._mixer(pixels, labels, draws[0])
        return {"pixel_values": pixels, "labels": labels}

    def process(self, dataset: ImageDataset, indices: Sequence[int]) -> Any:
        """Images through the processor: (batch, 3, height, width) float32."""
        return processed(self._processor, dataset, indices)

    def _cached(self, indices: Sequence[int]) -> Any:
        if self._fits is None:
            one = self.process(self._train, indices[:1])
            self._fits = one.numel() * one.element_size() * len(self._train) <= _CACHE_LIMIT_BYTES
        if not self._fits:
            return self.process(self._train, indices)
        new = [index for index in dict.fromkeys(indices) if index not in self._cache]
        if new:
            self._cache.update(zip(new, self.process(self._train, new), strict=True))
        return self._torch.stack([self._cache[index] for index in indices])
