"""From what a benchmark found to the report about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from vitdeploy.backends.registry import runs_bundles
from vitdeploy.bench.forms import Form
from vitdeploy.bench.latency import Track
from vitdeploy.bench.load import ClosedLoop, OpenLoop
from vitdeploy.bench.machine import public_text
from vitdeploy.bench.measurement import Benchmark, Measurement, Point
from vitdeploy.core.machine import BUSY
from vitdeploy.evaluation.accuracy import Answers, summarise
from vitdeploy.evaluation.changes import Disagreement, disagreements
from vitdeploy.evaluation.multi_label import summarise_sets
from vitdeploy.evaluation.statistics import percentiles, speedup
from vitdeploy.evaluation.vectors import summarise_vectors
from vitdeploy.models.tasks import EMBEDDING, SINGLE_LABEL, Task
from vitdeploy.report.circumstances import Baseline, Reading
from vitdeploy.report.formatting import named
from vitdeploy.report.recommendation import recommended
from vitdeploy.report.records import (
    BenchReport,
    ClosedLoad,
    CudaGraphs,
    Latency,
    Load,
    OpenLoad,
    Ratio,
    Row,
    Samples,
    Status,
    Times,
)
from vitdeploy.report.settings import BenchSettings

__all__ = ["assemble"]

_CLOCK = 0.10  # by how much the processor's clock may fall
_GPU_CLOCK = 0.05  # by how much the GPU's clocks behind two forms may differ


_Judge = Callable[[Answers, Answers | None], dict[str, Any]]
"""A form's answers and the baseline's -> the fields of a row that say what they are worth."""


def _judge(task: Task, truth: npt.NDArray[Any] | None, settings: BenchSettings) -> _Judge:
    if task.kind is EMBEDDING:
        return lambda form, base: {"embedding": summarise_vectors(form, truth, settings.neighbours, base)}
    assert truth is not None, "it was matched with the model's labels"
    if truth.ndim == 2:
        threshold = settings.threshold
        assert threshold is not None, "the bundle's was found where none was given"
        return lambda form, base: {"multi_label": summarise_sets(form, truth, threshold, base)}
    return lambda form, base: {"accuracy": summarise(form, truth, base, task)}


def assemble(
    benchmark: Benchmark,
    images: Any,
    truth: npt.NDArray[Any] | None,
    facts: dict[str, Any],
    task: Task = SINGLE_LABEL,
) -> BenchReport:
    """The report on what a benchmark found; `facts` are fields of the report that it knows nothing of.

    Args:
        truth: the class of each image (count,), or which labels it has (count, labels): see `summarise_sets`; None: not
            known, which only embeddings do without.
        task: what the model answers.
    """
    judge = _judge(task, truth, facts["settings"])
    reference = None if benchmark.reference is None else benchmark.measurements[benchmark.reference]
    batch = benchmark.points[0].batch_size if benchmark.points else 1
    rows = tuple(
        replace(
            _row(measurement, reference, judge, batch, interrupted=facts["partial"]),
            answers_sha256=_answers(measurement.form, facts["labels"], images.labels),
        )
        for measurement in benchmark.measurements.values()
    )
    answers: dict[str, Answers] = {}
    for row in rows:
        found = benchmark.measurements[row.key].answers
        if row.accuracy is not None and found is not None:
            answers[row.key] = found
    shown: tuple[Disagreement, ...] = ()
    count = 0
    if answers and truth is not None:
        shown, count = disagreements(answers, benchmark.reference, truth, images, facts["labels"], task)
    facts = {**facts, "notes": (*facts.get("notes", ()), *_gpu_notes(rows, facts["settings"]))}
    report = BenchReport(
        **facts,
        baseline=_baseline_facts(reference, rows),
        rows=rows,
        noise=_noise(rows, benchmark.other_share, facts.get("readings", ())),
        disagreements=shown,
        disagreement_count=count,
    )
    return recommended(report)


def _noise(rows: tuple[Row, ...], other_share: float | None, readings: Sequence[Reading]) -> tuple[str, ...]:
    found = []
    if other_share is not None and other_share > BUSY:
        found.append(f"other programs used {other_share:.0%} of the processor while latency was measured")
    clocks = [reading["cpu_mhz"] for reading in readings if reading["cpu_mhz"]]
    if clocks and min(clocks) < (1 - _CLOCK) * max(clocks):
        found.append(f"the processor's clock went between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    found += _gpu_clocks(rows)
    busy = {item.busy: None for row in rows for item in row.latencies if item.busy}
    found += [f"no speed-up was measured, the machine was busy: {reason}" for reason in busy]
    for row in rows:
        for item in row.latencies:
            if item.noise:
                height, width = item.image_size or (0, 0)
                where = f"batch {item.batch_size}" + (f" of {height}x{width}" if len(row.latencies) > 1 else "")
                found.append(f"{row.key}, {where}: {item.noise}")
    return tuple(found)


def _gpu_clocks(rows: tuple[Row, ...]) -> list[str]:
    """Where the GPU's clock was not the same for every form."""
    found = []
    points = dict.fromkeys((item.batch_size, item.image_size) for row in rows for item in row.latencies)
    for point in points:
        clocks = {
            row.key: item.gpu_mhz
            for row in rows
            for item in row.latencies
            if (item.batch_size, item.image_size) == point and item.gpu_mhz
        }
        if clocks and min(clocks.values()) < (1 - _GPU_CLOCK) * max(clocks.values()):
            low, high = min(clocks, key=clocks.__getitem__), max(clocks, key=clocks.__getitem__)
            found.append(
                f"batch {point[0]}: the GPU's clock was {clocks[low]:.0f} MHz for {low} and {clocks[high]:.0f} MHz for"
                f" {high}: fix it (nvidia-smi --lock-gpu-clocks), or use --keep-gpu-busy"
            )
    return found


