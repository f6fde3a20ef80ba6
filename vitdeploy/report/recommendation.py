"""What the numbers say: the Pareto front, what breaks a limit, the form to ship, and that in plain words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vitdeploy.evaluation.limits import Limits, is_over
from vitdeploy.evaluation.statistics import drop_bound
from vitdeploy.evaluation.vectors import VectorQuality
from vitdeploy.report.formatting import backend_name, named, points
from vitdeploy.report.records import BenchReport, Ratio, Row
from vitdeploy.report.settings import BenchSettings

__all__ = ["can_show", "choice", "headline", "outside", "pareto_front", "recommended"]

_BEST = {"latency": "fastest", "throughput": "form with the most images per second", "size": "smallest"}


def recommended(report: BenchReport) -> BenchReport:
    """The report with what its numbers say: the Pareto front, what breaks a limit, the recommendation."""
    best_ones = pareto_front(report.rows)
    rows = tuple(
        replace(
            row,
            on_front=row.key in best_ones,
            outside=outside(row, report.settings, report.baseline.get("key")) if row.status == "ok" else (),
        )
        for row in report.rows
    )
    report = replace(report, rows=rows)
    best = choice(rows, report.settings)
    return replace(report, recommendation={"key": None if best is None else best.key, "sentence": headline(report)})


def pareto_front(rows: tuple[Row, ...]) -> set[str]:
    """Keys of the rows that no other row beats in both median latency and top-1 or mAP (the Pareto front).

    Times of a busy machine compare nothing, so a row with such times is not among them.
    """
    whole = [row for row in rows if row.from_pixels and _busy(row) is None]
    points = [(row.key, row.latency.ms.p50, row.quality.value) for row in whole if row.latency and row.quality]
    return {
        key
        for key, ms, value in points
        if not any(o_ms <= ms and other >= value and (o_ms < ms or other > value) for _, o_ms, other in points)
    }


def outside(row: Row, settings: BenchSettings, baseline: str | None = None) -> tuple[str, ...]:
    """The limits of the settings that a row breaks, in words; a missing number breaks the limit that needs it.

    Args:
        baseline: key of the row that the others are compared with, which loses nothing.
    """
    found: list[str | None] = []
    if settings.accuracy and row.key != baseline:
        found = [_lost(row, settings)] if row.embedding is None else _strayed(row.embedding, row, settings)
    if settings.max_latency_ms is not None and row.latency:
        times = row.latency.ms
        if times.p50 > settings.max_latency_ms:
            found.append(f"takes {times.p50:.2f} ms at p50 already, more than {settings.max_latency_ms:g}")
        elif times.p95 is None:
            found.append(f"p95 can't be told from {times.count} calls: give it more rounds (--rounds, --max-seconds)")
        elif times.p95 > settings.max_latency_ms:
            found.append(f"takes {times.p95:.2f} ms at p95, more than {settings.max_latency_ms:g}")
    if settings.max_memory_bytes is not None:
        memory = row.memory.total_bytes if row.memory else None
        if memory is None:
            found.append("its memory could not be measured")
        elif memory > settings.max_memory_bytes:
            found.append(f"takes {memory / 1e6:.0f} MB of memory, more than {settings.max_memory_bytes / 1e6:.0f}")
    return tuple(filter(None, found))


def _lost(row: Row, settings: BenchSettings) -> str | None:
    """Why a row may lose more than it should; None if it does not, as far as so many images can show."""
    quality, most = row.quality, settings.max_drop_points
    if quality is None or quality.delta is None or quality.drop_bound is None:
        return "was not compared with a baseline, so what it loses is not known"
    if is_over(-100 * quality.delta, most):
        return f"loses {-100 * quality.delta:.2f} points of {quality.metric}, more than {most:g}"
    if is_over(100 * quality.drop_bound, most) and can_show(quality.count, most):
        return f"may lose {100 * quality.drop_bound:.2f} points of {quality.metric} (95 % bound), more than {most:g}"
    return None


def _strayed(kept: VectorQuality, row: Row, settings: BenchSettings) -> list[str | None]:
    """Why an embedding may be too far from the baseline's."""
    limits = Limits(min_cosine=settings.min_cosine, min_recall=settings.min_recall)
    found: list[str | None] = [*limits.broken_by(kept)]
    if limits and (kept.cosine is None or kept.recall is None):
        found.append("was not compared with a baseline, so what it keeps is not known")
    if kept.knn is not None:
        found.append(_lost(row, settings))
    elif not limits:
        found.append("no limit says what it must keep: --min-cosine, --min-recall, or images with classes")
    return found


def can_show(count: int, most_points: float) -> bool:
    """Whether that many images are enough to show that a form which loses nothing keeps to `most_points`."""
    return 100 * drop_bound(0, 0, count) <= most_points


def choice(rows: Iterable[Row], settings: BenchSettings) -> Row | None:
    """The row that is best at what is preferred among those that are not `outside` a limit; None if there is none.

    Where latency was measured, a row without it is not a candidate. Where the machine was busy meanwhile, none is the
    fastest.
    """
    candidates = _candidates(rows, settings)
    if settings.prefer != "size" and any(map(_busy, candidates)):
        return None
    return min(candidates, key=lambda row: _cost(row, settings.prefer), default=None)


