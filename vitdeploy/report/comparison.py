"""Reports before and after: what changed, whether it is more than noise, and whether that can be told.

- Times: the change of a percentile relative to the baseline of the same report, so that a machine that became slower
  cancels. Its interval holds the noise inside a run (a bootstrap that resamples whole rounds, of form and baseline
  together) and what differs between runs of one file on one machine (memory layout, frequency): a standard deviation
  of `BETWEEN_RUNS`, or what several reports of a side show if that is more. Forms whose baseline is not the same on
  both sides have nothing that cancels: there it is `BETWEEN_MACHINE_STATES`. A baseline about which nothing changed
  shows how the machine moved, and that is noise.
- Nothing is said of times where a machine was busy, where the baseline moved by more than `MOST_DRIFT`, or of two
  machines: another processor is not as much faster or slower with every form.
- Accuracy on the same images: paired, by the bits that each report keeps (Bonett and Price's interval, as in
  `statistics`). On other images: Newcombe's (1998) interval for two independent proportions, from Wilson's.
- What embeddings keep, and mAP, F1 and exact match of several labels: a report has their intervals but not what each
  image adds, so they are compared as if of two independent samples (Zou and Donner 2008, which is Newcombe's way with
  any intervals). On the same images that interval is too wide rather than too narrow.
- Sizes are exact. Memory counts from 3 % on. Cold start is one sample: what is noise is not known (None).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.registry import known
from vitdeploy.core.errors import InputError
from vitdeploy.evaluation.accuracy import Accuracy
from vitdeploy.evaluation.changes import unpacked
from vitdeploy.evaluation.multi_label import MultiLabelAccuracy
from vitdeploy.evaluation.statistics import Interval, paired_difference, wilson
from vitdeploy.evaluation.vectors import Kept, Neighbours
from vitdeploy.report.records import BenchReport, Latency, Row, Samples

__all__ = ["METRICS", "SHARES", "Change", "Comparison", "RowComparison", "compare"]

_Statistic = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]  # of samples, over the last axis
_TIMES: dict[str, _Statistic] = {
    "p50": lambda samples: np.percentile(samples, 50, axis=-1),
    "p90": lambda samples: np.percentile(samples, 90, axis=-1),
    "p95": lambda samples: np.percentile(samples, 95, axis=-1),
    "p99": lambda samples: np.percentile(samples, 99, axis=-1),
}  # no minimum and no mean: of so few calls they follow a single one, and their intervals held too seldom
_SEVERAL_LABELS = {"map": "mean_average_precision", "f1": "f1_micro", "exact_match": "exact_match"}
_OF_K_NEAREST = ("recall", "queries", "index")
_VECTORS = ("cosine", "cosine_p1", "neighbour", *_OF_K_NEAREST)
SHARES = ("top1", "top5", "agreement", "calibration_error", *_SEVERAL_LABELS, *_VECTORS, "knn")
RATIOS = (*_TIMES, "throughput", "speedup")
METRICS = (*RATIOS, "drop", *SHARES, "size", "memory", "cold_start")
BETWEEN_RUNS = 0.03  # standard deviation, on a logarithmic scale, of a form's time relative to the baseline's
BETWEEN_MACHINE_STATES = 0.17  # the same of a time alone
MOST_DRIFT = 0.25  # of the baseline, beyond which the machine was another one
_MEMORY_FLOOR = 0.03
_RESAMPLES = 400  # enough for a standard deviation
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Change:
    """One number on both sides; of several reports the geometric mean.

    `amount` is after / before, of times relative to the baseline's, and for shares and `drop` after - before; `ci95`
    is its interval where there is one. `beyond_noise`: whether it is more than noise; None where that can't be told.
    `inconclusive` says why nothing can be said of it. `count` is the number of images that an accuracy is from,
    `own_ci95` the interval of `after` alone.
    """

    metric: str
    before: float
    after: float
    amount: float
    ci95: Interval | None
    beyond_noise: bool | None
    batch_size: int | None = None
    image_size: tuple[int, int] | None = None
    inconclusive: str | None = None
    count: int | None = None
    own_ci95: Interval | None = None


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
    """What changed between two sides, each of one report or several, and what to bear in mind."""

    before: tuple[BenchReport, ...]
    after: tuple[BenchReport, ...]
    rows: tuple[RowComparison, ...]
    notes: tuple[str, ...]
    drift: float | None  # of the baseline's p50, after / before, where nothing about it changed
    machines: str | None = None  # why times of the two sides can't be compared: they are of two machines

    def __repr__(self) -> str:
        return f"<Comparison: {', '.join(row.key for row in self.rows)}>"


def compare(before: BenchReport | Sequence[BenchReport], after: BenchReport | Sequence[BenchReport]) -> Comparison:
    """Compare reports row by row; several of a side tell what differs between runs.

    Raises:
        InputError: a side is empty, has a report twice, or its reports are of different files or images.
    """
    sides = _side(before, "before"), _side(after, "after")
    old, new = ({row.key: row for row in side[0].rows} for side in sides)
    keys = list(dict.fromkeys([*old, *new]))
    same_images = sides[0][0].dataset.get("fingerprint") == sides[1][0].dataset.get("fingerprint")
    drift, machines = _drift(*sides), _two_machines(*sides)
    rows = []
    for key in keys:
        first, second = old.get(key), new.get(key)
        changes: list[Change] = []
        if first is not None and second is not None:
            kept = [*_accuracy(first, second, same_images), *_several_labels(first, second), *_vectors(first, second)]
            changes = [*_times(key, *sides, drift, machines), *kept, *_rest(first, second, machines)]
        rows.append(RowComparison(key, first, second, tuple(changes)))
    return Comparison(*sides, tuple(rows), tuple(_notes(*sides, drift)), drift, machines)


_Side = tuple[BenchReport, ...]


def _side(reports: BenchReport | Sequence[BenchReport], name: str) -> _Side:
    side = (reports,) if isinstance(reports, BenchReport) else tuple(reports)
    if not side:
        raise InputError(f"there is no report {name}", hint="vitdeploy compare BEFORE.json AFTER.json")
    if any(one.rows == other.rows for place, one in enumerate(side) for other in side[:place]):
        raise InputError(
            f"a report {name} is there twice", hint="measure again: a copy tells nothing of how runs differ"
        )
    seen = [({row.key: row.artifact for row in one.rows}, one.dataset.get("fingerprint")) for one in side]
    if any(other != seen[0] for other in seen[1:]):
        raise InputError(
            f"the reports {name} are not of the same files and images",
            hint="name reports of one bundle on one side, measured several times",
        )
    return side


def _drift(before: _Side, after: _Side) -> float | None:
    """How the baseline moved, if nothing about it changed."""
    pairs = [
        _same_times(one.base.latency, other.base.latency)
        for one in before
        for other in after
        if _same_baseline(one, other) and one.base and other.base and one.base.latency and other.base.latency
    ]
    if not pairs or len(pairs) < len(before) * len(after):
        return None
    return math.exp(float(np.mean([math.log(other.p50 / one.p50) for one, other in pairs])))


def _same_baseline(one: BenchReport, other: BenchReport) -> bool:
    """Whether nothing that decides the baseline's time differs, other than the machine's state."""
    first, second = one.base, other.base
    if first is None or second is None or first.key != second.key or not (first.latency and second.latency):
        return False
    backend = known(first.backend)
    decisive = {*one.versions, *other.versions} if backend is None else backend.decisive
    return (
        _two_machines((one,), (other,)) is None
        and first.artifact == second.artifact
        and _same_point(first.latency, second.latency)
        and one.settings.threads == other.settings.threads
        and all(one.versions.get(name) == other.versions.get(name) for name in decisive)
    )


def _differing(one: BenchReport, other: BenchReport) -> list[str]:
    """What differs between the machines of two reports, as far as both say it."""
    sides = [
        {
            "processor": report.machine.get("cpu"),
            "number of cores": report.machine.get("cores"),
            # Their clocks and heat, which are beside the names, are no other GPU.
            "GPU": [gpu.get("name") for gpu in report.machine.get("gpu", [])],
        }
        for report in (one, other)
    ]
    return [name for name in sides[0] if None not in (pair := [side[name] for side in sides]) and pair[0] != pair[1]]


def _two_machines(before: _Side, after: _Side) -> str | None:
    """Why times of these reports can't be compared, if they can't: another processor, or another GPU that was used."""
    reports = (*before, *after)
    found = {name for report in reports[1:] for name in _differing(reports[0], report)} - {"number of cores"}
    if not any(row.device != "cpu" and row.status == "ok" for report in reports for row in report.rows):
        found.discard("GPU")
    return f"they are of two machines: the {' and the '.join(sorted(found))} differs" if found else None


def _notes(before: _Side, after: _Side, drift: float | None) -> list[str]:
    one, other = before[0], after[0]
    notes = [f"the {name} differs: times of two machines say little about the forms" for name in _differing(one, other)]
    if one.settings.threads != other.settings.threads:
        notes.append(f"threads differ: {one.settings.threads} and {other.settings.threads}")
    changed = [
        f"{name} {one.versions.get(name, 'none')} → {other.versions.get(name, 'none')}"
        for name in sorted({*one.versions, *other.versions})
        if one.versions.get(name) != other.versions.get(name)
    ]
    if changed:
        notes.append(f"versions differ: {', '.join(changed)}")
    if one.dataset.get("fingerprint") != other.dataset.get("fingerprint"):
        notes.append("the images differ, so accuracy is compared as of two independent samples")
    elif _tasks(one) - {"accuracy"}:
        notes.append("what is kept is compared as of two independent samples: smaller changes may be real")
    neighbours = [{row.embedding.k for row in report.rows if row.embedding} for report in (one, other)]
    if all(neighbours) and neighbours[0] != neighbours[1]:
        notes.append("other numbers of neighbours were looked at, so what they find is not compared")
    if _tasks(one) and _tasks(other) and _tasks(one) != _tasks(other):
        notes.append("the bundles answer otherwise (classes, several labels, an embedding): answers are not compared")
    timed = any(row.latency for report in (one, other) for row in report.rows)
    if timed and drift is None:
        notes.append("the baselines differ, so a change of the machine can't be told from a change of a form")
    elif drift is not None and abs(drift - 1) > _NOTED_DRIFT:
        notes.append(
            f"the baseline, about which nothing changed, became {abs(drift - 1):.0%}"
            f" {'slower' if drift > 1 else 'faster'}: times are compared relative to it"
        )
    for side, words in ((before, "first"), (after, "second")):
        notes += [f"a {words} run is partial" for report in side if report.partial][:1]
        notes += [f"a {words} run is noisy" for report in side if report.noisy][:1]
    return notes


_NOTED_DRIFT = 0.02


def _times(key: str, before: _Side, after: _Side, drift: float | None, machines: str | None) -> list[Change]:
    """The changes of a row's times, at each size that every report timed."""
    changes: list[Change] = []
    for latency in before[0].row(key).latencies:
        found = [[_at(report, key, latency) for report in side] for side in (before, after)]
        own = [[item for item in side if item is not None] for side in found]
        if [len(side) for side in own] != [len(before), len(after)]:
            continue
        yardstick = drift is not None and key == after[0].baseline.get("key")  # what it moves is the machine
        bases = [[_at(report, report.baseline.get("key"), latency) for report in side] for side in (before, after)]
        # A baseline that failed at this size, for want of memory say, is nothing to compare with there.
        relative = drift is not None and not yardstick and all(item is not None for side in bases for item in side)
        place = (latency.batch_size, latency.image_size)
        reason = _inconclusive([item for side in own for item in side], drift) or machines
        on_demand = all(item.on_demand_ms for sides in (own, bases) for side in sides for item in side if item)
        for name, statistic in _TIMES.items():
            measured = [[_ms(item, on_demand) for item in side] for side in own]
            was, now = (_mean([getattr(times, name) for times in side]) for side in measured)
            if was is None or now is None:
                continue
            yardsticks = [[_ms(item, on_demand) for item in side if item] for side in bases]
            ratio, interval = _change(measured, yardsticks if relative else None, statistic)
            beyond = None if reason else _leaves_out(interval, 1.0) and not yardstick
            changes.append(Change(name, was, now, ratio, interval, beyond, *place, reason))
            if name == "p50":
                changes += _speedups(own, relative, changes[-1])
        steady = [[item.steady_ms for item in side] for side in own]
        yardsticks = [[item.steady_ms for item in side if item] for side in bases]
        ratio, (low, high) = _change(steady, yardsticks if relative else None, lambda samples: samples.mean(axis=-1))
        was, now = (_mean([item.images_per_s for item in side]) or 0.0 for side in own)
        beyond = None if reason else _leaves_out((low, high), 1.0) and not yardstick
        changes.append(Change("throughput", was, now, 1 / ratio, (1 / high, 1 / low), beyond, *place, reason))
    return changes


