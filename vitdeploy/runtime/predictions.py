"""Class scores of one image -> its prediction.

p_i = exp(z_i - max z) / sum_j exp(z_j - max z)        (softmax, computed in float64)

This runs when a model has just pushed everything else out of the processor's caches, and then each function of NumPy
that is called costs 20 to 40 µs, whatever it does. So few of them are called, and none for few classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.specs import Prediction, Score

__all__ = ["prediction", "softmax"]

_FEW_CLASSES = 64  # Python's own arithmetic is as fast up to about so many
_FEW_BEST = 16


def prediction(logits: npt.NDArray[np.float32], labels: Sequence[str], top_k: int) -> Prediction:
    """The best class of the finite logits (classes,), and the `top_k` best; of equal ones the first comes first."""
    if len(logits) <= _FEW_CLASSES:
        values = logits.tolist()
        best = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:top_k]  # keeps the order of equal ones
        most = values[best[0]]
        powers: Any = [exp(value - most) for value in values]
        total = fsum(powers)
    else:
        best = _best(logits.copy(), min(top_k, len(logits)))
        powers = _powers(logits)
        total = float(np.add.reduce(powers))
    top = tuple([Score(labels[index], index, float(powers[index]) / total) for index in best])
    return Prediction(top[0].label, top[0].index, top[0].score, top)


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities (classes,) of logits (classes,)."""
    powers = _powers(logits)
    return np.asarray(powers / powers.sum())


def _powers(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    values = logits.astype(np.float64)
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
