"""Rows of activations -> what INT8 does with one group of layers.

For layers that read the activation X (rows: tokens, columns: channels) with weights W, INT8 computes

    Y' = (Sx Sw) (clip(round((X - z) / s / Sx) - k) + k) round(s W / Sw) + z W

with 8-bit integers; Sx, k are one number, Sw one a column, s, z one a channel. They are chosen to make the squared
error of Y' against Y = X W small, on real rows, not on ranges alone: outliers of X carry information, and whether
cutting one hurts is decided by W.

    z     = the mean of X_j (a shift per channel as in Outlier Suppression+, Wei et al. 2023)
    s     = max|X_j - z_j|^a / max|W_j|^(1-a) per channel j (SmoothQuant, Xiao et al. 2023), a = 0: off
    Sx    = c max|(X - z) / s| / 127
    k     = a whole number of steps by which X is shifted, so that a one-sided X (behind GELU) uses all 256 levels:
            X - k Sx is symmetric, and k Sx times the column sums of W goes into the bias
    bias  + mean(Y - Y'), the part of the error that is constant over rows (Nagel et al. 2019)

a is searched per layer, then c. z and s cost nothing at run time: they go into what makes X (see `layers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vitdeploy.compiler.arithmetic import LEVELS, activation_scale, fake_quantize, weight_scales
from vitdeploy.compiler.layers import LayerGroup, layer_name
from vitdeploy.compiler.observe import GroupSample
from vitdeploy.compiler.ranges import CLIPS, clip_shares
from vitdeploy.compiler.recipe import Recipe

__all__ = ["GroupSolution", "decibels", "smoothing_vector", "solve_group"]

ALPHAS = (0.0, 0.4, 0.55, 0.7, 0.85)
_MIDDLE = (0.85,)  # the range at which a is searched


@dataclass(frozen=True)
class GroupSolution:
    """Sx, k, z and s (None: off), the bias correction of each layer, and the output's signal-to-noise ratio in dB."""

    scale: float
    shift: int
    centre: np.ndarray | None
    smoothing: np.ndarray | None
    bias: dict[str, np.ndarray]
    sqnr_db: float
    alpha: float
    clip: float


@dataclass(frozen=True)
class _Trial:
    """One choice of z, s, Sx and k, and the error Y - Y' (rows, outputs) that it leaves."""

    alpha: float
    clip: float
    scale: float
    shift: int
    centre: np.ndarray | None
    smoothing: np.ndarray | None
    difference: np.ndarray

    @property
    def error(self) -> float:
        return float(np.square(self.difference, dtype=np.float64).mean())


def solve_group(
    group: LayerGroup, sample: GroupSample, recipe: Recipe, centre: np.ndarray | None = None
) -> GroupSolution:
    """Choose z, s, Sx and k of one group by the error of its output on the sample's rows.

    Args:
        centre: z, where something else than the mean of X is wanted: attention in INT8 wants the mean of V.
    """
    weights, rows = group.weights(), sample.rows
    weight = np.concatenate(weights, axis=1)
    exact = rows @ weight
    trial = _Search(group, sample, weight, exact, recipe, centre).run()
    error, bias = trial.error, {}
    if recipe.bias_correction:
        mean = trial.difference.mean(axis=0, dtype=np.float64).astype(np.float32)
        ends = np.cumsum([array.shape[1] for array in weights])
        parts = np.split(mean, ends[:-1])
        bias = {layer_name(node): part for node, part in zip(group.products, parts, strict=True)}
        error -= float(np.square(mean, dtype=np.float64).mean())
    sqnr = decibels(float(np.square(exact, dtype=np.float64).mean()), error)
    return GroupSolution(trial.scale, trial.shift, trial.centre, trial.smoothing, bias, sqnr, trial.alpha, trial.clip)


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


class _Search:
    """Tries choices for one group; `exact` is its output without quantisation."""

    def __init__(
        self,
        group: LayerGroup,
        sample: GroupSample,
        weight: np.ndarray,
        exact: np.ndarray,
        recipe: Recipe,
        centre: np.ndarray | None,
    ) -> None:
        self._group, self._sample, self._recipe = group, sample, recipe
        self._rows, self._weight, self._exact = sample.rows, weight, exact
        self._centre: np.ndarray | None = None
        if recipe.smoothing and group.can_centre:
            self._centre = self._rows.mean(axis=0) if centre is None else centre

    def run(self) -> _Trial:
        """The best a at one range, then the best range for it; without `mse` each a has one range anyway."""
        if self._recipe.method != "mse":
            return self._best(trial for alpha in self._alphas() for trial in self._trials(alpha, CLIPS))
        coarse = self._best(trial for alpha in self._alphas() for trial in self._trials(alpha, _MIDDLE))
        return self._best(self._trials(coarse.alpha, CLIPS))

    def _best(self, trials: Iterable[_Trial]) -> _Trial:
        return min(trials, key=lambda trial: trial.error)

    def _alphas(self) -> tuple[float, ...]:
        return ALPHAS if self._recipe.smoothing and self._group.source is not None else (0.0,)

    def _trials(self, alpha: float, clips: tuple[float, ...]) -> Iterator[_Trial]:
        centre = self._centre
        rows = self._rows if centre is None else self._rows - centre
        wanted = self._exact if centre is None else self._exact - centre @ self._weight
        largest, weight = self._sample.extent.largest(0.0 if centre is None else centre), self._weight
        smoothing = smoothing_vector(largest, weight, alpha) if alpha else None
        if smoothing is not None:
            rows, weight, largest = rows / smoothing, weight * smoothing[:, np.newaxis], largest / smoothing
        quantized_weight = fake_quantize(weight, weight_scales(weight))
        top = float(largest.max())
        for clip in clip_shares(self._recipe, rows, top, clips):
            for scale, shift in _steps(self._group, self._sample, self._recipe, clip * top):
                difference = wanted - fake_quantize(rows, scale, shift) @ quantized_weight
                yield _Trial(alpha, clip, scale, shift, centre, smoothing, difference)


def _steps(group: LayerGroup, sample: GroupSample, recipe: Recipe, top: float) -> list[tuple[float, int]]:
    """Sx and k for a range that ends at `top`: symmetric, and for a one-sided activation shifted."""
    steps = [(activation_scale(top / LEVELS), 0)]
    lowest = float(sample.extent.low.min())
    if group.can_shift and recipe.method != "minmax" and -lowest < float(sample.extent.largest().max()) / 4:
        scale = activation_scale((top - lowest) / (2 * LEVELS))
        steps.append((scale, round((top + lowest) / 2 / scale)))
    return steps
