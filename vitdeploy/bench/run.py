"""The benchmark of a bundle: which forms, on which images, the report about them, and what the bundle keeps of it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_type_hints

from vitdeploy.backends.registry import packages, runs_bundles
from vitdeploy.bench.assemble import assemble
from vitdeploy.bench.forms import Form, baseline_forms, bundle_forms, choose
from vitdeploy.bench.latency import WallClock
from vitdeploy.bench.machine import machine, public_text, usable_cores, versions
from vitdeploy.bench.measurement import Benchmark
from vitdeploy.bench.phases import time_decoding
from vitdeploy.bench.sensors import Sensors, gpu_mhz
from vitdeploy.bundle import CALIBRATIONS, Bundle
from vitdeploy.bundle.measurements import REPORT
from vitdeploy.core import interrupts, progress
from vitdeploy.core.decoding import decode
from vitdeploy.core.errors import BundleError, DatasetError
from vitdeploy.core.machine import identity
from vitdeploy.core.precisions import title
from vitdeploy.core.specs import Choice
from vitdeploy.core.storage import read_json
from vitdeploy.data import ImageDataset, stratified_sample
from vitdeploy.data.labels import LabelMatch, match_dataset
from vitdeploy.evaluation.vectors import classes_of
from vitdeploy.models.tasks import CLASSES, EMBEDDING, TASKS, TaskRequest
from vitdeploy.report.circumstances import AnalysedLayer, LayerAnalysis, Picture
from vitdeploy.report.recommendation import can_show, choice, headline
from vitdeploy.report.records import BenchReport, Row
from vitdeploy.report.settings import BenchSettings

__all__ = ["bench", "chosen_form", "save"]


def bench(
    bundle: Bundle | str | Path,
    dataset: ImageDataset,
    settings: BenchSettings | None = None,
    *,
    baseline: str | Path | None = None,
    trust_remote_code: bool = False,
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
        trust_remote_code: run Python code that comes with the baseline.
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
    match = _matched(dataset, opened, settings.match_labels) if settings.accuracy else None
    images = dataset if settings.limit is None else stratified_sample(dataset, settings.limit, seed=settings.seed)
    threads, threshold = settings.threads or usable_cores(), _threshold(opened, settings.threshold)
    settings = replace(settings, threads=threads, threshold=threshold)
    forms = _forms(opened, settings, baseline, trust_remote_code)
    here = machine()
    sensors = Sensors(len(here["gpu"]))
    benchmark = _benchmark(forms, images, opened.manifest.width, settings, sensors)
    partial = _run(benchmark)
    facts = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": here,
        "versions": versions(packages()),
        "dataset": public_text({**images.describe(), "matching": match and match.to_json()}),
        "settings": replace(settings, image_sizes=tuple(dict.fromkeys(p.image_size for p in benchmark.points))),
        "readings": tuple(sensors.taken),
        "partial": partial,
    }
    reference = _reference_note(benchmark, forms, baseline)
    reference = reference or _other_weights(opened, forms[0])
    facts |= {"notes": _notes(opened, dataset, images, match, reference), **_bundle_facts(opened)}
    return assemble(benchmark, images, _truth(opened, images, match), facts, TASKS[opened.manifest.task])


def _notes(
    bundle: Bundle, dataset: ImageDataset, images: ImageDataset, match: LabelMatch | None, reference: str | None
) -> tuple[str, ...]:
    """What one must know beside the numbers; `images` are those of `dataset` that were looked at."""
    notes = [
        match and match.sentence,
        _carve_note(dataset),
        _forced_note(bundle),
        reference,
        _limit_note(len(images), len(dataset)),
    ]
    return tuple(note for note in notes if note)


def _truth(bundle: Bundle, images: ImageDataset, match: LabelMatch | None) -> Any:
    """What is right of each image, as the model's task has it."""
    if TASKS[bundle.manifest.task].kind is EMBEDDING:
        return classes_of(images)
    if match is None:
        return images.label_ids
    return match.of(images) if images.label_sets is None else match.sets_of(images)


def _request(bundle: Bundle) -> TaskRequest:
    """What the baseline is asked: what the bundle answers."""
    manifest = bundle.manifest
    if manifest.embedding is not None:
        return TaskRequest("embedding", manifest.embedding.normalized)
    words = manifest.provenance.get("zero_shot")
    if words is not None:
        return TaskRequest("zero-shot", labels=manifest.labels, templates=tuple(words["templates"]))
    return CLASSES


