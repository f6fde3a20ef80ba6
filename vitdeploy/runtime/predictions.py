"""Class scores of one image -> its prediction.

What is written out here is the softmax of `models.tasks`, in float64, for who has one class an image; the scores of
other tasks come from there.

This runs when a model has just pushed everything else out of the processor's caches, and then each function of NumPy
that is called costs 5 to 20 µs, whatever it does. So few of them are called, and for few classes only `tolist`; what is
not needed for the label is computed when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import Prediction, Score
from vitdeploy.models.tasks import SINGLE_LABEL, Task, reached

__all__ = ["Namer"]

_FEW_CLASSES = 64  # Python's own arithmetic is as fast up to about so many
_FEW_BEST = 16


class Namer:
    """Makes predictions of one form's logits.

    Args:
        labels: name of each class.
        form: the form's name, for errors.
        task: what the logits mean.
        threshold: the score from which one of several labels counts; None: of such a task the usual one.
    """

    def __init__(
        self, labels: Sequence[str], form: str, task: Task = SINGLE_LABEL, threshold: float | None = None
    ) -> None:
        self._labels = labels
        self._form = form
        self._task = task
        self.threshold = task.threshold(threshold, form)
        self._in_numpy = len(labels) > _FEW_CLASSES or task is not SINGLE_LABEL

    def prediction(self, logits: npt.NDArray[np.float32], top_k: int) -> Prediction:
        """The best class of the logits of an image, and the `top_k` best; of equal ones the first comes first.

        Args:
            logits: (classes,), or (1, classes) as a batch of one is.
            top_k: how many; more than there are classes gives all.

        Raises:
            ModelError: some of them are not finite.
        """
        if self._in_numpy:
            return self._of_many(logits[0] if logits.ndim == 2 else logits, top_k)
        labels = self._labels
        values = logits.tolist()
        if logits.ndim == 2:
            values = values[0]
        most = max(values)
        total = 0.0
        for value in values:
            total += exp(value - most)
        if total != total or min(values) == -inf:  # NaN and infinity make the total NaN
            raise self._not_finite()
        first = values.index(most)
        return Prediction.listed_later(labels[first], first, 1 / total, _top, labels, values, total, top_k)

    def vector(self, answer: npt.NDArray[np.float32], top_k: int) -> npt.NDArray[np.float32]:
        """The vector (dimensions,) of an image's answer, which may be a batch of one; `top_k` means nothing to it.

        Raises:
            ModelError: some of its numbers are not finite.
        """
        return self.finite(answer[0] if answer.ndim == 2 else answer)

    def finite(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The same logits.

        Raises:
            ModelError: some of them are not finite.
        """
        if not np.isfinite(logits).all():
            raise self._not_finite()
        return logits

    def _of_many(self, logits: npt.NDArray[np.float32], top_k: int) -> Prediction:
        if not isfinite(logits.item(logits.argmax()) - logits.item(logits.argmin())):  # NaN is either of them
            raise self._not_finite()
        best = _best(logits.copy(), min(top_k, len(logits)))
        if self._task is SINGLE_LABEL:
            powers = _powers(logits)
            total = float(np.add.reduce(powers))
            top = tuple([Score(self._labels[index], index, powers.item(index) / total) for index in best])
        elif (scores := self._task.scores(logits)) is not None:
            top = tuple([Score(self._labels[index], index, scores.item(index)) for index in best])
        else:
            top = tuple([Score(self._labels[index], index, None, logits.item(index)) for index in best])
        some = None if self.threshold is None or scores is None else self._reached(scores, self.threshold)
        return Prediction(top[0].label, top[0].index, top[0].score, top, top[0].value, some)

    def _reached(self, scores: npt.NDArray[np.float64], threshold: float) -> tuple[Score, ...]:
        """All classes that the image has, the best first, the first of equal ones before the others."""
        order = np.argsort(-scores, kind="stable")[: int(reached(scores, threshold).sum())]
        return tuple(Score(self._labels[index], index, scores.item(index)) for index in order.tolist())

    def _not_finite(self) -> ModelError:
        return ModelError(
            f"{self._form} gives numbers that are not finite",
            hint='take another form: load(..., precision="fp32")',
        )


def _top(labels: Sequence[str], values: list[float], total: float, top_k: int) -> tuple[Score, ...]:
    """The best of the logits `values`, whose powers add up to `total`; the first of equal ones comes first."""
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    most = values[order[0]]
    return tuple(Score(labels[index], index, exp(values[index] - most) / total) for index in order[:top_k])


def _powers(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    values: Any = logits.astype(np.float64)
    values -= values.item(values.argmax())
    return np.asarray(np.exp(values, values))


def _best(values: npt.NDArray[np.float32], k: int) -> list[int]:
    """Where the k largest are, the first of equal ones first; `values` is overwritten."""
    if k > _FEW_BEST:
        return list(map(int, np.argsort(-values, kind="stable")[:k]))
    found: list[int] = []
    for _ in range(k):
        found.append(int(values.argmax()))
        values[found[-1]] = -np.inf
    return found
