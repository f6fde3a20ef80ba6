"""The statistics of a comparison, without SciPy: intervals, tests, bootstrap, percentiles.

With b images that only the baseline gets right and c that only the form gets right, of n:
- top-1 of one form: Wilson's score interval (Wilson 1927).
- change of top-1, (c - b) / n: the adjusted Wald interval for paired proportions of Bonett and Price
  (2012): one is added to b and to c, two to n; it holds its coverage for small counts and for b = c = 0.
- whether the change is more than chance: McNemar's exact test, a sign test on the b + c discordant images.
- speed-up: the median over rounds of baseline time / form time in that same round, with a percentile
  bootstrap (Efron 1979) that resamples whole rounds, since calls of one round share its disturbances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "Interval",
    "calibration_error",
    "mcnemar_exact",
    "median",
    "paired_difference",
    "percentiles",
    "ratio_interval",
    "softmax",
    "speedup",
    "wilson",
]

Interval = tuple[float, float]
_Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson(successes: int, count: int) -> Interval:
    """95 % interval of a proportion, both ends in 0..1."""
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"needs 0 <= successes <= count and count >= 1, got {successes} of {count}")
    p = successes / count
    scale = 1 + _Z95**2 / count
    centre = (p + _Z95**2 / (2 * count)) / scale
    half = _Z95 * math.sqrt(p * (1 - p) / count + _Z95**2 / (4 * count**2)) / scale
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == count else min(1.0, centre + half)
    return low, high


def paired_difference(only_baseline: int, only_form: int, count: int) -> tuple[float, Interval]:
    """The change (form minus baseline) of a proportion on the same `count` images, and its 95 % interval."""
    if count < 1 or only_baseline < 0 or only_form < 0 or only_baseline + only_form > count:
        raise ValueError(f"impossible counts: {only_baseline} and {only_form} of {count}")
    lost, won = (only_baseline + 1) / (count + 2), (only_form + 1) / (count + 2)
    centre = won - lost
    half = _Z95 * math.sqrt((won + lost - centre**2) / (count + 2))
    return (only_form - only_baseline) / count, (max(-1.0, centre - half), min(1.0, centre + half))


def mcnemar_exact(only_baseline: int, only_form: int) -> float:
    """Two-sided p-value that a change this uneven comes from chance alone; exact for any counts."""
    discordant = only_baseline + only_form
    if discordant == 0:
        return 1.0
    tail, term = 0, 1  # term is the binomial coefficient (discordant over k)
    for k in range(min(only_baseline, only_form) + 1):
        tail += term
        term = term * (discordant - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << discordant))


def speedup(
    baseline_ms: Sequence[float], form_ms: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, Interval]:
    """How many times as fast as the baseline a form is: ratio and 95 % interval.

    Args:
        baseline_ms: one time per round, in the order of the rounds.
        form_ms: the form's times in the same rounds.
    """
    return ratio_interval(baseline_ms, form_ms, resamples=resamples, seed=seed)


def ratio_interval(
    upper: Sequence[float], lower: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, Interval]:
    """The median of upper / lower, pair by pair, and its 95 % interval by a percentile bootstrap over the pairs."""
    if len(upper) != len(lower) or not len(upper):
        raise ValueError(f"needs the same rounds of both, got {len(upper)} and {len(lower)}")
    ratios = np.asarray(upper, dtype=np.float64) / np.asarray(lower, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(ratios), size=(resamples, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), (float(low), float(high))


def median(values: Sequence[float]) -> float:
    """The middle of the values."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def percentiles(samples_ms: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99, min and mean of kept samples (linear interpolation between neighbours)."""
    values = np.asarray(samples_ms, dtype=np.float64)
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99])
    named = {"p50": p50, "p90": p90, "p95": p95, "p99": p99, "min": values.min(), "mean": values.mean()}
    return {name: float(value) for name, value in named.items()}


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def calibration_error(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], bins: int = 15) -> float:
    """Expected calibration error of the top class (Guo et al. 2017): mean |confidence - accuracy| over equal bins."""
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    total = 0.0
    for index in range(bins):
        inside = which == index
        if inside.any():
            total += abs(float(confidence[inside].mean()) - float(correct[inside].mean())) * int(inside.sum())
    return total / len(labels)