def _matched(dataset: ImageDataset, bundle: Bundle, way: str) -> LabelMatch | None:
    """The dataset's labels among the model's, where both are one class an image or both are several; None of an
    embedding, which has none.

    Raises:
        DatasetError, ModelError: they do not fit.
    """
    task, several = TASKS[bundle.manifest.task], dataset.label_sets is not None
    if task.kind is EMBEDDING:
        return None
    if several and not task.several:
        raise DatasetError(
            f"{dataset} has several labels an image, and {bundle.path} gives {task.title}",
            hint="name a column with one class an image (--label-column), or measure times alone: --no-accuracy",
        )
    if not several:
        hint = "measure times alone: --no-accuracy"
        if task.several:
            hint = f"name a table with a column of lists of labels (--label-column), or {hint}"
        task.require_single_label(str(bundle.path), f"accuracy on {dataset}, which has one class an image,", hint)
    return match_dataset(dataset, bundle.manifest.labels, way, several=several)


def _threshold(bundle: Bundle, given: float | None) -> float | None:
    """From which score a label counts, of a model with several; None of the others."""
    task = TASKS[bundle.manifest.task]
    return task.threshold(bundle.manifest.threshold if given is None else given, str(bundle.path))


def save(report: BenchReport, bundle: Bundle, html: str) -> Choice | None:
    """Keep the report in its bundle as bench/report.json and bench/report.html, and the form it recommends.

    Returns:
        The choice that was written, for `load` to find; None where nothing may be recommended (it was interrupted, or
        every form breaks a limit): then the bundle has none from here on.

    Raises:
        VitdeployError: the bundle can't be written to.
    """
    choice = chosen_form(report)
    with bundle.edit(patient=True) as editor:
        for name, text in ((REPORT, report.dumps() + "\n"), ("bench/report.html", html)):
            editor.path_for(name).write_text(text, encoding="utf-8")
            editor.add(name, kind="bench", built_with={"created": report.created})
        editor.update(choice=choice)
    return choice


def chosen_form(report: BenchReport) -> Choice | None:
    """The best form that `load` can open, by the wish of the report: PyTorch and forms built from are left out."""
    rows = [row for row in report.rows if runs_bundles(row.backend) and "-" not in row.form]
    best = None if report.partial else choice(rows, report.settings)
    if best is None:
        return None
    # PyTorch may be the best of all and still not be what a bundle can hold.
    why = headline(replace(report, rows=tuple(row for row in report.rows if row is best)))
    return Choice(
        precision=best.form,
        backend=best.backend,
        why=why,
        report=REPORT,
        machine=identity(),
        max_drop=report.settings.max_drop_points if _shown(best, report) else None,
        sha256=best.artifact.sha256 if best.artifact is not None else None,
    )


def _shown(row: Row, report: BenchReport) -> bool:
    return row.quality is not None and can_show(row.quality.count, report.settings.max_drop_points)


def _forms(bundle: Bundle, settings: BenchSettings, baseline: str | Path | None, trusted: bool) -> list[Form]:
    threads = settings.threads or usable_cores()
    forms = bundle_forms(bundle, threads, backends=settings.backends, performance=settings.performance)
    forms = choose(forms, settings.backends, settings.precisions)
    if baseline is None:
        return forms
    compared = baseline_forms(
        baseline,
        threads,
        variants=settings.baselines,
        device=settings.device,
        trust_remote_code=trusted,
        request=_request(bundle),
    )
    return [*compared, *forms]


def _benchmark(
    forms: list[Form], images: ImageDataset, width: int, settings: BenchSettings, sensors: Sensors
) -> Benchmark:
    decode_ms = None
    if settings.latency and settings.phases:
        decode_ms = time_decoding(images, WallClock())
    return Benchmark(forms, images, width, settings, decode_ms=decode_ms, between=sensors, gpu_clock=gpu_mhz)


def _run(benchmark: Benchmark) -> bool:
    """Run; say whether it was interrupted. An interruption before anything was measured passes through."""
    try:
        benchmark.run()
    except KeyboardInterrupt:
        interrupts.acknowledge()
        found = benchmark.measurements.values()
        if not any(
            measurement.tracks or (measurement.answers and measurement.answers.done.any()) for measurement in found
        ):
            raise
        progress.note("Interrupted: the report holds what was measured so far, and is marked partial.")
        return True
    return False