def _speedups(own: list[list[Latency]], relative: bool, p50: Change) -> list[Change]:
    """The change of the speed-up: that of p50 relative to the baseline, the other way round."""
    was, now = (_mean([item.speedup.ratio if item.speedup else None for item in side]) for side in own)
    if not relative or was is None or now is None or p50.ci95 is None:
        return []
    inverse = 1 / p50.ci95[1], 1 / p50.ci95[0]
    return [replace(p50, metric="speedup", before=was, after=now, amount=1 / p50.amount, ci95=inverse)]


def _at(report: BenchReport, key: str | None, size: Latency) -> Latency | None:
    """A row's times at a batch and image size."""
    row = next((row for row in report.rows if row.key == key), None)
    return None if row is None else next((item for item in row.latencies if _same_point(item, size)), None)


def _inconclusive(latencies: list[Latency], drift: float | None) -> str | None:
    """Why nothing can be said of these times."""
    busy = next((item.busy for item in latencies if item.busy), None)
    if busy is not None:
        return f"the machine was busy: {busy}"
    if drift is not None and abs(math.log(drift)) > math.log1p(MOST_DRIFT):
        return f"the baseline, about which nothing changed, became {max(drift, 1 / drift):.2f} times as {_slow(drift)}"
    return None


def _slow(drift: float) -> str:
    return "slow" if drift > 1 else "fast"


