"""What a rounded form must keep of FP32's answers, and how that is judged: inside the compiler, for its decisions.

    max_drop      points of top-1; of an embedding, of the classifier by neighbours, where the images have classes
    min_cosine    of an embedding: the mean cosine to FP32's vectors
    min_recall    of an embedding: the share of FP32's k nearest that are found, recall@k

The numbers are those of `paired` and `vectors`, which bench reports too. It is their bounds that must keep to the
limits: a drop that can't be shown to be small enough counts as too large.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt

from vitdeploy.core.errors import DatasetError, InputError
from vitdeploy.core.settings import AT_LEAST_ONE, BETWEEN, Range, check
from vitdeploy.core.text import quoted
from vitdeploy.evaluation.paired import PairedDrop, Truth, compare_classes
from vitdeploy.evaluation.statistics import drop_bound
from vitdeploy.evaluation.vectors import NEIGHBOURS, Bounds, Comparison, VectorQuality, most_recall
from vitdeploy.models.tasks import EMBEDDING, Kind, Task

__all__ = ["Judge", "KeptVectors", "Limits", "OfClasses", "OfVectors", "Verdict", "judge_of"]

_POINTS = Range("above 0 and at most 100", lambda value: 0 < value <= 100, hint="give points of accuracy, like 0.5")
_LEAST_IMAGES = 100  # a half of them bounds a mean of vectors' numbers about as often as it says


@dataclass(frozen=True)
class Limits:
    """What a form must keep, with 95 % confidence; None: no such limit.

    Args:
        max_drop: the most top-1 that may be lost, in points; of an embedding, top-1 of the classifier by neighbours.
        min_cosine: of an embedding, the least mean cosine to FP32's vectors.
        min_recall: of an embedding, the least share of FP32's nearest that are found.
        neighbours: of an embedding, how many neighbours are looked at; None: `NEIGHBOURS`.

    Raises:
        InputError: a value out of range, or neighbours that nothing is asked of.
    """

    max_drop: Annotated[float | None, _POINTS] = None
    min_cosine: Annotated[float | None, BETWEEN] = None
    min_recall: Annotated[float | None, BETWEEN] = None
    neighbours: Annotated[int | None, AT_LEAST_ONE] = None

    def __post_init__(self) -> None:
        check(self)
        if self.neighbours is not None and not self:
            raise InputError("neighbours alone limit nothing", hint="add --min-recall, or --max-drop")

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return any(limit is not None for limit in (self.max_drop, self.min_cosine, self.min_recall))

    @property
    def k(self) -> int:
        """How many neighbours are looked at."""
        return NEIGHBOURS if self.neighbours is None else self.neighbours

    def require_fits(self, task: Task, model: str) -> None:
        """Refuse limits on what a model does not answer.

        Raises:
            InputError: a limit of embeddings for a model that gives classes.
            ModelError: a limit on top-1 for one that gives something else than one class an image.
        """
        if task.kind is EMBEDDING:
            return
        given = [name for name in ("min_cosine", "min_recall", "neighbours") if getattr(self, name) is not None]
        if given:
            name = f"--{given[0].replace('_', '-')}"
            raise InputError(
                f"{name} is for embeddings, and {model} gives {task.title}",
                hint="--max-drop POINTS limits what a classifier may lose of top-1"
                if task.one_class
                else f"leave {name} out",
            )
        if self.max_drop is not None:
            hint = (
                "leave it out here, and let mAP judge what was built:"
                f" vitdeploy bench {quoted(model)} --dataset D --max-drop 1"
            )
            task.require_single_label(model, "a budget of top-1", hint)

    def require_shown_by(self, truth: Truth) -> None:
        """Refuse images that can't show whether an embedding keeps to the limits.

        Raises:
            DatasetError: they have no classes, and a classifier is limited; or they are too few.
        """
        images = truth.images
        if self.max_drop is not None and truth.classes is None:
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

    def too_few(self, count: int, confidence: float) -> str | None:
        """Why so many images can't show that a form which loses nothing keeps to the limits; None: they can."""
        drop = 100 * drop_bound(0, 0, count, confidence)
        if self.max_drop is not None and self.max_drop < drop:
            return f"{count} images can't show less than {drop:.2f} points even where nothing is lost"
        recall = most_recall(count, self.k, confidence)
        if self.min_recall is not None and self.min_recall > recall:
            return f"{count} images can't show more than recall@{self.k} of {recall:.4f} even where nothing is lost"
        return None

    def to_json(self) -> dict[str, Any]:
        """Those that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        found = []
        if self.max_drop is not None:
            found.append(f"{self.max_drop:g} points")
        if self.min_cosine is not None:
            found.append(f"a mean cosine of {self.min_cosine:.12g}")
        if self.min_recall is not None:
            found.append(f"recall@{self.k} of {self.min_recall:.12g}")
        return " and ".join(found)


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
    """What a form keeps, and by how much that is over its limits: a share, 0 or less where it keeps to all."""

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
        return Verdict(KeptVectors(comparison.quality, bounds), max(over))


def judge_of(kind: Kind, limits: Limits, truth: Truth, answers: npt.NDArray[np.float32]) -> Judge:
    """What judges a model of that kind by FP32's answers (images, n) to the images of `truth`."""
    if kind is EMBEDDING:
        return OfVectors(truth.classes, answers, limits)
    assert truth.classes is not None and limits.max_drop is not None
    return OfClasses(truth.classes, answers.argmax(axis=1), limits.max_drop)
