"""Rules on floating-point types: what overflows in FP16, and what stays in FP32 where types are taken at their word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.lint.findings import Place
from vitdeploy.compiler.lint.graph import PRODUCTS, QDQ, LintGraph, label, place, scalar
from vitdeploy.compiler.passes.values import constant, producer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["decomposed_layernorm", "fp16_weight", "fp32_only", "fp32_remainder"]

_LARGEST = float(np.finfo(np.float16).max)
_SKIPPED = ("Cast", *QDQ)


def decomposed_layernorm(graph: LintGraph) -> Iterator[Place]:
    """mean((x - mean x)^2), or mean(x^2), and a root behind: from |x| = 256 on the square is beyond FP16."""
    for node in graph.nodes:
        square = None if node.op_type != "ReduceMean" or node.inputs[0] is None else node.inputs[0].producer()
        if square is None or not _is_square(square) or not _root_follows(node):
            continue
        kind = square.outputs[0].dtype
        if kind is not None and (kind.name != "FLOAT" if not graph.has_half else kind.name != "FLOAT16"):
            continue
        if graph.has_half and kind is None:
            continue
        what = "LayerNorm" if producer(square.inputs[0], "Sub") is not None else "RMSNorm"
        yield place(square, f"{{}} squares the activation of a {what} in pieces")


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Pow":
        return scalar(node.inputs[1]) == 2
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _root_follows(mean: ir.Node) -> bool:
    sums = [use.node for use in mean.outputs[0].uses() if use.node.op_type == "Add"]
    behind = [use.node.op_type for node in sums for use in node.outputs[0].uses()]
    return any(op_type in ("Sqrt", "Pow") for op_type in behind)


def fp32_remainder(graph: LintGraph) -> Iterator[Place]:
    """The first node of each connected region of the model in FP32, where the rest is quantised or in half precision.

    Casts and Q/DQ only cross borders; what is done to pixels in front of the first product is preprocessing.
    """
    if not graph.is_quantized and not graph.has_half:
        return
    preprocessing = _before_products(graph)
    nodes = [node for node in graph.nodes if node.name not in graph.intended and node not in preprocessing]
    for node in _regions(nodes):
        yield place(node, f"FP32 island at {node.name or node.op_type}")


def _before_products(graph: LintGraph) -> set[ir.Node]:
    """What depends on uint8 pixels, and on no product."""
    pixels = {v for v in graph.model.graph.inputs if v.dtype is not None and v.dtype.name == "UINT8"}
    found: set[ir.Node] = set()
    reached = set(pixels)
    for node in graph.nodes:
        known = [value in reached or value.const_value is not None for value in node.inputs if value is not None]
        if node.op_type not in PRODUCTS and all(known) and any(value in reached for value in node.inputs):
            found.add(node)
            reached.update(node.outputs)
    return found


def _regions(nodes: list[ir.Node]) -> list[ir.Node]:
    import onnx_ir as ir

    single = [
        node
        for node in nodes
        if node.op_type not in _SKIPPED
        and any(value.dtype == ir.DataType.FLOAT and not value.is_graph_output() for value in node.outputs)
    ]
    order = {node: index for index, node in enumerate(single)}
    region: dict[ir.Node, ir.Node] = {}  # node -> the first of its region
    for node in single:
        before = {
            region[p] for p in (v.producer() for v in node.inputs if v is not None) if p is not None and p in region
        }
        first = min(before, key=order.__getitem__, default=node)
        region[node] = first
        if before - {first}:
            for other, root in region.items():
                if root in before:
                    region[other] = first
    return list(dict.fromkeys(region.values()))


def fp32_only(graph: LintGraph) -> Iterator[Place]:
    """A float graph without a half: its types say FP32, and no builder flag says otherwise any more."""
    if not graph.is_quantized and not graph.has_half and graph.macs:
        yield Place("", f"all {len(graph.macs)} products compute in FP32")


def fp16_weight(graph: LintGraph) -> Iterator[Place]:
    """Constants of an FP32 graph that float16 does not reach; -inf, which a mask may hold, is there too."""
    if graph.has_half:
        return
    seen = set[str]()
    for node in graph.nodes:
        for value in node.inputs:
            array = constant(value)
            if value is None or array is None or array.dtype != np.float32 or (value.name or "") in seen:
                continue
            seen.add(value.name or "")
            largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
            if largest > _LARGEST:
                text = f"{value.name}, which {label(node)} reads, holds {largest:.4g}; float16 ends at {_LARGEST:,.0f}"
                yield place(node, text)