def _candidates(rows: Iterable[Row], settings: BenchSettings) -> list[Row]:
    candidates = [row for row in rows if row.status == "ok" and not row.outside and row.from_pixels]
    if settings.prefer != "size" or any(row.latency for row in candidates):
        candidates = [row for row in candidates if row.latency]
    return candidates


def _busy(row: Row) -> str | None:
    """Why the row's times are not compared with others', if they are not."""
    return row.latency.busy if row.latency else None


def _cost(row: Row, prefer: str) -> tuple[float, float]:
    """What is least in the best row; equals are told apart by latency."""
    ms = row.latency.ms.p50 if row.latency else 0.0
    if prefer == "size":
        return float(row.size_bytes or 1 << 62), ms
    if prefer == "throughput":
        return -(row.images_per_s or 0.0), ms
    return ms, float(row.size_bytes or 0)


def headline(report: BenchReport) -> str:
    """What to ship from here, in a few sentences; noisy times are called that."""
    caution = " The times are noisy: measure again on a quiet machine." if report.noise else ""
    return _recommended(report) + caution


def _recommended(report: BenchReport) -> str:
    settings = report.settings
    best = choice(report.rows, settings)
    if best is None:
        busy = next(filter(None, map(_busy, _candidates(report.rows, settings))), None)
        if busy is not None:
            return f"The {_superlative(settings)} was not measured: the machine was busy ({busy})."
        measured = [row for row in report.rows if row.quality or row.latency]
        if measured and any(row.latency for row in report.rows):
            return f"No form that was timed {_limits(settings)}."
        return "Accuracy only: no latency was measured." if measured else "Nothing was measured."
    base = report.baseline
    is_base, quality = best.key == base.get("key"), best.quality
    what = "The baseline itself" if is_base else named(best)
    sentence = f"{what} is the {_superlative(settings)}"
    vectors = best.embedding is not None and best.embedding.knn is None
    shown = is_base or (quality is not None and can_show(quality.count, settings.max_drop_points))
    limits = _limits(settings, with_drop=quality is not None and shown and not vectors)
    sentence += f" that {limits}" if limits else ""
    sentence += "" if quality else " (accuracy was not measured)"
    if best.latency is not None:
        sentence += f": {best.latency.ms.p50:.2f} ms per {_unit(best.latency.batch_size)}"
        sentence += f" on {backend_name(best)}" if is_base else ""
        if best.latency.speedup is not None and not is_base:
            sentence += f", {_as_fast(best.latency.speedup, str(base.get('name', 'the baseline')))}"
    sentence += "."
    if (busy := _busy(best)) is not None:
        sentence += f" Its speed-up was not measured: the machine was busy ({busy})."
    if quality is not None and quality.delta is not None and quality.delta_ci95 is not None:
        low, high = quality.delta_ci95
        sentence += (
            f" Its {quality.metric} is {quality.value:.2%}, {points(quality.delta)} points against the baseline"
            f" (95 % interval {points(low)} to {points(high)})."
        ).replace("%,", " %,")
        if not shown:
            lost = max(0.0, -100 * quality.delta)
            sentence += (
                f" It lost {f'{lost:.2f} points' if lost else 'nothing'} on {quality.count:,} images; too few to"
                f" show {_points(settings)}."
            )
    return sentence


def _as_fast(found: Ratio, baseline: str) -> str:
    if found.ci95 is not None and found.ci95[0] <= 1 <= found.ci95[1]:
        low, high = found.ci95
        return f"as fast as {baseline} within noise ({found.ratio:.2f} times, 95 % interval {low:.2f} to {high:.2f})"
    return f"{found.ratio:.2f} times as fast as {baseline}"


def _superlative(settings: BenchSettings) -> str:
    return _BEST[settings.prefer] + ("" if settings.prefer == "throughput" else " form")


def _points(settings: BenchSettings) -> str:
    return f"{settings.max_drop_points:g} point{'' if settings.max_drop_points == 1 else 's'}"


def _limits(settings: BenchSettings, *, with_drop: bool = True) -> str:
    limits = [f"stays within {_points(settings)} of the baseline"] if with_drop else []
    if settings.min_cosine is not None:
        limits.append(f"keeps a mean cosine of {settings.min_cosine:g}")
    if settings.min_recall is not None:
        limits.append(f"finds {settings.min_recall:.4g} of the baseline's {settings.neighbours} nearest")
    if settings.max_latency_ms is not None:
        limits.append(f"answers within {settings.max_latency_ms:g} ms (p95)")
    if settings.max_memory_bytes is not None:
        limits.append(f"takes at most {settings.max_memory_bytes / 1e6:.0f} MB of memory")
    return " and ".join([", ".join(limits[:-1]), limits[-1]] if len(limits) > 1 else limits)


def _unit(batch_size: int) -> str:
    return "image" if batch_size == 1 else f"batch of {batch_size}"
