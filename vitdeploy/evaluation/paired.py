"""What an INT8 form loses against FP32 on labelled images, in pairs: inside the compiler, for its decisions.

With b images that only FP32 gets right and c that only INT8 gets right, of n, the drop is (b - c) / n. Its upper bound
holds with 95 % confidence (one-sided): Tango's (1998) score bound, as in `statistics.drop_bound`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitdeploy.core import progress
from vitdeploy.data import ImageDataset
from vitdeploy.data.labels import BY_NAME, LabelMatch, match_dataset
from vitdeploy.evaluation.statistics import drop_bound
from vitdeploy.evaluation.vectors import classes_of

__all__ = ["PairedDrop", "Truth", "compare_answers", "compare_classes"]


@dataclass(frozen=True)
class PairedDrop:
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


def compare_answers(logits: np.ndarray, reference: np.ndarray, truth: np.ndarray) -> PairedDrop:
    """Compare logits (count, classes) with those of FP32 on the same images with classes `truth` (count,)."""
    return compare_classes(logits.argmax(axis=1), reference.argmax(axis=1), truth)


def compare_classes(answer: np.ndarray, wanted: np.ndarray, truth: np.ndarray, confidence: float = 0.95) -> PairedDrop:
    """Compare best classes (count,) with those of FP32; `confidence` is that of the bound."""
    lost = int(((wanted == truth) & (answer != truth)).sum())
    won = int(((wanted != truth) & (answer == truth)).sum())
    count = len(truth)
    bound = drop_bound(lost, won, count, confidence)
    return PairedDrop(count, 100 * (lost - won) / count, 100 * bound, 100 * float((answer == wanted).mean()))


@dataclass(frozen=True)
class Truth:
    """Images with their classes (images,), as indices of the model's labels; of an embedding, the dataset's own.

    `classes` is None where an embedding is judged on images that have none.
    """

    images: ImageDataset
    classes: np.ndarray | None
    match: LabelMatch | None = None

    @classmethod
    def of(cls, images: ImageDataset, labels: tuple[str, ...], way: str = BY_NAME) -> Truth:
        """Match the dataset's classes with the model's, and say so where that was not plain.

        Raises:
            DatasetError: they do not fit.
        """
        match = match_dataset(images, labels, way)
        if match.sentence:
            progress.note(f"Note: {match.sentence}.")
        return cls(images, match.of(images), match)

    @classmethod
    def of_vectors(cls, images: ImageDataset) -> Truth:
        """The dataset's own classes, where it has any: an embedding has none that they could be matched with."""
        return cls(images, classes_of(images))

    def describe(self) -> dict[str, Any]:
        """The images, for JSON, and how their classes were matched."""
        return {**self.images.describe(), "matching": self.match and self.match.to_json()}

    def spread(self, count: int) -> Truth:
        """`count` images (all, if there are no more), evenly spread over these."""
        places = np.linspace(0, len(self.images) - 1, min(count, len(self.images))).astype(np.int64)
        classes = None if self.classes is None else self.classes[places]
        return Truth(self.images.subset(places), classes, self.match)
