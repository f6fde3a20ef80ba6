"""The benchmark of a bundle: which forms, on which images, and the report about them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy import progress
from vitdeploy.bench.accuracy import Verdicts, label_mapping, summarise
from vitdeploy.bench.forms import BACKENDS, Form, baseline_form, bundle_forms, choose
from vitdeploy.bench.judge import Finding, Judge, JudgeSettings
from vitdeploy.bench.latency import LatencySettings, Track
from vitdeploy.bench.machine import machine, public_text, usable_cores, versions
from vitdeploy.bench.report import BenchReport, Disagreement, Latency, Row
from vitdeploy.bench.statistics import percentiles, softmax, speedup
from vitdeploy.bench.verdict import choice, headline, named
from vitdeploy.bundle import Bundle
from vitdeploy.datasets import ImageDataset, stratified_sample
from vitdeploy.errors import DatasetError, InputError

__all__ = ["bench", "save"]

_SHOWN_DISAGREEMENTS = 12
_THUMBNAIL = 96  # pixels of the longest side
_BUSY = 0.15  # share of the machine that other programs may use before the times count as noisy


def bench(
    bundle: Bundle | str | Path,
    dataset: ImageDataset,
    *,
    baseline: str | Path | None = None,
    limit: int | None = None,
    batch_sizes: Sequence[int] = (1,),
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int = 50,
    max_seconds: float = 120.0,
    latency: bool = True,
    accuracy: bool = True,
    max_drop_points: float = 1.0,
    seed: int = 0,
    command: str | None = None,
) -> BenchReport:
    """Compare the forms of a bundle that can run here: what each costs and what each keeps.

    Example:
        report = bench("bundles/vit", load_dataset("cifar10", "test"), baseline="runs/vit", limit=1000)
        print(markdown(report))

    Args:
        bundle: the bundle, or its folder.
        dataset: images and labels; the same images go to every form.
        baseline: checkpoint (folder or Hub id) to compare with, run by PyTorch with transformers' own image
            processor. Without it the FP32 graph on the first backend is the reference, and the report says so.
        limit: how many images to compare, drawn so that each class keeps its share; None: all.
        batch_sizes: images per timed call; tables show the first.
        backends: pytorch, onnxruntime, openvino, tensorrt, tensorrt-rtx; None: all. The baseline always runs.
        precisions: fp32, fp16, int8, or int8-tensorrt for the graph that engines are built from; None: all.
        threads: CPU threads, the same for every backend; None: as many as there are usable cores.
        rounds: how often each form has its turn; fewer, but not under 10, once `max_seconds` are over.
        latency: measure times.
        accuracy: compare answers.
        max_drop_points: top-1 that a form may lose, in percentage points, and still be recommended.
        seed: orders the rounds and draws the `limit` images.
        command: the command line, for the record.

    Returns:
        The report. After Ctrl-C it holds what was measured, and `partial` is set.

    Raises:
        BundleError, DatasetError: can't be read, or their classes do not fit.
        InputError: an option out of range, or nothing of the bundle fits the wish.
        KeyboardInterrupt: interrupted before anything was measured.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    _check(dataset, limit, batch_sizes, backends, threads, rounds, latency or accuracy)
    workers = threads or usable_cores()
    mapping, label_note = label_mapping(opened.manifest.labels, tuple(dataset.labels))
    images = dataset if limit is None else stratified_sample(dataset, limit, seed=seed)
    forms = choose(bundle_forms(opened, workers), backends, precisions)
    if baseline is not None:
        forms = [baseline_form(baseline, workers), *forms]
    settings = JudgeSettings(
        batch_sizes=tuple(batch_sizes),
        latency=LatencySettings(rounds=rounds, max_seconds=max_seconds, seed=seed) if latency else None,
        accuracy=accuracy,
    )
    judge = Judge(forms, images, len(opened.manifest.labels), settings)
    before = machine()
    partial = _run(judge)
    truth = mapping[np.asarray(images.label_ids, dtype=np.int64)]
    notes = [note for note in (label_note, _reference_note(judge, forms, baseline)) if note]
    if limit is not None and len(images) < len(dataset):
        notes.append(f"{len(images)} of {len(dataset)} images, drawn so that every class keeps its share")
    facts = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": before,
        "versions": versions(),
        "dataset": public_text(images.describe()),
        "bundle": _bundle_facts(opened),
        "settings": _settings_facts(settings, workers, limit, seed, max_drop_points, judge),
        "labels": opened.manifest.labels,
        "notes": tuple(notes),
        "partial": partial,
    }
    return assemble(judge, images, truth, facts)