def _gpu_notes(rows: tuple[Row, ...], settings: BenchSettings) -> list[str]:
    """What a reader of times on a GPU has to know of them."""
    ran = [row for row in rows if row.status == "ok" and row.device != "cpu"]
    if not ran:
        return []
    notes = []
    tf32 = {
        said: [row.key for row in ran if row.tf32 is said and row.form.startswith("fp32")] for said in (True, False)
    }
    words = [f"{', '.join(keys)} {'in TF32' if said else 'in full FP32'}" for said, keys in tf32.items() if keys]
    if words:
        notes.append(f"products of FP32 forms on the GPU: {'; '.join(words)}")
    if any(row.latencies for row in ran):
        rested = f"each form on the GPU rested {1000 * settings.rest_seconds:.0f} ms before its turn"
        notes.append("the GPU was kept busy between turns" if settings.keep_gpu_busy else rested)
    graphs: dict[str, list[str]] = {}
    for row in ran:
        if row.cuda_graphs is not None:
            graphs.setdefault(_graph_words(row.cuda_graphs), []).append(row.key)
    notes += [f"CUDA graphs, {', '.join(keys)}: {said}" for said, keys in graphs.items()]
    return notes


def _graph_words(graphs: CudaGraphs) -> str:
    used = f"captured by {graphs.by}" if graphs.kept or graphs.by == "TensorRT" else "none"
    if graphs.why_not is None:
        return used
    return f"{used}; not for every shape: {graphs.why_not}" if graphs.kept else f"none: {graphs.why_not}"


