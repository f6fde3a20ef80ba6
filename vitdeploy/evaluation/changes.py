"""What a form answers differently: confusion, flows from class to class, and the images on which forms disagree."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitdeploy.evaluation.statistics import Share, top_scores
from vitdeploy.models.tasks import SINGLE_LABEL, Task

__all__ = ["Changes", "Confusion", "Disagreement", "changed", "confusion", "disagreements", "packed", "unpacked"]

_MOST_FLOWS = 20
_SHOWN = 12
_THUMBNAIL = 96  # pixels of the longest side


@dataclass(frozen=True)
class Confusion:
    """How often images of class `true[i]` were taken for class `answer[i]`: `count[i]` times; only what occurred."""

    true: tuple[int, ...]
    answer: tuple[int, ...]
    count: tuple[int, ...]


@dataclass(frozen=True)
class Changes:
    """What a form does to the baseline's answers on the same images.

    `lost` right answers became wrong, `won` wrong ones right, `moved` wrong ones wrong in another way. Flows are the
    most frequent changes of the best class: `count[i]` times from `before[i]` to `after[i]`. `confidence` is the mean
    score of the form's best class, `baseline_confidence` that of the baseline's.
    """

    lost: int
    won: int
    moved: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    count: tuple[int, ...]
    confidence: Share
    baseline_confidence: Share


@dataclass(frozen=True)
class Disagreement:
    """An image on which the forms do not agree: its place in the dataset, true label, and each form's answer.

    `answers` maps a row's key to (label, score); `image_png` is a small PNG in base64, or empty.
    """

    index: int
    label: str
    answers: Mapping[str, tuple[str, Share]]
    image_png: str


class _Answers(Protocol):
    @property
    def logits(self) -> npt.NDArray[np.float32]: ...

    @property
    def done(self) -> npt.NDArray[np.bool_]: ...


class _Images(Protocol):
    def image(self, index: int, /) -> npt.NDArray[np.uint8]: ...


def confusion(best: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], classes: int) -> Confusion:
    """Count (true class, answer) pairs."""
    pairs, counts = np.unique(truth * classes + best, return_counts=True)
    return Confusion(_ints(pairs // classes), _ints(pairs % classes), _ints(counts))


def changed(
    logits: npt.NDArray[np.float32],
    baseline: npt.NDArray[np.float32],
    truth: npt.NDArray[np.int64],
    task: Task = SINGLE_LABEL,
) -> Changes:
    """Compare a form's logits (count, classes) with the baseline's on the same images; `task` makes scores of them."""
    best, base = logits.argmax(axis=1), baseline.argmax(axis=1)
    classes = logits.shape[1]
    right, base_right, other = best == truth, base == truth, best != base
    pairs, counts = np.unique((base * classes + best)[other], return_counts=True)
    order = np.lexsort((pairs, -counts))[:_MOST_FLOWS]
    return Changes(
        lost=int((base_right & ~right).sum()),
        won=int((right & ~base_right).sum()),
        moved=int((other & ~right & ~base_right).sum()),
        before=_ints(pairs[order] // classes),
        after=_ints(pairs[order] % classes),
        count=_ints(counts[order]),
        confidence=float(top_scores(logits, task).mean()),
        baseline_confidence=float(top_scores(baseline, task).mean()),
    )


def disagreements(
    forms: Mapping[str, _Answers],
    reference: str | None,
    truth: npt.NDArray[np.int64],
    images: _Images,
    labels: tuple[str, ...],
    task: Task = SINGLE_LABEL,
) -> tuple[tuple[Disagreement, ...], int]:
    """Images on which some form's best class is not the reference's: the most disputed ones, and how many there are."""
    if reference is None or reference not in forms or len(forms) < 2:
        return (), 0
    seen = np.logical_and.reduce([form.done for form in forms.values()])
    best = {key: form.logits.argmax(axis=1) for key, form in forms.items()}
    against = np.sum([best[key] != best[reference] for key in forms], axis=0) * seen
    disputed = np.flatnonzero(against)
    order = disputed[np.lexsort((disputed, -against[disputed]))][:_SHOWN]
    shown = []
    for index in map(int, order):
        answers = {
            key: (labels[best[key][index]], round(float(top_scores(form.logits[[index]], task)[0]), 4))
            for key, form in forms.items()
        }
        shown.append(Disagreement(index, labels[truth[index]], answers, _thumbnail(images.image(index))))
    return tuple(shown), len(disputed)


def packed(right: npt.NDArray[np.bool_]) -> str:
    """One bit per image, in base64."""
    return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def unpacked(text: str, count: int) -> npt.NDArray[np.bool_]:
    """What `packed` was given."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count)
    return np.asarray(bits, dtype=np.bool_)


def _ints(values: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _thumbnail(pixels: npt.NDArray[np.uint8]) -> str:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
