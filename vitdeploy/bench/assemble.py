"""From what a judge found to the report about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.bench.accuracy import Verdicts, summarise
from vitdeploy.bench.changes import disagreements
from vitdeploy.bench.judge import Finding, Judge, Point
from vitdeploy.bench.latency import Track
from vitdeploy.bench.load import ClosedLoop, OpenLoop
from vitdeploy.bench.machine import public_text
from vitdeploy.bench.report import BenchReport, ClosedLoad, Latency, OpenLoad, Row, Times
from vitdeploy.bench.statistics import percentiles, speedup
from vitdeploy.bench.verdict import choice, front, headline, named, outside, wish_of

__all__ = ["assemble", "judged"]

_BUSY = 0.15  # share of the machine that other programs may use before the times count as noisy
_CLOCK = 0.10  # by how much the processor's clock may fall


def assemble(judge: Judge, images: Any, truth: npt.NDArray[np.int64], facts: dict[str, Any]) -> BenchReport:
    """The report on what a judge found; `facts` are the fields of the report that the judge knows nothing of."""
    reference = None if judge.reference is None else judge.findings[judge.reference]
    batch = judge.points[0].batch_size if judge.points else 1
    rows = tuple(
        _row(finding, reference, truth, batch, interrupted=facts["partial"]) for finding in judge.findings.values()
    )
    verdicts: dict[str, Verdicts] = {}
    for row in rows:
        found = judge.findings[row.key].verdicts
        if row.accuracy is not None and found is not None:
            verdicts[row.key] = found
    shown, count = disagreements(verdicts, judge.reference, truth, images, facts["labels"])
    report = BenchReport(
        **facts,
        baseline=_baseline_facts(reference, rows),
        rows=rows,
        noise=_noise(rows, judge.other_share, facts.get("readings", ())),
        disagreements=shown,
        disagreement_count=count,
    )
    return judged(report)


def judged(report: BenchReport) -> BenchReport:
    """The report with its verdicts: the front, what breaks a limit, the recommendation."""
    wish = wish_of(report.settings)
    best_ones = front(report.rows)
    rows = tuple(
        replace(row, on_front=row.key in best_ones, outside=outside(row, wish) if row.status == "ok" else ())
        for row in report.rows
    )
    report = replace(report, rows=rows)
    best = choice(rows, wish)
    return replace(report, recommendation={"key": None if best is None else best.key, "sentence": headline(report)})


def _noise(rows: tuple[Row, ...], other_share: float | None, readings: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    found = []
    if other_share is not None and other_share > _BUSY:
        found.append(f"other programs used {other_share:.0%} of the processor while latency was measured")
    clocks = [reading["cpu_mhz"] for reading in readings if reading["cpu_mhz"]]
    if clocks and min(clocks) < (1 - _CLOCK) * max(clocks):
        found.append(f"the processor's clock went between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    for row in rows:
        for item in row.latencies:
            if item.noise:
                height, width = item.image_size or (0, 0)
                where = f"batch {item.batch_size}" + (f" of {height}x{width}" if len(row.latencies) > 1 else "")
                found.append(f"{row.key}, {where}: {item.noise}")
    return tuple(found)


def _row(
    finding: Finding, reference: Finding | None, truth: npt.NDArray[np.int64], batch: int, *, interrupted: bool
) -> Row:
    form = finding.form
    latencies = tuple(_latency(point, track, finding) for point, track in finding.tracks.items())
    accuracy = None
    if finding.verdicts is not None and finding.failure is None:
        against = None if reference is None or finding is reference else reference.verdicts
        accuracy = summarise(finding.verdicts, truth, against)
    status, reason = "ok", None
    if form.reason is not None:
        status, reason = "skipped", form.reason
    elif finding.failure is not None:
        status, reason = "failed", finding.failure
    elif not latencies and accuracy is None:
        # Only an interruption leaves a form that runs without a number.
        status, reason = "skipped", "interrupted before it was measured" if interrupted else "nothing was measured"
    return Row(
        key=form.key,
        form=form.form,
        backend=form.backend,
        device=form.device,
        status=status,
        reason=public_text(reason),
        artifact=form.artifact,
        size_bytes=form.size_bytes,
        cold_start_ms=None if finding.cold_start_ms is None else round(finding.cold_start_ms, 3),
        cold_start=None if finding.probed is None else finding.probed.cold_start,
        latencies=latencies,
        phases=finding.phases,
        closed=tuple(_closed(loop, batch) for loop in finding.closed),
        open=tuple(_open(loop) for loop in finding.open),
        accuracy=accuracy,
    )


def _latency(point: Point, track: Track, finding: Finding) -> Latency:
    samples = [round(sample, 4) for sample in track.samples_ms]
    ratio, interval = None, None
    reference = finding.reference.get(point)
    if reference is not None:
        own, theirs = track.paired_with(reference)
        if own:
            ratio, interval = speedup(theirs, own)
    return Latency(
        batch_size=point.batch_size,
        image_size=point.image_size,
        **percentiles(samples),
        samples=tuple(samples),
        calls_per_round=track.calls_per_round,
        speedup=ratio,
        speedup_ci95=interval,
        noise=track.noise(),
        device=_times(track.device_ms) if track.device_ms else None,
        memory=finding.memory.get(point),
    )


def _closed(loop: ClosedLoop, batch: int) -> ClosedLoad:
    return ClosedLoad(loop.callers, batch * loop.finished / loop.seconds, _times(loop.latency_ms))


def _open(loop: OpenLoop) -> OpenLoad:
    return OpenLoad(loop.rate, loop.callers, _times(loop.latency_ms), _times(loop.service_ms), loop.keeps_up)


def _times(samples: Sequence[float]) -> Times:
    return Times(**{name: round(value, 4) for name, value in percentiles(samples).items()}, count=len(samples))


def _baseline_facts(reference: Finding | None, rows: tuple[Row, ...]) -> dict[str, Any]:
    if reference is None:
        return {"key": None, "name": None, "description": "no form could be run"}
    row = next(row for row in rows if row.key == reference.form.key)
    if row.backend == "pytorch":
        where = "on the GPU" if row.device != "cpu" else "on the CPU"
        description = (
            f"PyTorch in float32, eager, {where}, with transformers' own image processor (its time is part of the"
            " latency)"
        )
        return {"key": row.key, "name": "PyTorch", "description": description}
    return {
        "key": row.key,
        "name": named(row),
        "description": f"{named(row)}, since no PyTorch baseline was measured",
    }
