"""The benchmark of a bundle: which forms, on which images, the report about them, and what the bundle keeps of it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy import interrupts, progress
from vitdeploy.bench.accuracy import label_mapping
from vitdeploy.bench.assemble import assemble
from vitdeploy.bench.forms import Form, baseline_forms, bundle_forms, choose
from vitdeploy.bench.judge import Judge, JudgeSettings
from vitdeploy.bench.latency import LatencySettings, WallClock
from vitdeploy.bench.machine import machine, public_text, usable_cores, versions
from vitdeploy.bench.phases import time_decoding
from vitdeploy.bench.readings import Readings
from vitdeploy.bench.report import BenchReport
from vitdeploy.bench.settings import BenchSettings
from vitdeploy.bench.verdict import choice, headline, wish_of
from vitdeploy.bundle import Bundle
from vitdeploy.datasets import ImageDataset, stratified_sample
from vitdeploy.errors import BundleError, DatasetError
from vitdeploy.machine import identity
from vitdeploy.specs import Choice

__all__ = ["bench", "chosen_form", "save"]

_REPORT = "bench/report.json"


def bench(
    bundle: Bundle | str | Path,
    dataset: ImageDataset,
    settings: BenchSettings | None = None,
    *,
    baseline: str | Path | None = None,
    command: str | None = None,
    **options: Any,
) -> BenchReport:
    """Compare the forms of a bundle that can run here: what each costs and what each keeps.

    Example:
        report = bench("bundles/vit", load_dataset("cifar10", "test"), baseline="runs/vit", limit=1000)
        print(markdown(report))

    Args:
        bundle: the bundle, or its folder.
        dataset: images and labels; the same images go to every form.
        settings: what to measure and how.
        baseline: checkpoint (folder or Hub id) to compare with, run by PyTorch with transformers' own image
            processor. Without it the FP32 graph on the first backend is the reference, and the report says so.
        command: the command line, for the record.
        options: fields of `BenchSettings` that win over `settings`.

    Returns:
        The report. After Ctrl-C it holds what was measured, and `partial` is set.

    Raises:
        BundleError, DatasetError: can't be read, or their classes do not fit.
        InputError: an option out of range, or nothing of the bundle fits the wish.
        KeyboardInterrupt: interrupted before anything was measured.
    """
    settings = replace(settings or BenchSettings(), **options)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if len(dataset) == 0:
        raise DatasetError("the dataset has no images", hint="name another split, or look into the folder")
    mapping, label_note = label_mapping(opened.manifest.labels, tuple(dataset.labels))
    images = dataset if settings.limit is None else stratified_sample(dataset, settings.limit, seed=settings.seed)
    threads = settings.threads or usable_cores()
    forms = _forms(opened, settings, baseline, threads)
    here = machine()
    readings = Readings(len(here["gpu"]))
    judge = _judge(forms, images, len(opened.manifest.labels), settings, readings)
    partial = _run(judge)
    notes = [label_note, _reference_note(judge, forms, baseline), _limit_note(len(images), len(dataset))]
    facts = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": here,
        "versions": versions(),
        "dataset": public_text(images.describe()),
        "bundle": _bundle_facts(opened),
        "settings": _settings_facts(settings, threads, judge),
        "labels": opened.manifest.labels,
        "notes": tuple(note for note in notes if note),
        "readings": tuple(readings.taken),
        "analysis": _analysis(opened),
        "explanation": _explanation(opened),
        "partial": partial,
    }
    return assemble(judge, images, mapping[np.asarray(images.label_ids, dtype=np.int64)], facts)


def save(report: BenchReport, bundle: Bundle, html: str) -> Choice | None:
    """Keep the report in its bundle as bench/report.json and bench/report.html, and the form it recommends.

    Returns:
        The choice that was written, for `load` to find; None where nothing may be recommended (it was interrupted, or
        every form breaks a limit): then the bundle has none from here on.

    Raises:
        VitdeployError: the bundle can't be written to.
    """
    choice = chosen_form(report)
    with bundle.edit() as editor:
        for name, text in ((_REPORT, report.dumps() + "\n"), ("bench/report.html", html)):
            editor.path_for(name).write_text(text, encoding="utf-8")
            editor.add(name, kind="bench", built_with={"created": report.created})
        editor.update(choice=choice)
    return choice


def chosen_form(report: BenchReport) -> Choice | None:
    """The best form that `load` can open, by the wish of the report: PyTorch and forms built from are left out."""
    wish = wish_of(report.settings)
    rows = [row for row in report.rows if row.backend != "pytorch" and "-" not in row.form]
    best = None if report.partial else choice(rows, wish)
    if best is None:
        return None
    # PyTorch may be the best of all and still not be what a bundle can hold.
    why = headline(replace(report, rows=tuple(row for row in report.rows if row is best)))
    return Choice(
        precision=best.form,
        backend=best.backend,
        why=why,
        report=_REPORT,
        machine=identity(),
        max_drop=wish.max_drop_points if best.accuracy is not None else None,
        sha256=best.artifact.sha256 if best.artifact is not None else None,
    )


def _forms(bundle: Bundle, settings: BenchSettings, baseline: str | Path | None, threads: int) -> list[Form]:
    forms = choose(bundle_forms(bundle, threads), settings.backends, settings.precisions)
    if baseline is None:
        return forms
    return [*baseline_forms(baseline, threads, variants=settings.baselines, device=settings.device), *forms]


def _judge(forms: list[Form], images: ImageDataset, classes: int, settings: BenchSettings, readings: Readings) -> Judge:
    latency = LatencySettings(rounds=settings.rounds, max_seconds=settings.max_seconds, seed=settings.seed)
    shared = ("batch_sizes", "image_sizes", "accuracy", "memory", "phases", "callers", "rates", "load_seconds")
    what = JudgeSettings(
        latency=latency if settings.latency else None, **{name: getattr(settings, name) for name in shared}
    )
    decode_ms = None
    if settings.latency and settings.phases:
        decode_ms = time_decoding(images.encoded, len(images), WallClock())
    return Judge(forms, images, classes, what, decode_ms=decode_ms, between=readings)


def _run(judge: Judge) -> bool:
    """Run; say whether it was interrupted. An interruption before anything was measured passes through."""
    try:
        judge.run()
    except KeyboardInterrupt:
        interrupts.acknowledge()
        found = judge.findings.values()
        if not any(finding.tracks or (finding.verdicts and finding.verdicts.done.any()) for finding in found):
            raise
        progress.note("Interrupted: the report holds what was measured so far, and is marked partial.")
        return True
    return False


def _reference_note(judge: Judge, forms: list[Form], baseline: str | Path | None) -> str | None:
    if judge.reference is None or (baseline is not None and judge.reference == forms[0].key):
        return None
    row = judge.findings[judge.reference].form
    why = "the baseline could not be run" if baseline is not None else "no baseline was named (--baseline MODEL)"
    return f"{why}, so {row.key} is what the others are compared with"


def _limit_note(drawn: int, there: int) -> str | None:
    return f"{drawn} of {there} images, drawn so that every class keeps its share" if drawn < there else None


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    manifest = replace(bundle.manifest, choice=None).to_json()
    # Reports and what they lead to are kept in the bundle themselves, so they are left out of what identifies it.
    manifest["artifacts"] = [item for item in manifest["artifacts"] if item["kind"] not in _NOT_THE_MODEL]
    content = json.dumps(manifest, sort_keys=True, ensure_ascii=False).encode()
    return {
        "name": bundle.path.resolve().name,
        "model": public_text(bundle.manifest.model),
        "manifest_sha256": hashlib.sha256(content).hexdigest(),
    }


def _settings_facts(settings: BenchSettings, threads: int, judge: Judge) -> dict[str, Any]:
    first = judge.points[0].image_size if judge.points else None
    latency = LatencySettings(rounds=settings.rounds, max_seconds=settings.max_seconds, seed=settings.seed)
    return {
        **json.loads(json.dumps(vars(settings))),  # lists for tuples, as a report that was read has them
        "threads": threads,
        "accuracy_batch": JudgeSettings.accuracy_batch,
        "latency": dict(vars(latency)) if settings.latency else None,
        "image_size": None if first is None else list(first),
        "image_sizes": [list(size) for size in dict.fromkeys(point.image_size for point in judge.points)],
    }


def _analysis(bundle: Bundle) -> dict[str, Any] | None:
    """What `vitdeploy analyze` found of each layer, where the bundle holds it and it can be read."""
    artifact = bundle.find(kind="analysis")
    if artifact is None:
        return None
    try:
        data = json.loads(bundle.file(artifact).read_bytes())
        rows = [{name: row.get(name) for name in _LAYER} for row in data["rows"]]
        return {"data": public_text(data.get("data")), "rows": rows}
    except (BundleError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        progress.note(f"Note: {artifact.path} is left out of the report: {error}")
        return None


def _explanation(bundle: Bundle) -> tuple[dict[str, str], ...]:
    """The pictures that `vitdeploy explain --add-to-bundle` kept."""
    pictures = []
    for artifact in bundle.select(kind="explanation"):
        try:
            content = bundle.file(artifact).read_bytes()
        except (BundleError, OSError) as error:
            progress.note(f"Note: {artifact.path} is left out of the report: {error}")
            continue
        pictures.append({"name": Path(artifact.path).stem, "png": base64.b64encode(content).decode("ascii")})
    return tuple(pictures)


_NOT_THE_MODEL = ("bench", "analysis", "explanation")
_LAYER = ("layer", "kind", "macs_share", "sqnr_db", "logits_db", "drop", "agreement")