def _row(
    measurement: Measurement,
    reference: Measurement | None,
    judge: _Judge,
    batch: int,
    *,
    interrupted: bool,
) -> Row:
    form = measurement.form
    latencies = tuple(_latency(point, track, measurement) for point, track in measurement.tracks.items())
    judged: dict[str, Any] = {}
    if measurement.answers is not None:
        against = None if reference is None or measurement is reference else reference.answers
        judged = judge(measurement.answers, against)
        vectors = judged.get("embedding")
        if measurement is not reference and vectors is not None and vectors.recall is None and vectors.knn is None:
            judged = {}  # with nothing to hold them against, vectors say nothing
    status: Status = "ok"
    reason = None
    if form.reason is not None:
        status, reason = "skipped", form.reason
    elif measurement.failure is not None:
        status, reason = "failed", measurement.failure
    elif not latencies and not any(judged.values()):
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
        cold_start_ms=None if measurement.cold_start_ms is None else round(measurement.cold_start_ms, 3),
        cold_start=None if measurement.probed is None else measurement.probed.cold_start,
        latencies=latencies,
        phases=measurement.phases,
        load=Load(
            closed=tuple(_closed(loop, batch) for loop in measurement.closed),
            open=tuple(_open(loop) for loop in measurement.open),
        ),
        **judged,
        cuda_graphs=measurement.cuda_graphs,
        tf32=None if form.device == "cpu" else form.tf32,
    )


def _answers(form: Form, labels: Sequence[str], classes: Sequence[str]) -> str | None:
    """The SHA-256 of all that decides whether a form's answers are right, other than the images: `with_accuracy`."""
    content = json.dumps([form.content, form.form, list(labels), list(classes)], ensure_ascii=False)
    return None if form.content is None else hashlib.sha256(content.encode()).hexdigest()


def _latency(point: Point, track: Track, measurement: Measurement) -> Latency:
    reference, busy = measurement.reference.get(point), measurement.busy.get(point)
    steady = _samples(track.steady_ms, len(track.rounds))
    return Latency(
        batch_size=point.batch_size,
        image_size=point.image_size,
        on_demand_ms=_samples(track.on_demand_ms, len(track.rounds)),
        steady_ms=steady,
        images_per_s=1000 * point.batch_size / steady.mean,
        on_demand_speedup=None if busy else _speedup(track, reference, "on_demand"),
        steady_speedup=None if busy else _speedup(track, reference, "steady"),
        device_ms=_times(track.device_ms) if track.device_ms else None,
        device_speedup=None if busy else _speedup(track, reference, "device"),
        gpu_mhz=track.gpu_mhz,
        memory=measurement.memory.get(point),
        noise=track.noise(),
        busy=busy,
    )


def _samples(kept: Sequence[float], rounds: int) -> Samples:
    samples = tuple(round(sample, 4) for sample in kept)
    calls = len(samples) // rounds
    return Samples(**percentiles(samples), count=len(samples), calls_per_round=calls, samples=samples)


def _speedup(track: Track, reference: Track | None, part: str) -> Ratio | None:
    own, theirs = track.paired_with(reference, part) if reference is not None else ([], [])
    return Ratio(*speedup(theirs, own)) if own else None


def _closed(loop: ClosedLoop, batch: int) -> ClosedLoad:
    return ClosedLoad(loop.callers, batch * loop.finished / loop.seconds, _times(loop.latency_ms))


def _open(loop: OpenLoop) -> OpenLoad:
    return OpenLoad(loop.rate, loop.callers, _times(loop.latency_ms), _times(loop.service_ms), loop.keeps_up)


def _times(samples: Sequence[float]) -> Times:
    found = percentiles(samples)
    return Times(**{name: value and round(value, 4) for name, value in found.items()}, count=len(samples))


def _baseline_facts(reference: Measurement | None, rows: tuple[Row, ...]) -> Baseline:
    if reference is None:
        return {"key": None, "name": None, "description": "no form could be run"}
    row = next(row for row in rows if row.key == reference.form.key)
    if not runs_bundles(row.backend):
        where = "on the GPU" if row.device != "cpu" else "on the CPU"
        description = (
            f"PyTorch in float32, eager, {where}, with transformers' own image processor"
            f"{'' if row.device == 'cpu' else ', which runs on the CPU'} (its time is part of the latency;"
            " --also preprocessed leaves it out)"
        )
        return {"key": row.key, "name": "PyTorch", "description": description}
    return {
        "key": row.key,
        "name": named(row),
        "description": f"{named(row)}, since no PyTorch baseline was measured",
    }
