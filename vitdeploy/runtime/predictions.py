"""Class scores of one image -> its prediction.

p_i = exp(z_i - max z) / sum_j exp(z_j - max z)        (softmax, computed in float64)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitdeploy.specs import Prediction, Score

__all__ = ["prediction", "softmax"]


def prediction(logits: npt.NDArray[np.float32], labels: Sequence[str], top_k: int) -> Prediction:
    """The best class of the logits (classes,), and the `top_k` best; of equal ones the first comes first."""
    scores = softmax(logits)
    places = _at_least_the_kth(scores, top_k) if top_k < len(scores) else np.arange(len(scores))
    best = places[np.argsort(-scores[places], kind="stable")[:top_k]]
    top = tuple([Score(labels[i], i, score) for i, score in zip(best.tolist(), scores[best].tolist(), strict=True)])
    return Prediction(top[0].label, top[0].index, top[0].score, top)


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities (classes,) of logits (classes,)."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum())


def _at_least_the_kth(scores: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.intp]:
    """Where the k largest are, and those equal to the k-th, in the order of the classes: cheaper than to sort all."""
    least = np.partition(scores, -k)[-k]
    return np.flatnonzero(scores >= least)
