"""The dataset all parts share: labelled images that are decoded when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitdeploy.core.errors import DatasetError, ImageError, InputError
from vitdeploy.core.machine import HELD_BYTES
from vitdeploy.core.parts import in_parts

__all__ = ["ImageDataset", "ImageSource"]


class ImageSource(Protocol):
    """Where images come from, still encoded."""

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """The image's file content, or its uint8 (height, width, 3) RGB pixels where there is no file."""

    def where(self, index: int) -> str:
        """What to call the image in a message."""


@dataclass(frozen=True)
class ImageDataset:
    """One split of a dataset: images with a class each.

    `name` is what was asked for (for a local path its last part), `kind` is "known", "hub" or "local", `split` the
    split. `labels` are all class names of the dataset, also those that have no image in this split. `indices` says
    which images of `source` belong to it, `label_ids` (count,) int64 the class of each, as an index of `labels`.
    Where an image may have several labels, `label_sets` (count, labels) says which; `label_ids` is then the rarest of
    each (0 of an image without any), which samples are drawn by, and never the answer. `carved_from` is the number of
    images of data without splits out of which it was cut, `left_out` counts by class and
    suffix the files that were not taken for images.
    """

    name: str
    kind: str
    split: str
    labels: tuple[str, ...]
    label_ids: NDArray[np.int64]
    indices: NDArray[np.int64]
    source: ImageSource
    carved_from: int | None = None
    label_sets: NDArray[np.bool_] | None = None
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<ImageDataset {self}: {len(self)} images, {len(self.labels)} classes>"

    def __len__(self) -> int:
        return len(self.label_ids)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], int]]:
        for index in range(len(self)):
            yield self.image(index), int(self.label_ids[index])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode image `index` to uint8 (height, width, 3) RGB.

        Raises:
            ImageError: it can't be decoded; the message names the image.
        """
        from vitdeploy.data.images import decode

        position = int(self.indices[index])
        content = self._read(position)
        try:
            pixels: NDArray[np.uint8] = decode(content, name=self.title(index))
            return pixels
        except ImageError as error:
            raise ImageError(
                error.message,
                hint="repair or remove that image in the dataset; finetune leaves it out with --skip-bad",
            ) from error

    def parts(self, indices: Iterable[int]) -> Iterator[list[NDArray[np.uint8]]]:
        """The images at `indices`, decoded, in order: as many at a time as `HELD_BYTES` hold, but at least one."""
        return in_parts(map(self.image, indices), lambda pixels: pixels.nbytes, HELD_BYTES)

    def title(self, index: int) -> str:
        """What to call image `index` in a message."""
        return f"image {index} of {self} ({self.source.where(int(self.indices[index]))})"

    def encoded(self, index: int) -> bytes | NDArray[np.uint8]:
        """The file content of image `index`, or its pixels where there is no file."""
        return self._read(int(self.indices[index]))

    def _read(self, position: int) -> bytes | NDArray[np.uint8]:
        try:
            return self.source.read(position)
        except OSError as error:
            raise DatasetError(
                f"{self.source.where(position)} of {self} can't be read: {error.strerror or error}",
                hint="the dataset changed or its disk failed; check it and run the command again",
            ) from error

    def subset(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> ImageDataset:
        """The images at `indices`, in that order; nothing is copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.ndim != 1 or (chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self))):
            raise InputError(
                f"subset indices must be a list of numbers from 0 to {len(self) - 1}",
                hint="take them from range(len(dataset))",
            )
        sets = None if self.label_sets is None else self.label_sets[chosen]
        return replace(self, label_ids=self.label_ids[chosen], indices=self.indices[chosen], label_sets=sets)

    def require_single_label(self, what: str) -> None:
        """Refuse several labels an image for `what`, a command in words.

        Raises:
            DatasetError: the images have several labels each.
        """
        if self.label_sets is not None:
            raise DatasetError(
                f"{self} has several labels an image, which is not supported for {what}",
                hint="name a column with one class an image: --label-column",
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the encoded images and their class ids, in order; reads everything once, one at a time.

        Per image: the number of bytes (8, little-endian), the bytes, the class id (8, little-endian) or, of several
        labels, a bit for each. For images
        that exist only as arrays the bytes are those of the pixels, preceded by height and width (4 each).
        """
        digest = hashlib.sha256()
        for index, (position, label) in enumerate(zip(self.indices.tolist(), self.label_ids.tolist(), strict=True)):
            content = self._read(position)
            if isinstance(content, np.ndarray):
                height, width = content.shape[:2]
                content = height.to_bytes(4, "little") + width.to_bytes(4, "little") + content.tobytes()
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
            if self.label_sets is None:
                digest.update(label.to_bytes(8, "little", signed=True))
            else:
                digest.update(np.packbits(self.label_sets[index], bitorder="little").tobytes())
        return digest.hexdigest()

    def class_counts(self) -> dict[str, int]:
        """How many images each class has here."""
        counts = np.bincount(self.label_ids, minlength=len(self.labels))
        if self.label_sets is not None:
            counts = self.label_sets.sum(axis=0)
        return {label: int(count) for label, count in zip(self.labels, counts, strict=True)}

    def describe(self) -> dict[str, Any]:
        """What a result must say about the data it was measured on, for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "split": self.split,
            "count": len(self),
            "classes": len(self.labels),
            "class_counts": self.class_counts(),
            "fingerprint": self.fingerprint,
            **({} if self.label_sets is None else {"labels_per_image": float(self.label_sets.sum(axis=1).mean())}),
            **({} if self.carved_from is None else {"carved_from": self.carved_from}),
            **({"left_out": {label: dict(counts) for label, counts in self.left_out.items()}} if self.left_out else {}),
        }

    def __str__(self) -> str:
        return f"{self.name}/{self.split}"
