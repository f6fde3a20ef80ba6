"""`vitdeploy inspect`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vitdeploy.backends.registry import backend_title
from vitdeploy.cli.engine_report import engine_rows, show_layers
from vitdeploy.cli.terminal import echo_json, new_console
from vitdeploy.cli.types import revision_option
from vitdeploy.core.precisions import precisions, title
from vitdeploy.core.text import on_one_line, quoted
from vitdeploy.models.tasks import TASKS

if TYPE_CHECKING:
    from vitdeploy.bundle import Artifact
    from vitdeploy.core.specs import TensorSpec
    from vitdeploy.inspection.bundle import BundleReport, FileReport, FileState
    from vitdeploy.inspection.graph import GraphFacts

__all__ = ["command"]

_LABELS_SHOWN = 10
_OPERATORS_SHOWN = 12


@click.command("inspect")
@click.argument("path", metavar="BUNDLE_OR_FILE")
@click.option("--layers", is_flag=True, help="List every layer of an engine; needs a GPU.")
@click.option(
    "--trusted",
    is_flag=True,
    help="Load an engine that no bundle describes: it can run code, so only load what you trust.",
)
@revision_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(path: str, layers: bool, trusted: bool, revision: str | None, as_json: bool) -> None:
    """Show what is in a bundle, an ONNX file, an engine or another file of a bundle.

    A bundle is a folder, or OWNER/NAME of one on the Hugging Face Hub, which is fetched into its cache.

    Every file is compared with the hash in the manifest; if one is missing or changed the exit code is 1. No GPU is
    needed, and for a bundle no optional package; to look inside an ONNX file, the package onnx. The file of a
    TensorRT-RTX engine says which kernels it runs, what products compute in, and whether a call waits for the GPU in
    its middle. On a GPU an engine is also loaded, and TensorRT says what its layers run in: how many products that the
    graph asks to be INT8 are.

    The JSON of a bundle has schema_version, type ("bundle"), name, model, task, embedding (pooling, normalized,
    dimensions, or null), labels, preprocess, preprocess_text, inputs, outputs, artifacts (the manifest's entries with
    state: ok, changed or missing, and stale: why it should be made again, or null), sound, calibration (INT8's: recipe,
    images, check, budget), calibrations (by precision), checks, bench, choice (of the last benchmark, or null) and
    provenance. That of a file has schema_version, type ("onnx", "engine" or "file"), name, size_bytes, artifact (its
    entry), graph (opsets, inputs, outputs, operators, parameters, weights by type, quantize_nodes, dequantize_nodes,
    products, int8_products, fp8_products) and engine (asked: precision, products, int8_products, layers; plan: kernels,
    products, attention, host_copies, jumps, capturable, text_bytes, by_precision, or null; found: layers, tensors,
    by_precision, fused; int8: asked, running, elsewhere, unknown; memory: scratch_bytes, aux_streams; reason: why
    nothing was found).

    \b
    Example:
      vitdeploy inspect bundles/vit
      vitdeploy inspect bundles/vit/model.int8.onnx
      vitdeploy inspect bundles/vit/engines/tensorrt-rtx-int8.engine --json
    """
    from vitdeploy.inspection.bundle import BundleReport, inspect

    report = inspect(path, trusted=trusted, revision=revision)
    if as_json:
        echo_json(report.to_json())
    elif isinstance(report, BundleReport):
        _show_bundle(new_console(), report)
    else:
        _show_file(new_console(), report)
        if layers and report.engine is not None and report.engine.layers is not None:
            show_layers(report.engine.layers)
    report.require_sound()


def _show_bundle(console: Console, report: BundleReport) -> None:
    from vitdeploy.inspection.bundle import describe_preprocessing

    manifest = report.manifest
    facts = [("Bundle", str(report.path)), ("Model", _model(manifest.model))]
    if manifest.embedding is not None:
        facts.append(("Embedding", str(manifest.embedding)))
    else:
        facts.append(("Labels", _labels(manifest.labels)))
    if manifest.task != "single_label":
        from_score = "" if manifest.threshold is None else f", a label from a score of {manifest.threshold:.4g}"
        facts.append(("Answers", TASKS[manifest.task].title + from_score))
    if "zero_shot" in manifest.provenance:
        facts += _rows("Words in", map(on_one_line, manifest.provenance["zero_shot"]["templates"]))
    facts += _rows("Preprocessing", describe_preprocessing(manifest.preprocess))
    facts += _rows("Input", map(_tensor, manifest.inputs))
    facts += _rows("Output", map(_tensor, manifest.outputs))
    calibrations = report.calibrations
    facts += _rows(
        "Calibration",
        [
            _calibration(found) if tuple(calibrations) == ("int8",) else f"{title(precision)}: {_calibration(found)}"
            for precision, found in calibrations.items()
        ],
    )
    facts += _rows("Budget", [_budget(found["budget"]) for found in calibrations.values() if found["budget"]])
    _show_facts(console, facts)
    console.print("\nFiles", style="bold")
    _show_files(console, report.files)
    if report.checks:
        console.print("\nChecks made on export", style="bold")
        for check in report.checks:
            _show_check(console, check)
    if report.bench is not None:
        console.print("\nLast benchmark", style="bold")
        console.print(_indented(_bench(report.bench)))
    choice = report.manifest.choice
    if choice is not None:
        where = ", ".join(filter(None, [choice.machine.get("cpu"), *choice.machine.get("gpu", [])]))
        console.print(_indented(f"Chosen on {where}: {choice.precision} on {choice.backend}; load() takes it there."))
    stale = [file.artifact for file in report.files if file.stale]
    if stale:
        options = [f"--{precision}" for precision in precisions() if precision in {a.precision for a in stale}]
        options += ["--calibration-data DATASET"] if any(a.kind.endswith("calibration") for a in stale) else []
        line = " ".join(["vitdeploy build-engine", quoted(report.path), *options])
        console.print(f"\nNext: {line}", soft_wrap=True, markup=False)


def _show_file(console: Console, report: FileReport) -> None:
    facts = [("File", str(report.path)), ("Size", _size(report.size_bytes))]
    if report.bundle is not None:
        facts.append(("Bundle", str(report.bundle)))
    if report.state is not None:
        artifact = report.state.artifact
        facts += [("Kind", _kind(artifact)), ("Made for", backend_title(artifact.target))]
        made = _built_with(artifact)
        facts += [("Built with", made)] if made else []
        facts.append(("State", _STATES[report.state.state]))
        facts += [("Out of date", report.state.stale)] if report.state.stale else []
    elif report.bundle is not None:
        facts.append(("State", "not in the bundle's manifest"))
    if report.graph is not None:
        facts += _graph(report.graph)
    if report.engine is not None:
        facts += engine_rows(report.engine)
    _show_facts(console, facts)
    if report.state is not None and isinstance(report.state.artifact.built_with.get("check"), dict):
        console.print()
        _show_check(console, report.state.artifact.built_with["check"])


def _graph(graph: GraphFacts) -> list[tuple[str, str]]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in graph.opsets.items())
    facts = [("Opset", f"{opsets} (IR {graph.ir_version}), written by {graph.producer or 'an unnamed program'}")]
    facts += _rows("Input", map(_tensor, graph.inputs))
    facts += _rows("Output", map(_tensor, graph.outputs))
    facts.append(("Parameters", f"{graph.parameters:,}"))
    facts += _rows(
        "Weights",
        [
            f"{dtype}: {count.elements:,} in {count.tensors} tensors, {_size(count.size_bytes)}"
            for dtype, count in graph.weights.items()
        ],
    )
    if graph.quantize_nodes or graph.dequantize_nodes:
        facts.append(("Q/DQ", f"{graph.quantize_nodes} QuantizeLinear, {graph.dequantize_nodes} DequantizeLinear"))
    facts.append(("Products", _products(graph)))
    shown = list(graph.operators.items())[:_OPERATORS_SHOWN]
    rest = len(graph.operators) - len(shown)
    operators = ", ".join(f"{count} {name}" for name, count in shown) + (f" and {rest} other kinds" if rest else "")
    facts.append(("Operators", f"{sum(graph.operators.values())}: {operators}"))
    return facts


_STATES = {
    "ok": "matches its SHA-256 in the manifest",
    "changed": "CHANGED: it is not the file that the manifest describes",
    "missing": "MISSING",
}


def _show_files(console: Console, files: tuple[FileState, ...]) -> None:
    """Two lines a file, so that long paths and what it was built with both fit in 80 columns."""
    head = ("file", "kind", "for", "size", "hash")
    lines = [
        (f.artifact.path, _kind(f.artifact), f.artifact.target, _size(f.artifact.size_bytes), f.state) for f in files
    ]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    console.print(Text(_aligned(head, widths), style="dim"), soft_wrap=True)
    for file, line in zip(files, lines, strict=True):
        style = "" if file.state == "ok" else "bold red"
        shown = (*line[:-1], file.state if file.state == "ok" else file.state.upper())
        console.print(Text(_aligned(shown, widths), style=style), soft_wrap=True)
        made = _built_with(file.artifact)
        if made:
            console.print(_indented(made, style="dim"))
        if file.stale:
            console.print(_indented(f"out of date: {file.stale}", style="yellow"))


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell.rjust(width) if place == 3 else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  " + "  ".join(padded).rstrip()


def _built_with(artifact: Artifact) -> str:
    """What made a file, in words; the manifest's entry in the JSON has all of it."""
    made = artifact.built_with
    parts = [f"{name} {number}" for name, number in (made.get("versions") or {}).items()]
    if "vitdeploy" in made:
        parts.append(f"vitdeploy {made['vitdeploy']}")
    runtime = made.get("tensorrt")
    if isinstance(runtime, dict):
        parts.append(f"{backend_title(str(runtime.get('flavour', 'tensorrt')))} {runtime.get('version')}")
    capabilities = made.get("compute_capabilities") or made.get("compute_capability")
    if capabilities:
        listed = ", ".join(capabilities) if isinstance(capabilities, list) else str(capabilities)
        gpu = f"{made['gpu']}, " if made.get("gpu") else ""
        parts.append(f"for {gpu}compute capability {listed}")
    parts += [f"driver {made['driver']}"] if made.get("driver") else []
    parts += _profiles(made.get("profiles") or [])
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in (made.get("flags") or {}).items()]
    if "build_seconds" in made:
        parts.append(f"built in {made['build_seconds']:.1f} s")
    if "calibration_sha256" in made:
        parts.append(f"calibration {str(made['calibration_sha256'])[:12]}")
    parts += _kept_in_single(made)
    parts += [f"measured {made['created']}"] if "created" in made else []
    return ", ".join(parts)


