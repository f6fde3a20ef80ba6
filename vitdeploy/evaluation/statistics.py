"""The statistics of a comparison, without SciPy: intervals, tests, percentiles.

With b images that only the baseline gets right and c that only the form gets right, of n:
- top-1 of one form: Wilson's score interval (Wilson 1927).
- change of top-1, (c - b) / n: the adjusted Wald interval for paired proportions of Bonett and Price
  (2012): one is added to b and to c, two to n; it holds its coverage for small counts and for b = c = 0.
- the most that a form may have lost, (b - c) / n, with 95 % confidence (one-sided): Tango's (1998) score bound, which
  holds where nothing was won, and where nothing was lost.
- whether the change is more than chance: McNemar's exact test, a sign test on the b + c discordant images.
- speed-up: the median over rounds of baseline time / form time in that same round, since calls of one round share its
  disturbances; its interval by order statistics, as of the sign test (Thompson 1936), whatever the noise is like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from vitdeploy.models.tasks import SINGLE_LABEL, Task, softmax

__all__ = [
    "Difference",
    "DifferenceInterval",
    "Interval",
    "Milliseconds",
    "Share",
    "calibration_error",
    "drop_bound",
    "mcnemar_exact",
    "median",
    "paired_difference",
    "percentiles",
    "ratio_interval",
    "softmax",
    "speedup",
    "top_scores",
    "wilson",
]

Interval = tuple[float, float]
Milliseconds = Annotated[float, "ms"]
Share = Annotated[float, "0..1"]
Difference = Annotated[float, "-1..1"]  # of two shares
DifferenceInterval = tuple[Difference, Difference]
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


def drop_bound(only_baseline: int, only_form: int, count: int, confidence: float = 0.95) -> float:
    """The share of the same `count` images that a form may have lost at most, with that confidence (Tango 1998)."""
    if count < 1 or only_baseline < 0 or only_form < 0 or only_baseline + only_form > count:
        raise ValueError(f"impossible counts: {only_baseline} and {only_form} of {count}")

    quantile = NormalDist().inv_cdf(confidence)

    def plausible(drop: float) -> bool:
        """Whether so large a drop is not rejected; the share that the form wins is the likeliest under it."""
        b = -only_baseline - only_form + (2 * count - only_baseline + only_form) * drop
        root = math.sqrt(max(0.0, b * b + 8 * count * only_form * drop * (1 - drop)))
        won = (root - b) / (4 * count)
        deviation = math.sqrt(max(0.0, count * (2 * won + drop * (1 - drop))))
        return only_baseline - only_form - count * drop + quantile * deviation > 0

    low, high = (only_baseline - only_form) / count, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if plausible(middle) else (low, middle)
    return high


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


def speedup(baseline_ms: Sequence[float], form_ms: Sequence[float]) -> tuple[float, Interval | None]:
    """How many times as fast as the baseline a form is: ratio and 95 % interval.

    Args:
        baseline_ms: one time per round, in the order of the rounds.
        form_ms: the form's times in the same rounds.
    """
    return ratio_interval(baseline_ms, form_ms)


def ratio_interval(upper: Sequence[float], lower: Sequence[float]) -> tuple[float, Interval | None]:
    """The median of upper / lower, pair by pair, and its 95 % interval, from one of the ratios to another.

    With fewer than 6 pairs there is none: all of 5 lie on one side of the median in one of 16 cases.
    """
    if len(upper) != len(lower) or not len(upper):
        raise ValueError(f"needs the same rounds of both, got {len(upper)} and {len(lower)}")
    ratios = np.sort(np.asarray(upper, dtype=np.float64) / np.asarray(lower, dtype=np.float64))
    # As many ratios are cut off at each end as lie beyond the median there by chance in at most 2.5 % of cases.
    count, tail, cut = len(ratios), 0.0, 0
    while (tail := tail + math.comb(count, cut) / 2**count) <= 0.025:
        cut += 1
    middle = float(np.median(ratios))
    return middle, (float(ratios[cut - 1]), float(ratios[count - cut])) if cut else None


def median(values: Sequence[float]) -> float:
    """The middle of the values."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def percentiles(samples_ms: Sequence[float]) -> dict[str, Any]:
    """p50, p90, p95, p99, min and mean of kept samples (linear interpolation between neighbours).

    A percentile beyond which fewer than two samples lie would be the slowest call and no percentile: it is None. So
    p90 needs 20 samples, p95 40 and p99 200.
    """
    values = np.asarray(samples_ms, dtype=np.float64)
    named: dict[str, Any] = {"p50": float(np.percentile(values, 50))}
    for percent in (90, 95, 99):
        enough = len(values) * (100 - percent) >= 200
        named[f"p{percent}"] = float(np.percentile(values, percent)) if enough else None
    return {**named, "min": float(values.min()), "mean": float(values.mean())}


def top_scores(logits: npt.NDArray[np.float32], task: Task = SINGLE_LABEL) -> npt.NDArray[np.float64]:
    """The score of the best class, (images,), of logits (images, classes): how sure a form of that task is."""
    scores = task.scores(logits)
    assert scores is not None, "where one class is right, each has a score"
    highest: npt.NDArray[np.float64] = scores.max(axis=1)
    return highest


def calibration_error(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], task: Task = SINGLE_LABEL, bins: int = 15
) -> float:
    """Expected calibration error of the top class (Guo et al. 2017): mean |confidence - accuracy| over equal bins.

    Args:
        task: says what makes scores of logits; the confidence is the highest.
    """
    confidence = top_scores(logits, task)
    correct = logits.argmax(axis=1) == labels
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    total = 0.0
    for index in range(bins):
        inside = which == index
        if inside.any():
            total += abs(float(confidence[inside].mean()) - float(correct[inside].mean())) * int(inside.sum())
    return total / len(labels)
