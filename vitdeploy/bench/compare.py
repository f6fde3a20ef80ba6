"""Two reports: what changed from one to the other, and whether it is more than noise.

- Times: the ratio after / before of a percentile, with a percentile bootstrap that resamples whole rounds in each run.
  That interval knows only the noise inside a run. So a change counts as more than noise when the interval leaves out 1
  and the change is larger than a floor: 2 %, 5 % where a run calls that form noisy, and whatever the baseline itself
  moved where its file, its packages and the threads are the same in both, for nothing about it has changed.
- Accuracy on the same images: paired, by the bits that each report keeps (Bonett and Price's interval, as in
  `statistics`). On other images: Newcombe's (1998) interval for two independent proportions, from Wilson's.
- Sizes are exact. Memory counts from 3 % on. Cold start is one sample: what is noise is not known (None).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.bench.accuracy import Accuracy
from vitdeploy.bench.changes import unpacked
from vitdeploy.bench.report import BenchReport, Latency, Row
from vitdeploy.bench.statistics import Interval, paired_difference, wilson

__all__ = ["METRICS", "SHARES", "Change", "Comparison", "RowComparison", "compare"]

_TIMES: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    "p50": lambda samples: np.percentile(samples, 50, axis=1),
    "p90": lambda samples: np.percentile(samples, 90, axis=1),
    "p95": lambda samples: np.percentile(samples, 95, axis=1),
    "p99": lambda samples: np.percentile(samples, 99, axis=1),
    "min": lambda samples: samples.min(axis=1),
    "mean": lambda samples: samples.mean(axis=1),
}
SHARES = ("top1", "top5", "agreement", "calibration_error")
METRICS = (*_TIMES, "throughput", "speedup", "drop", *SHARES, "size", "memory", "cold_start")
_FLOOR, _NOISY_FLOOR, _MEMORY_FLOOR = 0.02, 0.05, 0.03
_RESAMPLES = 1000


@dataclass(frozen=True)
class Change:
    """One number in both runs.

    `amount` is after / before, and for shares and `drop` after - before; `ci95` its interval where there is one.
    `beyond_noise`: whether it is more than noise; None where that can't be told.
    """

    metric: str
    before: float
    after: float
    amount: float
    ci95: Interval | None
    beyond_noise: bool | None
    batch_size: int | None = None
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class RowComparison:
    """One form in both runs; a status is None where a run has no such row."""

    key: str
    before: Row | None
    after: Row | None
    changes: tuple[Change, ...]

    def find(self, metric: str, batch_size: int | None = None) -> Change | None:
        """The change of a metric: the first, or the one at a batch size."""
        found = (c for c in self.changes if c.metric == metric and batch_size in (None, c.batch_size))
        return next(found, None)


@dataclass(frozen=True)
class Comparison:
    """What changed between two reports, and what to bear in mind."""

    before: BenchReport
    after: BenchReport
    rows: tuple[RowComparison, ...]
    notes: tuple[str, ...]
    drift: float | None  # of the baseline's p50, after / before, where nothing about it changed


def compare(before: BenchReport, after: BenchReport) -> Comparison:
    """Compare two reports row by row."""
    old, new = ({row.key: row for row in report.rows} for report in (before, after))
    keys = list(dict.fromkeys([*old, *new]))
    same_images = before.dataset.get("fingerprint") == after.dataset.get("fingerprint")
    drift = _drift(before, after)
    rows = []
    for key in keys:
        first, second = old.get(key), new.get(key)
        changes: list[Change] = []
        if first is not None and second is not None:
            moved = None if key == after.baseline.get("key") else drift
            changes = [*_times(first, second, moved), *_accuracy(first, second, same_images), *_rest(first, second)]
        rows.append(RowComparison(key, first, second, tuple(changes)))
    return Comparison(before, after, tuple(rows), tuple(_notes(before, after, drift)), drift)


def _drift(before: BenchReport, after: BenchReport) -> float | None:
    """How the baseline moved, if nothing about it changed."""
    first, second = before.base, after.base
    if first is None or second is None or first.key != second.key or not (first.latency and second.latency):
        return None
    packages = ("torch", "transformers", "torchvision", "numpy", "pillow", "onnxruntime", "openvino")
    same = (
        first.artifact == second.artifact
        and _same_point(first.latency, second.latency)
        and before.settings.get("threads") == after.settings.get("threads")
        and all(before.versions.get(name) == after.versions.get(name) for name in packages)
    )
    return second.latency.p50 / first.latency.p50 if same else None


def _notes(before: BenchReport, after: BenchReport, drift: float | None) -> list[str]:
    notes = []
    for name, words in (("cpu", "processor"), ("cores", "number of cores"), ("gpu", "GPU")):
        if before.machine.get(name) != after.machine.get(name):
            notes.append(f"the {words} differs: times of two machines say little about the forms")
    if before.settings.get("threads") != after.settings.get("threads"):
        notes.append(f"threads differ: {before.settings.get('threads')} and {after.settings.get('threads')}")
    changed = [
        f"{name} {before.versions.get(name, 'none')} → {after.versions.get(name, 'none')}"
        for name in sorted({*before.versions, *after.versions})
        if before.versions.get(name) != after.versions.get(name)
    ]
    if changed:
        notes.append(f"versions differ: {', '.join(changed)}")
    if before.dataset.get("fingerprint") != after.dataset.get("fingerprint"):
        notes.append("the images differ, so accuracy is compared as of two independent samples")
    if drift is not None and abs(drift - 1) > _FLOOR:
        notes.append(
            f"the baseline, about which nothing changed, became {abs(drift - 1):.0%}"
            f" {'slower' if drift > 1 else 'faster'}: the machine is not what it was, and as much counts as noise"
        )
    notes += [f"the {name} run is partial" for name, report in (("first", before), ("second", after)) if report.partial]
    notes += [f"the {name} run is noisy" for name, report in (("first", before), ("second", after)) if report.noisy]
    return notes


def _times(first: Row, second: Row, drift: float | None) -> list[Change]:
    changes = []
    for one in first.latencies:
        other = next((item for item in second.latencies if _same_point(one, item)), None)
        if other is None:
            continue
        floor = max(_NOISY_FLOOR if one.noise or other.noise else _FLOOR, abs((drift or 1.0) - 1))
        place = (one.batch_size, one.image_size)
        resampled = _resampled(one, 0), _resampled(other, 1)
        for name, percentile in _TIMES.items():
            amount = getattr(other, name) / getattr(one, name)
            low, high = np.percentile(percentile(resampled[1]) / percentile(resampled[0]), [2.5, 97.5])
            interval = float(low), float(high)
            beyond = _leaves_out(interval, 1.0) and abs(amount - 1) > floor
            changes.append(Change(name, getattr(one, name), getattr(other, name), amount, interval, beyond, *place))
            if name == "mean":
                inverse = (1 / interval[1], 1 / interval[0])
                rates = one.images_per_s, other.images_per_s
                changes.append(Change("throughput", *rates, 1 / amount, inverse, beyond, *place))
        if one.speedup and other.speedup and one.speedup_ci95 and other.speedup_ci95:
            interval = _ratio_of(one.speedup_ci95, other.speedup_ci95, other.speedup / one.speedup)
            beyond = _leaves_out(interval, 1.0) and abs(other.speedup / one.speedup - 1) > _FLOOR
            amount = other.speedup / one.speedup
            changes.append(Change("speedup", one.speedup, other.speedup, amount, interval, beyond, *place))
    return changes


def _same_point(one: Latency, other: Latency) -> bool:
    return (one.batch_size, one.image_size) == (other.batch_size, other.image_size)


def _resampled(latency: Latency, seed: int) -> npt.NDArray[np.float64]:
    """Bootstrap samples (resamples, kept calls), drawn by whole rounds."""
    calls = latency.calls_per_round
    rounds = np.asarray(latency.samples, dtype=np.float64)
    rounds = rounds[: len(rounds) // calls * calls].reshape(-1, calls)  # (rounds, calls of a round)
    picks = np.random.default_rng(seed).integers(0, len(rounds), size=(_RESAMPLES, len(rounds)))
    return rounds[picks].reshape(_RESAMPLES, -1)


def _ratio_of(before: Interval, after: Interval, ratio: float) -> Interval:
    """The interval of a ratio of two ratios, from their intervals, on a logarithmic scale."""
    half = [math.log(max(high, 1e-9) / max(low, 1e-9)) / 2 for low, high in (before, after)]
    spread = math.hypot(*half)
    return ratio * math.exp(-spread), ratio * math.exp(spread)


def _accuracy(first: Row, second: Row, same_images: bool) -> list[Change]:
    one, other = first.accuracy, second.accuracy
    if one is None or other is None:
        return []
    amount, interval = _top1(one, other, same_images)
    changes = [Change("top1", one.top1, other.top1, amount, interval, _leaves_out(interval, 0.0))]
    for name in SHARES[1:]:
        a, b = getattr(one, name), getattr(other, name)
        if a is not None and b is not None:
            changes.append(Change(name, a, b, b - a, None, None if a != b else False))
    if one.delta is not None and other.delta is not None:
        drops = -100 * one.delta, -100 * other.delta
        changes.append(Change("drop", *drops, drops[1] - drops[0], None, None if drops[0] != drops[1] else False))
    return changes


def _top1(one: Accuracy, other: Accuracy, same_images: bool) -> tuple[float, Interval]:
    """The change of top-1 between two runs, and its interval."""
    if same_images and one.correct and other.correct and one.count == other.count:
        right, now = unpacked(one.correct, one.count), unpacked(other.correct, other.count)
        return paired_difference(int((right & ~now).sum()), int((now & ~right).sum()), one.count)
    amount = other.top1 - one.top1
    (low1, high1), (low2, high2) = (wilson(round(item.top1 * item.count), item.count) for item in (one, other))
    below = math.hypot(other.top1 - low2, high1 - one.top1)
    above = math.hypot(high2 - other.top1, one.top1 - low1)
    return amount, (amount - below, amount + above)


def _rest(first: Row, second: Row) -> list[Change]:
    changes = []
    if first.size_bytes and second.size_bytes:
        sizes = float(first.size_bytes), float(second.size_bytes)
        changes.append(Change("size", *sizes, sizes[1] / sizes[0], None, sizes[0] != sizes[1]))
    memory = [row.memory.total_bytes if row.memory else None for row in (first, second)]
    if memory[0] and memory[1]:
        ratio = memory[1] / memory[0]
        beyond = abs(ratio - 1) > _MEMORY_FLOOR
        changes.append(Change("memory", float(memory[0]), float(memory[1]), ratio, None, beyond))
    if first.cold_start_ms and second.cold_start_ms:
        starts = first.cold_start_ms, second.cold_start_ms
        changes.append(Change("cold_start", *starts, starts[1] / starts[0], None, None))
    return changes


def _leaves_out(interval: Interval, value: float) -> bool:
    return not interval[0] <= value <= interval[1]