def _kept_in_single(made: dict[str, Any]) -> list[str]:
    """What a half-precision form keeps in FP32, and the reason of the first such node."""
    parts = [f"mean |difference| {made['mean_logit_difference']:.2g}"] if "mean_logit_difference" in made else []
    kept = made.get("kept_fp32")
    if kept:
        parts.append(f"{len(kept)} nodes in FP32 ({kept[0]['why']})")
    return parts


def _profiles(profiles: Iterable[dict[str, dict[str, list[int]]]]) -> list[str]:
    """What each optimization profile lets an input be: "image 1x1x1x3 to 8x1080x1920x3, fastest at 1x112x112x3"."""

    def size(shape: list[int]) -> str:
        return "x".join(map(str, shape))

    return [
        f"{name} {size(shapes['min'])} to {size(shapes['max'])}, fastest at {size(shapes['opt'])}"
        for profile in profiles
        for name, shapes in profile.items()
    ]


def _products(graph: GraphFacts) -> str:
    count, kind = (graph.fp8_products, "FP8") if graph.fp8_products else (graph.int8_products, "INT8")
    return f"{count} of {graph.products} (MatMul, Gemm, Conv) are on {kind} factors"


def _kind(artifact: Artifact) -> str:
    return f"{artifact.kind} {artifact.precision}" if artifact.precision else artifact.kind


