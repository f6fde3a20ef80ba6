"""What an INT8 form loses against FP32 on labelled images, in pairs: inside the compiler, for its decisions.

With b images that only FP32 gets right and c that only INT8 gets right, of n, the drop is (b - c) / n. Its upper bound
holds with 95 % confidence (one-sided): the adjusted Wald bound for paired proportions of Bonett and Price (2012).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitdeploy.compiler.samples import check_size
from vitdeploy.datasets import ImageDataset
from vitdeploy.errors import DatasetError

__all__ = ["BATCH", "Judgement", "Truth", "compare_answers", "image_batches", "logits_of"]

BATCH = 16
_Z95 = 1.6448536269514722  # the 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Judgement:
    """Drop and its upper bound in points of top-1, and the share of images with the same best class, in per cent."""

    count: int
    drop: float
    drop_bound: float
    agreement: float

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 4) for name, value in vars(self).items()}

    def __str__(self) -> str:
        return (
            f"drop {self.drop:+.2f} points, with 95 % confidence at most {self.drop_bound:+.2f};"
            f" agreement {self.agreement:.2f} % ({self.count} images)"
        )


def compare_answers(logits: np.ndarray, reference: np.ndarray, truth: np.ndarray) -> Judgement:
    """Judge logits (count, classes) beside those of FP32 on the same images with classes `truth` (count,)."""
    answer, wanted, count = logits.argmax(axis=1), reference.argmax(axis=1), len(truth)
    lost = int(((wanted == truth) & (answer != truth)).sum())
    won = int(((wanted != truth) & (answer == truth)).sum())
    p_lost, p_won = (lost + 1) / (count + 2), (won + 1) / (count + 2)
    centre = p_lost - p_won
    bound = centre + _Z95 * math.sqrt((p_lost + p_won - centre**2) / (count + 2))
    return Judgement(count, 100 * (lost - won) / count, 100 * min(1.0, bound), 100 * float((answer == wanted).mean()))


@dataclass(frozen=True)
class Truth:
    """Labelled images, with their classes as indices of the model's labels."""

    images: ImageDataset
    classes: np.ndarray

    @classmethod
    def of(cls, images: ImageDataset, labels: tuple[str, ...]) -> Truth:
        """Match the dataset's classes with the model's: by name where all names are the same, else by position.

        Raises:
            DatasetError: their numbers differ.
        """
        if len(images.labels) != len(labels):
            raise DatasetError(
                f"{images} has {len(images.labels)} classes, the model has {len(labels)}",
                hint="name images of the dataset that the model was trained for",
            )
        ours, theirs = [name.strip().lower() for name in labels], [name.strip().lower() for name in images.labels]
        if len(set(ours)) == len(ours) and set(ours) == set(theirs):
            return cls(images, np.array([ours.index(name) for name in theirs])[images.label_ids])
        return cls(images, images.label_ids)

    def spread(self, count: int) -> Truth:
        """`count` images (all, if there are no more), evenly spread over these."""
        places = np.linspace(0, len(self.images) - 1, min(count, len(self.images))).astype(np.int64)
        return Truth(self.images.subset(places), self.classes[places])


def image_batches(images: ImageDataset) -> Iterator[tuple[list[int], np.ndarray]]:
    """All images as (their indices, pixels (batch, height, width, 3)); a batch ends where the size changes."""
    indices: list[int] = []
    pixels: list[np.ndarray] = []
    for index in range(len(images)):
        image = images.image(index)
        if pixels and (len(pixels) == BATCH or pixels[0].shape != image.shape):
            yield indices, np.stack(pixels)
            indices, pixels = [], []
        indices.append(index)
        pixels.append(image)
    if pixels:
        yield indices, np.stack(pixels)


def logits_of(session: Any, images: ImageDataset, step: Any = None) -> np.ndarray:
    """Logits (count, classes) of an ONNX Runtime session whose input is `image`."""
    parts = []
    for indices, pixels in image_batches(images):
        check_size(session, pixels[0])
        parts.append(session.run(["logits"], {"image": pixels})[0])
        if step is not None:
            step.advance(len(indices))
    return np.concatenate(parts).astype(np.float32)