def _reference_note(benchmark: Benchmark, forms: list[Form], baseline: str | Path | None) -> str | None:
    if benchmark.reference is None:
        return None
    reference = benchmark.measurements[benchmark.reference]
    if baseline is not None and benchmark.reference == forms[0].key:
        if reference.failure is None:
            return None
        missing = [word for word, there in (("time", reference.tracks), ("answer", reference.answers)) if not there]
        without = f", so there is no {' and no '.join(missing)} to compare with" if missing else ""
        return f"the baseline failed ({public_text(reference.failure)}){without}"
    row = reference.form
    why = "the baseline could not be run" if baseline is not None else "no baseline was named (--baseline MODEL)"
    return f"{why}, so {row.key} is what the others are compared with"


def _other_weights(bundle: Bundle, baseline: Form) -> str | None:
    """That the baseline is another checkpoint than the bundle's: then what differs is not of the forms alone."""
    known = bundle.manifest.model.get("weights_sha256")
    digest = None if baseline.artifact is None else baseline.artifact.sha256
    if baseline.backend != "pytorch" or None in (known, digest) or known == digest:
        return None
    return "the baseline's weights are not those that the bundle was exported from: what differs may be the model"


def _carve_note(dataset: ImageDataset) -> str | None:
    if dataset.carved_from is None:
        return None
    return f"{dataset.name} has no splits: {dataset.split} is {len(dataset)} of its {dataset.carved_from} images"


def _forced_note(bundle: Bundle) -> str | None:
    """What a calibration's check found, where a form was kept in spite of it."""
    found = []
    for precision, kind in CALIBRATIONS.items():
        calibration = bundle.find(kind=kind)
        check = None if calibration is None else calibration.built_with.get("check")
        if isinstance(check, dict) and check.get("forced"):
            problem = public_text(check.get("problem"))
            found.append(f"{title(precision)}'s calibration was forced, although {problem}")
    return "; ".join(found) or None


def _limit_note(drawn: int, there: int) -> str | None:
    return f"{drawn} of {there} images, drawn so that every class keeps its share" if drawn < there else None


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """What a report says of the bundle itself."""
    manifest = replace(bundle.manifest, choice=None).to_json()
    # Reports and what they lead to are kept in the bundle themselves, so they are left out of what identifies it.
    manifest["artifacts"] = [item for item in manifest["artifacts"] if item["kind"] not in _NOT_THE_MODEL]
    content = json.dumps(manifest, sort_keys=True, ensure_ascii=False).encode()
    return {
        "bundle": {
            "name": bundle.path.resolve().name,
            "model": public_text(bundle.manifest.model),
            "manifest_sha256": hashlib.sha256(content).hexdigest(),
        },
        "labels": bundle.manifest.labels,
        "analysis": _analysis(bundle),
        "explanation": _explanation(bundle),
    }


def _analysis(bundle: Bundle) -> LayerAnalysis | None:
    """What `vitdeploy analyze` found of each layer, where the bundle holds it and it can be read."""
    artifact = bundle.find(kind="analysis")
    if artifact is None:
        return None
    try:
        data = read_json(bundle.file(artifact))
        found = decode(tuple[AnalysedLayer, ...], data.get("rows") if isinstance(data, dict) else None, "rows")
        rows: list[Any] = [{name: row.get(name) for name in get_type_hints(AnalysedLayer)} for row in found]
        precision = decode(str | None, data.get("precision"), "precision")
        return {"precision": precision, "data": public_text(data.get("data")), "rows": rows}
    except (BundleError, OSError, ValueError) as error:
        progress.note(f"Note: {artifact.path} is left out of the report: {error}")
        return None


def _explanation(bundle: Bundle) -> tuple[Picture, ...]:
    """The pictures that `vitdeploy explain --add-to-bundle` kept."""
    pictures: list[Picture] = []
    for artifact in bundle.select(kind="explanation"):
        try:
            content = bundle.file(artifact).read_bytes()
        except (BundleError, OSError) as error:
            progress.note(f"Note: {artifact.path} is left out of the report: {error}")
            continue
        pictures.append({"name": Path(artifact.path).stem, "png": base64.b64encode(content).decode("ascii")})
    return tuple(pictures)


_NOT_THE_MODEL = ("bench", "analysis", "explanation")
