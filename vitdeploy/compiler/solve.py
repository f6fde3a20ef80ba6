"""Rows of activations -> what INT8 does with one group of layers.

For layers that read the activation X (rows: tokens, columns: channels) with weights W, INT8 computes

    Y' = (Sx Sw) (clip(round(X / s / Sx) - k) + k) round(s W / Sw)    Sx, k one number, Sw one a column, s one a channel

with 8-bit integers. s, Sx and k are chosen to make the squared error of Y' against Y = X W small, on real rows, not on
ranges alone: outliers of X carry information, and whether cutting one hurts is decided by W.

    s     = max|X_j|^a / max|W_j|^(1-a) per channel j (SmoothQuant, Xiao et al. 2023), a searched per layer, a = 0: off
    Sx    = c max|X / s| / 127, the share c searched per layer
    k     = a whole number of steps by which X is shifted, so that a one-sided X (behind GELU) uses all 256 levels:
            X - k Sx is symmetric, and k Sx times the column sums of W goes into the bias
    bias  + mean(Y - Y'), the part of the error that is constant over rows (Nagel et al. 2019)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vitdeploy.compiler.arithmetic import LEVELS, activation_scale, fake_quantize, weight_scales
from vitdeploy.compiler.layers import LayerGroup, layer_name
from vitdeploy.compiler.observe import GroupSample
from vitdeploy.compiler.ranges import clip_shares
from vitdeploy.compiler.recipe import Recipe

__all__ = ["GroupSolution", "decibels", "smoothing_vector", "solve_group"]

ALPHAS = (0.0, 0.4, 0.55, 0.7, 0.85)


@dataclass(frozen=True)
class GroupSolution:
    """Sx, k, s (None: off), the bias correction of each layer, and the signal-to-noise ratio of the output in dB."""

    scale: float
    shift: int
    smoothing: np.ndarray | None
    bias: dict[str, np.ndarray]
    sqnr_db: float
    alpha: float
    clip: float


@dataclass(frozen=True)
class _Trial:
    """One choice of s, Sx and k, and the error Y - Y' (rows, outputs) that it leaves."""

    alpha: float
    clip: float
    scale: float
    shift: int
    smoothing: np.ndarray | None
    difference: np.ndarray

    @property
    def error(self) -> float:
        return float(np.square(self.difference, dtype=np.float64).mean())


def solve_group(group: LayerGroup, sample: GroupSample, recipe: Recipe) -> GroupSolution:
    """Choose s, Sx and k of one group by the error of its output on the sample's rows."""
    weights, rows = group.weights(), sample.rows
    weight = np.concatenate(weights, axis=1)
    exact = rows @ weight
    trial = min(_trials(group, sample, rows, weight, exact, recipe), key=lambda trial: trial.error)
    error, bias = trial.error, {}
    if recipe.bias_correction:
        mean = trial.difference.mean(axis=0, dtype=np.float64).astype(np.float32)
        ends = np.cumsum([array.shape[1] for array in weights])
        parts = np.split(mean, ends[:-1])
        bias = {layer_name(node): part for node, part in zip(group.products, parts, strict=True)}
        error -= float(np.square(mean, dtype=np.float64).mean())
    sqnr = decibels(float(np.square(exact, dtype=np.float64).mean()), error)
    return GroupSolution(trial.scale, trial.shift, trial.smoothing, bias, sqnr, trial.alpha, trial.clip)


def decibels(signal: float, noise: float) -> float:
    """Signal-to-noise ratio of two mean squares."""
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


def smoothing_vector(largest: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """s per channel, its geometric mean 1 so that nothing drifts out of float16's range.

    `largest` is the largest magnitude per channel of X, `weight` (channels in, channels out).
    """
    return balance(largest, np.abs(weight).max(axis=1), alpha)


def balance(first: np.ndarray, second: np.ndarray, alpha: float) -> np.ndarray:
    """first^a / second^(1-a) per channel, its geometric mean 1."""
    logarithm = alpha * np.log(np.maximum(first, 1e-5).astype(np.float64))
    logarithm -= (1 - alpha) * np.log(np.maximum(second, 1e-5).astype(np.float64))
    result: np.ndarray = np.exp(np.clip(logarithm - logarithm.mean(), -7, 7)).astype(np.float32)
    return result


def _trials(
    group: LayerGroup, sample: GroupSample, rows: np.ndarray, weight: np.ndarray, exact: np.ndarray, recipe: Recipe
) -> Iterator[_Trial]:
    largest, lowest = sample.largest, sample.lowest
    alphas = ALPHAS if recipe.smoothing and group.source is not None else (0.0,)
    for alpha in alphas:
        smoothing = smoothing_vector(largest, weight, alpha) if alpha else None
        scaled_rows = rows if smoothing is None else rows / smoothing
        scaled_weight = weight if smoothing is None else weight * smoothing[:, np.newaxis]
        quantized_weight = fake_quantize(scaled_weight, weight_scales(scaled_weight))
        top = float((largest if smoothing is None else largest / smoothing).max())
        for clip in clip_shares(recipe, scaled_rows, top):
            steps = [(activation_scale(clip * top / LEVELS), 0)]
            if group.can_shift and recipe.method != "minmax" and -lowest < top / 4:
                scale = activation_scale((clip * top - lowest) / (2 * LEVELS))
                steps.append((scale, round((clip * top + lowest) / 2 / scale)))
            for scale, shift in steps:
                difference = exact - fake_quantize(scaled_rows, scale, shift) @ quantized_weight
                yield _Trial(alpha, clip, scale, shift, smoothing, difference)