def _change(
    measured: list[list[Samples]], yardsticks: list[list[Samples]] | None, statistic: _Statistic
) -> tuple[float, Interval]:
    """after / before of a statistic, relative to the baseline where there is one, and its interval."""
    means, variance = [], 0.0
    floor = BETWEEN_MACHINE_STATES if yardsticks is None else BETWEEN_RUNS
    for number, side in enumerate(measured):
        values, within = [], 0.0
        for place, times in enumerate(side):
            yardstick = None if yardsticks is None else yardsticks[number][place]
            value, drawn = _log(times, yardstick, statistic, seed=1000 * number + place)
            values.append(value)
            within += float(np.var(drawn)) / len(side) ** 2
        between = max(floor**2, float(np.var(values, ddof=1)) if len(values) > 1 else 0.0)
        means.append(float(np.mean(values)))
        variance += within + between / len(side)
    change, half = means[1] - means[0], _Z95 * math.sqrt(variance)
    return math.exp(change), (math.exp(change - half), math.exp(change + half))


def _log(
    times: Samples, yardstick: Samples | None, statistic: _Statistic, seed: int
) -> tuple[float, npt.NDArray[np.float64]]:
    """The logarithm of a statistic, less that of the baseline's; and of bootstrap samples, drawn by whole rounds."""
    draw = np.random.default_rng(seed)
    rounds = _by_round(times)
    picks = draw.integers(0, len(rounds), size=(_RESAMPLES, len(rounds)))
    value, drawn = np.log(statistic(rounds.reshape(-1))), np.log(statistic(rounds[picks].reshape(_RESAMPLES, -1)))
    if yardstick is not None:
        other = _by_round(yardstick)
        if len(other) != len(rounds):
            picks = draw.integers(0, len(other), size=(_RESAMPLES, len(other)))
        value = value - np.log(statistic(other.reshape(-1)))
        drawn = drawn - np.log(statistic(other[picks].reshape(_RESAMPLES, -1)))
    return float(value), drawn