def save(report: BenchReport, bundle: Bundle, html: str) -> None:
    """Keep the report in its bundle as bench/report.json and bench/report.html.

    Raises:
        VitdeployError: the bundle can't be written to.
    """
    with bundle.edit() as editor:
        for name, text in (("bench/report.json", report.dumps() + "\n"), ("bench/report.html", html)):
            editor.path_for(name).write_text(text, encoding="utf-8")
            editor.add(name, kind="bench", built_with={"created": report.created})


def assemble(judge: Judge, images: Any, truth: npt.NDArray[np.int64], facts: dict[str, Any]) -> BenchReport:
    """The report on what a judge found; `facts` are the fields of the report that the judge knows nothing of."""
    reference = None if judge.reference is None else judge.findings[judge.reference]
    rows = tuple(_row(finding, reference, truth, interrupted=facts["partial"]) for finding in judge.findings.values())
    noise = [
        f"{row.key}, batch {item.batch_size}: {item.noise}" for row in rows for item in row.latencies if item.noise
    ]
    if judge.other_share is not None and judge.other_share > _BUSY:
        noise.insert(0, f"other programs used {judge.other_share:.0%} of the processor while latency was measured")
    best = choice(rows, facts["settings"]["max_drop_points"])
    shown, count = _disagreements(judge, rows, truth, images, facts["labels"])
    report = BenchReport(
        **facts,
        baseline=_baseline_facts(reference, rows),
        rows=rows,
        noise=tuple(noise),
        disagreements=shown,
        disagreement_count=count,
        recommendation={},
    )
    recommendation = {"key": None if best is None else best.key, "sentence": headline(report)}
    return BenchReport(**{**vars(report), "recommendation": recommendation})


def _check(
    dataset: ImageDataset,
    limit: int | None,
    batch_sizes: Sequence[int],
    backends: Sequence[str] | None,
    threads: int | None,
    rounds: int,
    something: bool,
) -> None:
    if len(dataset) == 0:
        raise DatasetError("the dataset has no images", hint="name another split, or look into the folder")
    if not batch_sizes or any(size < 1 for size in batch_sizes) or len(set(batch_sizes)) != len(batch_sizes):
        raise InputError(
            f"batch sizes must be different and at least 1, got {list(batch_sizes)}", hint="--batch-size 1,8"
        )
    for name, value in (("limit", limit), ("threads", threads), ("rounds", rounds)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}", hint=f"--{name} 1 or more")
    unknown = sorted(set(backends or ()) - set(BACKENDS))
    if unknown:
        raise InputError(f"there is no backend {unknown[0]!r}", hint=f"backends: {', '.join(BACKENDS)}")
    if not something:
        raise InputError("neither latency nor accuracy is to be measured", hint="leave one of the two on")


def _run(judge: Judge) -> bool:
    """Run; say whether it was interrupted. An interruption before anything was measured passes through."""
    try:
        judge.run()
    except KeyboardInterrupt:
        found = judge.findings.values()
        if not any(finding.tracks or (finding.verdicts and finding.verdicts.done.any()) for finding in found):
            raise
        progress.note("Interrupted: the report holds what was measured so far, and is marked partial.")
        return True
    return False


def _row(finding: Finding, reference: Finding | None, truth: npt.NDArray[np.int64], *, interrupted: bool) -> Row:
    form = finding.form
    latencies = tuple(_latency(size, track, finding.reference.get(size)) for size, track in finding.tracks.items())
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
        status=status,
        reason=public_text(reason),
        artifact=form.artifact,
        size_bytes=form.size_bytes,
        cold_start_ms=None if finding.cold_start_ms is None else round(finding.cold_start_ms, 3),
        latencies=latencies,
        accuracy=accuracy,
    )


