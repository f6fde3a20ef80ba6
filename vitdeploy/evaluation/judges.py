"""Whether a form keeps to its limits, by bounds: inside the compiler, for its decisions.

The numbers are those of `paired` and `vectors`, which bench reports too. It is their bounds that must keep to the
limits: a drop that can't be shown to be small enough counts as too large.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitdeploy.core.errors import DatasetError
from vitdeploy.evaluation.limits import Limits
from vitdeploy.evaluation.paired import PairedDrop, Truth, compare_classes
from vitdeploy.evaluation.statistics import drop_bound
from vitdeploy.evaluation.vectors import Bounds, Comparison, VectorQuality, most_recall
from vitdeploy.models.tasks import EMBEDDING, Kind

__all__ = [
    "Judge",
    "KeptVectors",
    "OfClasses",
    "OfVectors",
    "Verdict",
    "judge_of",
    "require_shown_by",
    "too_few",
]

_NO_CLASS = -1  # of scores that are not numbers: right for no image
_LEAST_IMAGES = 100  # a half of them bounds a mean of vectors' numbers about as often as it says


def require_shown_by(truth: Truth, limits: Limits) -> None:
    """Refuse images that can't show whether an embedding keeps to the limits.

    Raises:
        DatasetError: they have no classes, and a classifier is limited; or they are too few.
    """
    images = truth.images
    if limits.max_drop is not None and truth.classes is None:
        raise DatasetError(
            f"{images} has no class an image, so what a classifier by neighbours loses can't be measured",
            hint="limit what needs none, --min-cosine or --min-recall; or lay the images out in class folders",
        )
    if len(images) < _LEAST_IMAGES:
        raise DatasetError(
            f"{len(images)} images of {images} are left to judge by, and a budget of an embedding needs"
            f" {_LEAST_IMAGES}",
            hint="raise --validation-images, lower count in the recipe, or take more images",
        )


def too_few(count: int, limits: Limits, confidence: float) -> str | None:
    """Why so many images can't show that a form which loses nothing keeps to the limits; None: they can."""
    drop = 100 * drop_bound(0, 0, count, confidence)
    if limits.max_drop is not None and limits.max_drop < drop:
        return f"{count} images can't show less than {drop:.2f} points even where nothing is lost"
    recall = most_recall(count, limits.k, confidence)
    if limits.min_recall is not None and limits.min_recall > recall:
        return f"{count} images can't show more than recall@{limits.k} of {recall:.4f} even where nothing is lost"
    return None


@dataclass(frozen=True)
class KeptVectors:
    """What a form keeps of FP32's vectors, and what is sure of it."""

    quality: VectorQuality
    bounds: Bounds

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.quality), "bounds": asdict(self.bounds)}

    def __str__(self) -> str:
        kept, bounds = self.quality, self.bounds
        assert kept.cosine is not None and kept.recall is not None
        words = (
            f"mean cosine {kept.cosine.value:.4f}, with 95 % confidence at least {bounds.cosine:.4f};"
            f" recall@{kept.k} {kept.recall.value:.4f}, at least {bounds.recall:.4f}"
        )
        if kept.delta is not None and bounds.drop is not None:
            words += f"; {kept.k}NN drop {-100 * kept.delta:+.2f} points, at most {100 * bounds.drop:+.2f}"
        return f"{words} ({kept.count:,} images)"


@dataclass(frozen=True)
class Verdict:
    """What a form keeps, and by how much that is over its limits: a share, 0 or less where it keeps to all; infinity
    where vectors hold what is no number."""

    kept: PairedDrop | KeptVectors
    excess: float

    @property
    def met(self) -> bool:
        return self.excess <= 0

    def to_json(self) -> dict[str, Any]:
        return self.kept.to_json()

    def __str__(self) -> str:
        return str(self.kept)


class Judge(Protocol):
    """Holds a form's answers against FP32's, on all images or some."""

    @property
    def reference(self) -> npt.NDArray[Any]:
        """What is compared of FP32's answers, one an image."""

    def compared(self, answers: npt.NDArray[np.float32], /) -> npt.NDArray[Any]:
        """What is compared of answers (images, n)."""

    def __call__(self, found: npt.NDArray[Any], places: npt.NDArray[np.int64], confidence: float, /) -> Verdict:
        """Judge what `compared` gave of the images at `places` by bounds of that confidence (one-sided)."""


class OfClasses:
    """By the best class.

    Args:
        classes: the right class of each image, (images,).
        reference: FP32's best class of each.
        max_drop: in points.
    """

    def __init__(self, classes: npt.NDArray[np.int64], reference: npt.NDArray[np.int64], max_drop: float) -> None:
        self.reference: npt.NDArray[Any] = reference
        self._classes, self._max_drop = classes, max_drop

    def compared(self, answers: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        best: npt.NDArray[np.int64] = answers.argmax(axis=1)
        best[~np.isfinite(answers).all(axis=1)] = _NO_CLASS
        return best

    def __call__(self, found: npt.NDArray[Any], places: npt.NDArray[np.int64], confidence: float) -> Verdict:
        kept = compare_classes(found, self.reference[places], self._classes[places], confidence)
        return Verdict(kept, (kept.drop_bound - self._max_drop) / 100)


class OfVectors:
    """By the vectors among themselves: each image is a query, and the others that are judged with it the gallery.

    Args:
        classes: of each image, (images,), for the classifier by neighbours; None: they have none.
        reference: FP32's vectors, (images, dimensions).
        limits: at least one of them.
    """

    def __init__(
        self, classes: npt.NDArray[np.int64] | None, reference: npt.NDArray[np.float32], limits: Limits
    ) -> None:
        self.reference: npt.NDArray[Any] = reference
        self._classes, self._limits = classes, limits

    def compared(self, answers: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        return answers

    def __call__(self, found: npt.NDArray[Any], places: npt.NDArray[np.int64], confidence: float) -> Verdict:
        limits = self._limits
        classes = None if self._classes is None else self._classes[places]
        comparison = Comparison(found, self.reference[places], classes, limits.k)
        bounds = comparison.bounds(confidence)
        over = []
        if limits.max_drop is not None:
            assert bounds.drop is not None
            over.append(bounds.drop - limits.max_drop / 100)
        if limits.min_cosine is not None:
            over.append(limits.min_cosine - bounds.cosine)
        if limits.min_recall is not None:
            over.append(limits.min_recall - bounds.recall)
        excess = max(over) if np.isfinite(found).all() else math.inf
        return Verdict(KeptVectors(comparison.quality, bounds), excess)


def judge_of(kind: Kind, limits: Limits, truth: Truth, answers: npt.NDArray[np.float32]) -> Judge:
    """What judges a model of that kind by FP32's answers (images, n) to the images of `truth`."""
    if kind is EMBEDDING:
        return OfVectors(truth.classes, answers, limits)
    assert truth.classes is not None and limits.max_drop is not None
    return OfClasses(truth.classes, answers.argmax(axis=1), limits.max_drop)