def _model(model: dict[str, Any]) -> str:
    parts = [str(model.get("name", "unnamed"))]
    parts += [str(model["architecture"])] if model.get("architecture") else []
    parts += [f"{model['parameters'] / 1e6:.1f} million parameters"] if model.get("parameters") else []
    source = model.get("source")
    parts += [f"from {source}"] if source and source != "local" else ["from a local folder"] if source else []
    return ", ".join(parts)


def _labels(labels: tuple[str, ...]) -> str:
    rest = len(labels) - _LABELS_SHOWN
    shown = ", ".join(map(on_one_line, labels[:_LABELS_SHOWN]))
    return f"{len(labels)}: {shown}{f' and {rest} more' if rest > 0 else ''}"


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} ({', '.join(map(str, spec.shape))})"


def _calibration(calibration: dict[str, Any]) -> str:
    recipe, images = calibration["recipe"], calibration["images"]
    text = f"{images.get('count', '?')} images of {images.get('name', '?')} ({images.get('split', '?')})"
    settings = [f"method {recipe['method']}"] if "method" in recipe else []
    if recipe.get("method") == "percentile":
        settings.append(f"percentile {recipe.get('percentile')}")
    settings += [name.replace("_", " ") for name in ("smoothing", "bias_correction") if recipe.get(name)]
    check = calibration["check"]
    if check.get("forced"):
        settings.append(f"FORCED, although {check.get('problem')}")
    return ", ".join([text, *settings])


def _budget(budget: dict[str, Any]) -> str:
    """What must be kept, and what was reached."""
    if "sentence" in budget:
        return str(budget["sentence"])
    left = len(budget.get("left_out") or ())  # of a version that wrote no sentence
    return f"a drop of at most {budget.get('max_drop')} points, with {left} groups left out"


def _show_check(console: Console, check: dict[str, Any]) -> None:
    passed = bool(check.get("passed"))
    text = (
        f"{'✓' if passed else '✗'} {check.get('name')}: {check.get('value', float('nan')):.3g}"
        f" {'≤' if passed else '>'} {check.get('tolerance', float('nan')):.3g} {check.get('unit', '')}"
        f" ({check.get('inputs', '?')} inputs)"
    )
    console.print(_indented(text, style="" if passed else "red", by=2))


def _bench(bench: dict[str, Any]) -> str:
    if "error" in bench:
        return f"{bench['path']} can't be read: {bench['error']}"
    text = f"{bench['sentence']} ({bench['images']} images, {bench['created'][:10]}, {bench['path']})"
    return text if bench["current"] else f"{text} Some of what it measured has changed since: measure again."


def _rows(name: str, values: Iterable[str]) -> list[tuple[str, str]]:
    """The name once, beside the first value."""
    return [(name if place == 0 else "", value) for place, value in enumerate(values)]


def _show_facts(console: Console, facts: list[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(value))
    console.print(table)


def _indented(text: str, style: str = "", by: int = 4) -> Padding:
    return Padding(Text(text, style=style), (0, 0, 0, by))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"
