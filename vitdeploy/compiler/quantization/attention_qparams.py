"""Q, K and V of some heads -> the four scales of attention's products in INT8, by the error of what attention gives.

The error of a channel of O counts as much as the output projection makes of it: the norm of its row of Wo. Scales of Q
and K (and b and c, which move ranges: see `attention`) are chosen first, then those of P and V on top of them.

P is the coarse one: its 127 steps are as wide as most probabilities, and put ten times the noise on O that Q, K and V
do. The CPU form, whose left operand is unsigned, has 255 steps for it: a scale of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from vitdeploy.compiler.quantization.arithmetic import E4M3, INT8, LEVELS, Numbers, activation_scale, fake_quantize
from vitdeploy.compiler.quantization.groups import matrix_of
from vitdeploy.compiler.quantization.observers import AttentionSample
from vitdeploy.compiler.quantization.qparams import GroupQParams, balance, decibels
from vitdeploy.compiler.quantization.ranges import clip_shares
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.evaluation.statistics import softmax

__all__ = ["AttentionQParams", "choose_attention_qparams"]

_BALANCES = (0.0, 0.3, 0.5, 0.7)
_CLIPS = (1.0, 0.85, 0.7, 0.55, 0.4)
_PROBABILITY_CLIPS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.42, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)
_UNSIGNED = 2 * LEVELS + 1


@dataclass(frozen=True)
class AttentionQParams:
    """The four scales of one layer's attention products, and vectors over the channels (None: off).

    `balance` is what Q is divided by and K multiplied with, `centre` what is taken off K; `bias` is O's mean error,
    which goes through the output projection into its bias. `unsigned` and `unsigned_bias` stand for `probability` and
    `bias` where P has 255 steps, as in the form for CPUs; None: it has the integers of the other form.
    """

    query: float
    key: float
    value: float
    probability: float
    balance: np.ndarray | None
    centre: np.ndarray | None
    bias: np.ndarray | None
    unsigned: float | None
    unsigned_bias: np.ndarray | None
    sqnr_db: float


class _Layer:
    """One layer's sample, V as the output projection's smoothing makes it: (V - z) / s; K less its middle."""

    def __init__(self, sample: AttentionSample, recipe: Recipe, output: GroupQParams | None, numbers: Numbers) -> None:
        self.numbers = numbers
        self.query, self.key, value = sample.tensors
        self.head = sample.head
        queries, keys, values = sample.extents
        shape, flat = values.high.shape, values.high.size
        ones, zeros = np.ones(flat, dtype=np.float32), np.zeros(flat, dtype=np.float32)
        smooth = None if output is None else output.smoothing
        middle = None if output is None else output.centre
        self.smooth = (ones if smooth is None else smooth).reshape(shape)
        value_centre = (zeros if middle is None else middle).reshape(shape)
        self.value = (value - value_centre[self.head][:, np.newaxis]) / self.smooth[self.head][:, np.newaxis]
        self.key_centre = np.zeros(shape, dtype=np.float32)
        if recipe.smoothing and sample.products.key_source is not None:
            self.key_centre = (keys.high + keys.low) / 2
        self.key = self.key - self.key_centre[self.head][:, np.newaxis]
        self.largest = (queries.largest(), keys.largest(self.key_centre), values.largest(value_centre) / self.smooth)
        projection = sample.products.output
        norms = ones if projection is None else np.linalg.norm(matrix_of(projection), axis=1)
        self.weights = (norms.reshape(shape) * self.smooth)[self.head][:, np.newaxis]
        self.probability = softmax(self.query @ self.key.transpose(0, 2, 1), np.float32)
        self.exact = self.probability @ self.value
        self.signal = self.error_of(np.zeros_like(self.exact))

    def error_of(self, output: np.ndarray) -> float:
        """Mean squared error of O (heads kept, tokens, head_dim), each channel by its weight in the projection."""
        return float(np.square((self.exact - output) * self.weights, dtype=np.float64).mean())


def _scales(
    recipe: Recipe, values: np.ndarray, top: float, candidates: tuple[float, ...], levels: float
) -> list[float]:
    return [activation_scale(share * top / levels) for share in clip_shares(recipe, values, top, candidates)]


def choose_attention_qparams(
    sample: AttentionSample, recipe: Recipe, output: GroupQParams | None, numbers: Numbers = INT8
) -> AttentionQParams:
    """Choose the scales of one layer's attention products.

    Args:
        output: what was found for the output projection, where its z and s change V; else None.
        numbers: what is rounded to. In FP8 P's step is 1/448, which TensorRT's fused kernel has inside.
    """
    layer = _Layer(sample, recipe, output, numbers)
    query, key, vector, probability = _score_qparams(layer, recipe, sample.products.can_balance)
    corrects = recipe.bias_correction and sample.products.output is not None
    top = numbers.top
    steps = _scales(recipe, probability, 1.0, _PROBABILITY_CLIPS if numbers.even else (1.0,), top)
    values = _scales(recipe, layer.value, float(layer.largest[2].max()), _CLIPS, top)
    signed = min((_mix(layer, probability, *scales, 0, corrects) for scales in product(steps, values)), key=_error)
    quality, centre = (
        decibels(layer.signal, signed.error),
        layer.key_centre.reshape(-1) if layer.key_centre.any() else None,
    )
    if numbers is E4M3:
        return AttentionQParams(
            query, key, signed.value, signed.probability, vector, centre, signed.bias, None, None, quality
        )
    steps = _scales(recipe, probability, 1.0, _PROBABILITY_CLIPS, _UNSIGNED)
    unsigned = min((_mix(layer, probability, step, signed.value, LEVELS + 1, corrects) for step in steps), key=_error)
    return AttentionQParams(
        query,
        key,
        signed.value,
        signed.probability,
        vector,
        centre,
        signed.bias,
        unsigned.probability,
        unsigned.bias,
        quality,
    )


@dataclass(frozen=True)
class _Mixture:
    """Scales of P and V, O's mean error per channel of V as it is outside (None: not taken out), and what is left."""

    probability: float
    value: float
    bias: np.ndarray | None
    error: float


