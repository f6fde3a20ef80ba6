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

a is searched per layer, then c. z and s cost nothing at run time: they go into what makes X (see `layers`). FP8 has the
same with 448 in the place of 127, its own rounding (of weights: `rounding`), and no k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from vitdeploy.compiler.quantization.arithmetic import INT8, Numbers, activation_scale, fake_quantize, weight_scales
from vitdeploy.compiler.quantization.groups import QuantGroup, layer_name
from vitdeploy.compiler.quantization.observers import GroupSample
from vitdeploy.compiler.quantization.ranges import CLIPS, clip_shares
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.rounding import Steps, adaptive_steps, stepped
from vitdeploy.compiler.quantization.schemes import FP8

__all__ = ["GroupQParams", "choose_qparams", "decibels", "rounds_adaptively", "smoothing_vector"]

ALPHAS = (0.0, 0.4, 0.55, 0.7, 0.85)
_MIDDLE = (0.85,)  # the range at which a is searched


@dataclass(frozen=True)
class GroupQParams:
    """What is chosen for one group of layers.

    `scale` is Sx, `shift` is k, `centre` and `smoothing` are z and s per channel (None: off), `bias` is the correction
    of each layer per output channel, `steps` how the weights of each are rounded (none: to the nearest), and `sqnr_db`
    the signal-to-noise ratio of the group's output on the sample, 10 log10(|Y|^2 / |Y - Y'|^2).
    """

    scale: float
    shift: int
    centre: np.ndarray | None
    smoothing: np.ndarray | None
    bias: dict[str, np.ndarray]
    sqnr_db: float
    alpha: float
    clip: float
    steps: dict[str, Steps] = field(default_factory=dict)


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


def choose_qparams(
    group: QuantGroup,
    sample: GroupSample,
    recipe: Recipe,
    centre: np.ndarray | None = None,
    numbers: Numbers = INT8,
) -> GroupQParams:
    """Choose z, s, Sx and k of one group by the error of its output on the sample's rows.

    Args:
        centre: z, where something else than the mean of X is wanted: attention in INT8 wants the mean of V.
        numbers: what is rounded to.
    """
    weights, rows = group.weights(), sample.rows
    weight = np.concatenate(weights, axis=1)
    exact = rows @ weight
    ends = np.cumsum([array.shape[1] for array in weights])[:-1]

    def by_layer(columns: np.ndarray) -> dict[str, np.ndarray]:
        parts = np.split(columns, ends, axis=-1)
        return {layer_name(node): part for node, part in zip(group.products, parts, strict=True)}

    search = _Search(group, sample, weight, exact, recipe, centre, numbers)
    trial, steps, bias = search.run(), {}, {}
    if rounds_adaptively(recipe, numbers):
        trial, found = search.rounded(trial)
        steps = by_layer(found)
    error = trial.error
    if recipe.bias_correction:
        mean = trial.difference.mean(axis=0, dtype=np.float64).astype(np.float32)
        bias = by_layer(mean)
        error -= float(np.square(mean, dtype=np.float64).mean())
    sqnr = decibels(float(np.square(exact, dtype=np.float64).mean()), error)
    return GroupQParams(
        trial.scale, trial.shift, trial.centre, trial.smoothing, bias, sqnr, trial.alpha, trial.clip, steps
    )


def rounds_adaptively(recipe: Recipe, numbers: Numbers) -> bool:
    """Whether weights are rounded by the error of the layer's output: `rounding` says why FP8's alone."""
    return recipe.adaptive_rounding and not numbers.even


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
        group: QuantGroup,
        sample: GroupSample,
        weight: np.ndarray,
        exact: np.ndarray,
        recipe: Recipe,
        centre: np.ndarray | None,
        numbers: Numbers,
    ) -> None:
        self._numbers = numbers
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
        numbers, centre = self._numbers, self._centre
        largest = self._sample.extent.largest(0.0 if centre is None else centre)
        smoothing = smoothing_vector(largest, self._weight, alpha) if alpha else None
        rows, wanted, weight = self._prepared(smoothing)
        quantized_weight = fake_quantize(weight, weight_scales(weight, numbers), numbers=numbers)
        top = float((largest if smoothing is None else largest / smoothing).max())
        for clip in clip_shares(self._recipe, rows, top, clips):
            for scale, shift in _steps(self._group, self._sample, self._recipe, clip * top, numbers):
                difference = wanted - fake_quantize(rows, scale, shift, numbers) @ quantized_weight
                yield _Trial(alpha, clip, scale, shift, centre, smoothing, difference)

    def rounded(self, trial: _Trial) -> tuple[_Trial, Steps]:
        """The same choice with weights that are rounded for the sake of the output, and how they are."""
        rows, wanted, weight = self._prepared(trial.smoothing)
        scales = weight_scales(weight, self._numbers)
        steps = adaptive_steps(weight, scales, self._sample.moments(trial.centre, trial.smoothing))
        quantized_weight = stepped(FP8.store(weight, scales), steps).astype(np.float32) * scales
        found = fake_quantize(rows, trial.scale, trial.shift, self._numbers) @ quantized_weight
        return replace(trial, difference=wanted - found), steps

    def _prepared(self, smoothing: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(X - z) / s, what its products should give, and s W."""
        centre = self._centre
        rows = self._rows if centre is None else self._rows - centre
        wanted = self._exact if centre is None else self._exact - centre @ self._weight
        if smoothing is None:
            return rows, wanted, self._weight
        return rows / smoothing, wanted, self._weight * smoothing[:, np.newaxis]


def _steps(
    group: QuantGroup, sample: GroupSample, recipe: Recipe, top: float, numbers: Numbers
) -> list[tuple[float, int]]:
    """Sx and k for a range that ends at `top`: symmetric, and for a one-sided activation shifted."""
    steps = [(activation_scale(top / numbers.top), 0)]
    lowest = float(sample.extent.low.min())
    if (
        numbers.even
        and group.can_shift
        and recipe.method != "minmax"
        and -lowest < float(sample.extent.largest().max()) / 4
    ):
        scale = activation_scale((top - lowest) / (2 * numbers.top))
        steps.append((scale, round((top + lowest) / 2 / scale)))
    return steps