def _by_round(times: Samples) -> npt.NDArray[np.float64]:
    """All samples as (rounds, calls of a round)."""
    samples = np.asarray(times.samples, dtype=np.float64)
    calls = times.calls_per_round
    return samples[: len(samples) // calls * calls].reshape(-1, calls)


def _mean(values: Sequence[float | None]) -> float | None:
    """The geometric mean; None where a value is missing."""
    there = [value for value in values if value is not None]
    return math.exp(float(np.mean(np.log(there)))) if there and len(there) == len(values) else None


def _ms(latency: Latency, on_demand: bool) -> Samples:
    return latency.on_demand_ms if on_demand and latency.on_demand_ms is not None else latency.steady_ms


def _same_times(one: Latency, other: Latency) -> tuple[Samples, Samples]:
    """The times of both that were taken in the same way: on demand, or steady where a report has no others."""
    on_demand = one.on_demand_ms is not None and other.on_demand_ms is not None
    return _ms(one, on_demand), _ms(other, on_demand)


def _same_point(one: Latency, other: Latency) -> bool:
    return (one.batch_size, one.image_size) == (other.batch_size, other.image_size)


def _tasks(report: BenchReport) -> set[str]:
    kinds = ("accuracy", "multi_label", "embedding")
    return {kind for row in report.rows for kind in kinds if getattr(row, kind) is not None}


def _accuracy(first: Row, second: Row, same_images: bool) -> list[Change]:
    one, other = first.accuracy, second.accuracy
    if one is None or other is None:
        return []
    amount, interval = _top1(one, other, same_images)
    count = min(one.count, other.count)
    changes = [Change("top1", one.top1, other.top1, amount, interval, _leaves_out(interval, 0.0), count=count)]
    for name in ("top5", "agreement", "calibration_error"):
        changes += _alone(name, getattr(one, name), getattr(other, name))
    return [*changes, *_drop(one, other, other.count)]


def _several_labels(first: Row, second: Row) -> list[Change]:
    one, other = first.multi_label, second.multi_label
    if one is None or other is None:
        return []
    count = min(one.count, other.count)
    changes: list[Change] = []
    for metric, name in _SEVERAL_LABELS.items():
        intervals = "ci95" if metric == "map" else f"{name}_ci95"
        was, now = ((getattr(found, name), getattr(found, intervals)) for found in (one, other))
        changes += _apart(metric, was, now, count)
    return [*changes, *_alone("agreement", one.agreement, other.agreement), *_drop(one, other, other.count)]


def _vectors(first: Row, second: Row) -> list[Change]:
    one, other = first.embedding, second.embedding
    if one is None or other is None:
        return []
    count = min(one.count, other.count)
    changes: list[Change] = []
    for name in _VECTORS:
        kept: list[Kept | None] = [getattr(one, name), getattr(other, name)]
        if one.k == other.k or name not in _OF_K_NEAREST:
            was, now = ((None, None) if found is None else (found.value, found.ci95) for found in kept)
            changes += _apart(name, was, now, count)
    if one.k == other.k and one.knn is not None and other.knn is not None:
        was, now = ((found.top1, found.ci95) for found in (one.knn, other.knn))
        changes += _apart("knn", was, now, count)
        changes += _drop(one.knn, other.knn, other.count)
    return changes


_Measured = tuple[float | None, Interval | None]  # a share and its interval


def _apart(metric: str, one: _Measured, other: _Measured, count: int) -> list[Change]:
    """The change of a share of which both sides have an interval, as of two independent samples."""
    (was, around), (now, around_now) = one, other
    if was is None or now is None:
        return []
    if around is None or around_now is None:
        return _alone(metric, was, now)
    interval = _independent(was, around, now, around_now)
    return [Change(metric, was, now, now - was, interval, _leaves_out(interval, 0.0), count=count)]


def _alone(metric: str, was: float | None, now: float | None) -> list[Change]:
    """The change of a share of which no interval is known."""
    if was is None or now is None:
        return []
    return [Change(metric, was, now, now - was, None, None if was != now else False)]


def _drop(
    one: Accuracy | MultiLabelAccuracy | Neighbours, other: Accuracy | MultiLabelAccuracy | Neighbours, count: int
) -> list[Change]:
    """The change of the points that are lost against each report's baseline."""
    if one.delta is None or other.delta is None:
        return []
    drops = 0.0 - 100 * one.delta, 0.0 - 100 * other.delta  # of none +0, not -0
    own = None if other.delta_ci95 is None else (-100 * other.delta_ci95[1], -100 * other.delta_ci95[0])
    beyond = None if drops[0] != drops[1] else False
    return [Change("drop", *drops, drops[1] - drops[0], None, beyond, count=count, own_ci95=own)]


def _top1(one: Accuracy, other: Accuracy, same_images: bool) -> tuple[float, Interval]:
    """The change of top-1 between two runs, and its interval."""
    if same_images and one.correct and other.correct and one.count == other.count:
        right, now = unpacked(one.correct, one.count), unpacked(other.correct, other.count)
        return paired_difference(int((right & ~now).sum()), int((now & ~right).sum()), one.count)
    around = [wilson(round(item.top1 * item.count), item.count) for item in (one, other)]
    return other.top1 - one.top1, _independent(one.top1, around[0], other.top1, around[1])


def _independent(was: float, around: Interval, now: float, around_now: Interval) -> Interval:
    """The interval of now - was from that of each, of independent samples."""
    below = math.hypot(now - around_now[0], around[1] - was)
    above = math.hypot(around_now[1] - now, was - around[0])
    return now - was - below, now - was + above


def _rest(first: Row, second: Row, machines: str | None) -> list[Change]:
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
        changes.append(Change("cold_start", *starts, starts[1] / starts[0], None, None, inconclusive=machines))
    return changes


def _leaves_out(interval: Interval, value: float) -> bool:
    return not interval[0] <= value <= interval[1]