def _error(mixture: _Mixture) -> float:
    return mixture.error


def _mix(
    layer: _Layer, probability: np.ndarray, scale: float, value_scale: float, shift: int, corrects: bool
) -> _Mixture:
    """What O is with P and V in INT8; `shift` as in `fake_quantize`, for P."""
    numbers = layer.numbers
    output = fake_quantize(probability, scale, shift, numbers) @ fake_quantize(layer.value, value_scale, 0, numbers)
    if not corrects:
        return _Mixture(scale, value_scale, None, layer.error_of(output))
    mean = _mean_error(layer, output)
    error = layer.error_of(output + mean[layer.head][:, np.newaxis])
    return _Mixture(scale, value_scale, (mean * layer.smooth).reshape(-1), error)


def _score_qparams(
    layer: _Layer, recipe: Recipe, can_balance: bool
) -> tuple[float, float, np.ndarray | None, np.ndarray]:
    """Scales of Q and K, b, and the probabilities that they give; P and V are exact here."""
    numbers = layer.numbers
    best: tuple[float, float, float, np.ndarray | None, np.ndarray] | None = None
    for alpha in _BALANCES if recipe.smoothing and can_balance else (0.0,):
        vector = balance(layer.largest[0].reshape(-1), layer.largest[1].reshape(-1), alpha) if alpha else None
        heads = np.ones_like(layer.smooth) if vector is None else vector.reshape(layer.smooth.shape)
        query, key = layer.query / heads[layer.head][:, np.newaxis], layer.key * heads[layer.head][:, np.newaxis]
        tops = float((layer.largest[0] / heads).max()), float((layer.largest[1] * heads).max())
        pairs = product(
            _scales(recipe, query, tops[0], _CLIPS, numbers.top), _scales(recipe, key, tops[1], _CLIPS, numbers.top)
        )
        for scales in pairs:
            keys = fake_quantize(key, scales[1], 0, numbers)
            scores = fake_quantize(query, scales[0], 0, numbers) @ keys.transpose(0, 2, 1)
            probability = softmax(scores, np.float32)
            error = layer.error_of(probability @ layer.value)
            if best is None or error < best[0]:
                best = (error, *scales, vector, probability)
    assert best is not None, "there is always one to try"
    return best[1:]


def _mean_error(layer: _Layer, output: np.ndarray) -> np.ndarray:
    """The error that is constant over tokens and pictures, (heads, head_dim); zero for heads that were not kept."""
    mean: np.ndarray = np.zeros_like(layer.smooth)
    difference = layer.exact - output
    for head in np.unique(layer.head):
        mean[head] = difference[layer.head == head].mean(axis=(0, 1), dtype=np.float64)
    return mean
