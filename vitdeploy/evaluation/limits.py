"""What a rounded form must keep of FP32's answers.

    max_drop      points of top-1; of an embedding, of the classifier by neighbours, where the images have classes
    min_cosine    of an embedding: the mean cosine to FP32's vectors
    min_recall    of an embedding: the share of FP32's k nearest that are found, recall@k

Builds ask `judges` whether a form keeps to them, by bounds of its own. What a report says of vectors is held here
against the limits that it was made with, for bench's recommendation and for what `load` takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from vitdeploy.core.errors import InputError
from vitdeploy.core.settings import AT_LEAST_ONE, BETWEEN, Range, check
from vitdeploy.core.text import quoted
from vitdeploy.models.tasks import EMBEDDING, Task

__all__ = ["NEIGHBOURS", "Limits", "Vectors", "is_over"]

NEIGHBOURS = 10
"""How many neighbours are looked at where nobody says."""
_POINTS = Range("above 0 and at most 100", lambda value: 0 < value <= 100, hint="give points of accuracy, like 0.5")


class _Number(Protocol):
    @property
    def value(self) -> float:
        """0..1."""

    @property
    def ci95(self) -> tuple[float, float]:
        """Its 95 % interval."""


class Vectors(Protocol):
    """The part of `VectorQuality` that limits are of; None: it was not compared."""

    @property
    def k(self) -> int:
        """How many neighbours are looked at."""

    @property
    def cosine(self) -> _Number | None:
        """The mean cosine to the baseline's vectors."""

    @property
    def recall(self) -> _Number | None:
        """The share of the baseline's nearest that are found."""


@dataclass(frozen=True)
class Limits:
    """What a form must keep, with 95 % confidence; None: no such limit.

    Args:
        max_drop: the most top-1 that may be lost, in points; of an embedding, top-1 of the classifier by neighbours.
        min_cosine: of an embedding, the least mean cosine to FP32's vectors.
        min_recall: of an embedding, the least share of FP32's nearest that are found.
        neighbours: of an embedding, how many neighbours are looked at; None: 10.

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

    def broken_by(self, kept: Vectors) -> list[str]:
        """The limits on vectors that a form breaks by the lower end of its intervals, in words; not what is unknown."""
        limits = (
            (self.min_cosine, kept.cosine, "a mean cosine"),
            (self.min_recall, kept.recall, f"recall@{kept.k}"),
        )
        return [
            f"has {name} of {number.value:.4f} (95 % interval from {number.ci95[0]:.4f}), less than {least:g}"
            for least, number, name in limits
            if least is not None and number is not None and number.ci95[0] < least
        ]

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


def is_over(lost: float, most: float) -> bool:
    """Whether a loss in points is more than a limit, and not by the rounding of floats alone."""
    return lost > most + 1e-9
