"""A file or a bundle -> its graphs, each looked at for what it is made for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.compiler.float16.plan import HalfPlan
from vitdeploy.compiler.lint.feeds import feeds_for
from vitdeploy.compiler.lint.findings import CPU, TARGETS, TENSORRT
from vitdeploy.compiler.lint.graph import LintGraph
from vitdeploy.compiler.lint.measure import measure
from vitdeploy.compiler.lint.reading import read_graph
from vitdeploy.compiler.lint.report import GraphReport, LintReport
from vitdeploy.compiler.lint.request import ImageRequest
from vitdeploy.compiler.lint.rules import apply
from vitdeploy.core import precisions
from vitdeploy.core.errors import BundleError, InputError
from vitdeploy.core.text import quoted

__all__ = ["lint"]


def lint(
    path: str | os.PathLike[str], *, targets: Sequence[str] | None = None, images: ImageRequest | None = None
) -> LintReport:
    """Say what will go wrong with a graph, and where.

    Args:
        path: an ONNX file of any exporter, or a bundle, of which every graph is looked at.
        targets: of `tensorrt-10.3`, `tensorrt-11`, `tensorrt-rtx` and `cpu`; None: the three of TensorRT, and `cpu` for
            a bundle's graph that was made for CPUs.
        images: what to run it on, for ranges, overflow and each node's signal-to-noise ratio; None: it is not run.

    Raises:
        ModelError: the file is missing, damaged, or no ONNX file; or the file of its weights is.
        BundleError: the bundle is damaged, or has no graph.
        InputError: a target that there is not, or images that don't fit the graph.
        DatasetError: there are no such images.
        DependencyError: the package onnx is not installed, or what runs or prepares images.

    Example:
        lint("model.onnx").worst
    """
    place = Path(path)
    unknown = [name for name in targets or () if name not in TARGETS]
    if unknown:
        raise InputError(f"there is no target {unknown[0]!r}", hint=f"take one of {', '.join(TARGETS)}")
    if place.is_dir():
        return _of_bundle(Bundle.open(place), targets, images)
    return LintReport(place, (_look(place, place.name, tuple(targets or TENSORRT), images=images),))


def _of_bundle(bundle: Bundle, targets: Sequence[str] | None, images: ImageRequest | None) -> LintReport:
    artifacts = bundle.select(kind="onnx")
    if not artifacts:
        raise BundleError(f"{bundle.path} has no graphs", hint="export the model again")
    found = []
    for artifact in artifacts:
        own = (CPU,) if artifact.target == "cpu" else TENSORRT
        wanted = own if targets is None else tuple(name for name in targets if name in own)
        if wanted:
            place, intended = bundle.file(artifact), _intended(bundle, artifact)
            found.append(_look(place, artifact.path, wanted, intended, images))
    if not found:
        raise InputError(
            f"{bundle.path} has no graph for {', '.join(targets or ())}",
            hint=f"leave --target out, or build a form for it: vitdeploy build-engine {quoted(bundle.path)} --fp16",
        )
    return LintReport(bundle.path, tuple(found))


def _intended(bundle: Bundle, artifact: Artifact) -> frozenset[str]:
    """The nodes that a bundle's own form keeps in FP32 on purpose."""
    kept = frozenset(entry["node"] for entry in artifact.built_with.get("kept_fp32") or ())
    plan = next((a for a in bundle.select(kind="half-plan") if a.built_from == artifact.built_from), None)
    return kept | (frozenset() if plan is None else HalfPlan.load(bundle.file(plan)).names)


def _look(
    path: Path,
    file: str,
    targets: tuple[str, ...],
    intended: frozenset[str] = frozenset(),
    images: ImageRequest | None = None,
) -> GraphReport:
    model = read_graph(path)
    measured = None if images is None else measure(path, feeds_for(model, images), str(images))
    graph = LintGraph(model, intended, measured=measured)
    macs = sum(graph.macs.values())
    return GraphReport(
        file=file,
        targets=targets,
        precision=_precision(graph),
        opset=model.opset_imports.get("", model.opset_imports.get("ai.onnx")),
        producer=f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        products=len(graph.macs),
        unknown_products=graph.unknown,
        macs=macs or None,
        share=graph.share,
        findings=apply(graph, targets),
        measured=measured,
    )


def _precision(graph: LintGraph) -> str:
    """ "INT8 and FP16"."""
    kinds = {value.dtype.name for node in graph.nodes for value in node.outputs if value.dtype is not None}
    titles = {"FLOAT16": "FP16", "BFLOAT16": "BF16", "FLOAT": "FP32", "DOUBLE": "FP64"}
    floats = [title for kind, title in titles.items() if kind in kinds]
    numbers = [graph.numbers.title] if graph.is_quantized else []
    return " and ".join([*numbers, *floats]) or precisions.title("fp32")