def _latency(batch_size: int, track: Track, reference: Track | None) -> Latency:
    samples = [round(sample, 4) for sample in track.samples_ms]
    ratio, interval = None, None
    if reference is not None:
        own, theirs = track.paired_with(reference)
        if own:
            ratio, interval = speedup(theirs, own)
    return Latency(
        batch_size=batch_size,
        **percentiles(samples),
        samples=tuple(samples),
        calls_per_round=track.calls_per_round,
        speedup=ratio,
        speedup_ci95=interval,
        noise=track.noise(),
    )


def _disagreements(
    judge: Judge, rows: tuple[Row, ...], truth: npt.NDArray[np.int64], images: Any, labels: tuple[str, ...]
) -> tuple[tuple[Disagreement, ...], int]:
    """Images on which some form's best class is not the reference's: the most disputed ones, and how many there are."""
    verdicts: dict[str, Verdicts] = {}
    for row in rows:
        found = judge.findings[row.key].verdicts
        if row.accuracy is not None and found is not None:
            verdicts[row.key] = found
    if judge.reference not in verdicts or len(verdicts) < 2:
        return (), 0
    seen = np.logical_and.reduce([verdict.done for verdict in verdicts.values()])
    best = {key: verdict.logits.argmax(axis=1) for key, verdict in verdicts.items()}
    against = np.sum([best[key] != best[judge.reference] for key in verdicts], axis=0) * seen
    disputed = np.flatnonzero(against)
    order = disputed[np.lexsort((disputed, -against[disputed]))][:_SHOWN_DISAGREEMENTS]
    shown = []
    for index in map(int, order):
        answers = {
            key: (labels[best[key][index]], round(float(softmax(verdict.logits[index]).max()), 4))
            for key, verdict in verdicts.items()
        }
        shown.append(Disagreement(index, labels[truth[index]], answers, _thumbnail(images.image(index))))
    return tuple(shown), len(disputed)


def _thumbnail(pixels: npt.NDArray[np.uint8]) -> str:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _baseline_facts(reference: Finding | None, rows: tuple[Row, ...]) -> dict[str, Any]:
    if reference is None:
        return {"key": None, "name": None, "description": "no form could be run"}
    row = next(row for row in rows if row.key == reference.form.key)
    if row.backend == "pytorch":
        description = (
            "PyTorch in float32, eager, with transformers' own image processor (its time is part of the latency)"
        )
        return {"key": row.key, "name": "PyTorch", "description": description}
    return {
        "key": row.key,
        "name": named(row),
        "description": f"{named(row)}, since no PyTorch baseline was measured",
    }


def _reference_note(judge: Judge, forms: list[Form], baseline: str | Path | None) -> str | None:
    if judge.reference is None or (baseline is not None and judge.reference == forms[0].key):
        return None
    row = judge.findings[judge.reference].form
    why = "the baseline could not be run" if baseline is not None else "no baseline was named (--baseline MODEL)"
    return f"{why}, so {row.key} is what the others are compared with"


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest.to_json()
    # Reports are kept in the bundle themselves, so they are left out of what identifies it.
    manifest["artifacts"] = [artifact for artifact in manifest["artifacts"] if artifact["kind"] != "bench"]
    content = json.dumps(manifest, sort_keys=True, ensure_ascii=False).encode()
    return {
        "name": bundle.path.resolve().name,
        "model": public_text(bundle.manifest.model),
        "manifest_sha256": hashlib.sha256(content).hexdigest(),
    }


def _settings_facts(
    settings: JudgeSettings, threads: int, limit: int | None, seed: int, max_drop_points: float, judge: Judge
) -> dict[str, Any]:
    return {
        "threads": threads,
        "limit": limit,
        "seed": seed,
        "batch_sizes": list(settings.batch_sizes),
        "accuracy": settings.accuracy,
        "accuracy_batch": settings.accuracy_batch,
        "latency": None if settings.latency is None else dict(vars(settings.latency)),
        "image_size": None if judge.image_size is None else list(judge.image_size),
        "max_drop_points": max_drop_points,
    }
