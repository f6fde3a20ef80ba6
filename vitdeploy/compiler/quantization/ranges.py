"""Candidates for the range of an activation, as shares of the largest magnitude that was seen.

minmax      all of it
percentile  what holds all but the `100 - percentile` per cent largest magnitudes of the sample
entropy     where the histogram, clipped there and merged to 128 levels, diverges least (Kullback-Leibler) from
            itself unmerged, as TensorRT's entropy calibrator has it (Migacz 2017)
mse         several, of which the caller takes the one with the least squared error of the layer's output
"""

from __future__ import annotations

import numpy as np

from vitdeploy.compiler.quantization.arithmetic import LEVELS
from vitdeploy.compiler.quantization.recipe import Recipe

__all__ = ["CLIPS", "clip_shares"]

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_BINS = 2048


def clip_shares(
    recipe: Recipe, values: np.ndarray, top: float, candidates: tuple[float, ...] = CLIPS
) -> tuple[float, ...]:
    """What to try, by the recipe's method.

    Args:
        values: the sample.
        top: the largest magnitude of all that was seen, at least that of the sample.
        candidates: what `mse` tries.
    """
    if top <= 0 or recipe.method == "minmax":
        return (1.0,)
    if recipe.method == "percentile":
        return (float(np.percentile(np.abs(values), recipe.percentile)) / top,)
    if recipe.method == "entropy":
        return (_entropy_share(values, top),)
    return candidates


def _entropy_share(values: np.ndarray, top: float) -> float:
    counts, _ = np.histogram(np.abs(values), bins=_BINS, range=(0.0, top))
    counts = counts.astype(np.float64)
    counts[0] = counts[1]  # exact zeros (GELU's tail, padding) would decide alone
    ends = range(LEVELS + 1, _BINS + 1, 8)
    best = min(ends, key=lambda end: _divergence(counts, end))
    return best / _BINS


def _divergence(counts: np.ndarray, end: int) -> float:
    """KL(P || Q) of the first `end` bins, the rest piled on the last, and the same in 128 levels."""
    reference = counts[:end].copy()
    occupied = counts[:end] > 0
    level = np.arange(end) * (LEVELS + 1) // end
    totals = np.bincount(level, counts[:end], minlength=LEVELS + 1)
    sizes = np.bincount(level, occupied, minlength=LEVELS + 1)
    merged = np.where(occupied, (totals / np.maximum(sizes, 1))[level], 0.0)
    reference[-1] += counts[end:].sum()
    if merged.sum() == 0 or (merged[-1] == 0 and reference[-1] > 0):
        return float("inf")
    p, q = reference / reference.sum(), merged / merged.sum()
    inside = p > 0
    return float(np.sum(p[inside] * np.log(p[inside] / np.maximum(q[inside], 1e-12))))
