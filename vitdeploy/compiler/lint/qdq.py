"""Rules on QuantizeLinear and DequantizeLinear (Q/DQ): what TensorRT can't fuse, has no kernel for, or can't read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitdeploy.compiler.lint.findings import Place
from vitdeploy.compiler.lint.graph import (
    PRODUCTS,
    LintGraph,
    dequantized,
    is_weight,
    label,
    place,
    readers,
    type_of_integers,
)
from vitdeploy.compiler.passes.values import constant
from vitdeploy.compiler.quantization.arithmetic import INT8
from vitdeploy.compiler.quantization.groups import channel_axis

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "INTEGER",
    "LEAST_SHARE",
    "asymmetric",
    "integer_operators",
    "left_out",
    "one_sided_product",
    "one_sided_residual",
    "per_channel_activation",
    "quantized_bias",
    "quantized_residual",
    "scale_type",
    "too_little",
    "weight_axis",
    "without_product",
]

LEAST_SHARE = 0.1
"""Of the MACs: with less in INT8 a graph is no faster than in FP16."""
_LISTED = 0.01
_BIAS = "INT32"
_FOUR_BITS = ("INT4", "UINT4", "FLOAT4E2M1")  # of weights alone, block by block: another technique
INTEGER = {
    "": ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"),
    "com.microsoft": (
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention", "QGemm", "QLinearAdd", "QLinearMul"),
        *("QLinearSigmoid", "QLinearSoftmax", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearWhere"),
    ),
}


def one_sided_residual(graph: LintGraph) -> Iterator[Place]:
    """An addition of which one side comes from Q/DQ and the other does not: an extra pass over it."""
    for node in graph.nodes:
        if _is_residual(node) and _dequantized_sides(node) == 1:
            yield place(node, "Q/DQ on one side of the residual {}")


def quantized_residual(graph: LintGraph) -> Iterator[Place]:
    """An addition of two activations, both out of Q/DQ."""
    for node in graph.nodes:
        if _is_residual(node) and _dequantized_sides(node) == 2:
            yield place(node, "Q/DQ on both sides of the residual {}")


def _is_residual(node: ir.Node) -> bool:
    return node.op_type == "Add" and not any(is_weight(value) for value in node.inputs)


def _dequantized_sides(node: ir.Node) -> int:
    return sum(dequantized(value) is not None for value in node.inputs[:2])


def one_sided_product(graph: LintGraph) -> Iterator[Place]:
    """A product that can't be done in INT8 since one of its factors is not."""
    for node in graph.nodes:
        if node.op_type in PRODUCTS and _dequantized_sides(node) == 1:
            yield place(node, f"{{}} has only one input in {graph.numbers.title}")


def asymmetric(graph: LintGraph) -> Iterator[Place]:
    """Zero points other than 0, and integers of another type than the one that TensorRT computes with."""
    name = graph.numbers.name
    wanted = "INT8" if graph.numbers is INT8 else "FLOAT8E4M3FN"
    for node in graph.quantizers:
        kind, zero = type_of_integers(node), node.inputs[2] if len(node.inputs) > 2 else None
        points = constant(zero)
        if kind in (_BIAS, *_FOUR_BITS):
            continue
        if kind not in (None, wanted):
            yield place(node, f"{{}} is not symmetric {name}: it is of type {str(kind).lower()}")
        elif zero is not None and points is None:
            yield place(node, f"{{}} is not symmetric {name}: its zero point is computed")
        elif points is not None and points.any():
            worst = max(points.reshape(-1).astype(float), key=abs)
            yield place(node, f"{{}} is not symmetric {name}: its zero point is {worst:g}")


def scale_type(graph: LintGraph) -> Iterator[Place]:
    """A scale in FP32 in a graph of FP16, or the other way round: the types of both sides must agree."""
    for node in graph.quantizers:
        scale = node.inputs[1]
        around = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
        if scale is None or around is None or None in (scale.dtype, around.dtype) or scale.dtype == around.dtype:
            continue
        yield place(node, "{} has a scale of another type than its data")


def per_channel_activation(graph: LintGraph) -> Iterator[Place]:
    """More than one scale for an activation."""
    for node in graph.quantizers:
        scale = constant(node.inputs[1])
        if (
            node.op_type == "DequantizeLinear"
            and scale is not None
            and scale.size > 1
            and not is_weight(node.inputs[0])
        ):
            yield place(node, f"{{}} has {scale.size} scales for one activation")


def weight_axis(graph: LintGraph) -> Iterator[Place]:
    """A weight's scales along another axis than its output channels."""
    for node in graph.quantizers:
        scale = constant(node.inputs[1])
        if node.op_type != "DequantizeLinear" or not is_weight(node.inputs[0]) or scale is None or scale.size == 1:
            continue
        products = [use.node for use in node.outputs[0].uses() if use.node.op_type in PRODUCTS]
        if any(channel_axis(product) != _axis(node) for product in products):
            yield place(node, "{} has its scales along the wrong axis of a weight")


def _axis(node: ir.Node) -> int:
    attribute, data = node.attributes.get("axis"), node.inputs[0]
    given = 1 if attribute is None else attribute.as_int()
    return given + len(data.shape) if given < 0 and data is not None and data.shape is not None else given


def without_product(graph: LintGraph) -> Iterator[Place]:
    """Q/DQ that no product reads: a pass over the tensor for nothing, and a fusion less."""
    for node in graph.quantizers:
        if node.op_type == "QuantizeLinear":
            lost = {use.node.op_type for use in node.outputs[0].uses()} - {"DequantizeLinear"}
            verb, end = "is read by", ""
        elif type_of_integers(node) == _BIAS:
            continue
        else:
            reading = readers(node.outputs[0])
            allowed = (*PRODUCTS, "Shape", "Size")  # these look at no number
            lost = {each.op_type for each in reading if each.op_type not in allowed and not _is_residual(each)}
            verb, end = "feeds", ", not a product"
        if lost:
            yield place(node, f"{{}} {verb} {', '.join(sorted(lost))}{end}")


def quantized_bias(graph: LintGraph) -> Iterator[Place]:
    """A DequantizeLinear of int32, as other tools write biases."""
    for node in graph.quantizers:
        if node.op_type == "DequantizeLinear" and type_of_integers(node) == _BIAS:
            yield place(node, "{} dequantises an int32 bias")


def integer_operators(graph: LintGraph) -> Iterator[Place]:
    """INT8 by operators on integers where Q/DQ is wanted."""
    for node in graph.every:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if node.op_type in INTEGER.get(domain, ()):
            yield place(node, f"{{}} is a {node.op_type}")


def too_little(graph: LintGraph) -> Iterator[Place]:
    """Hardly any of the multiply-accumulates in INT8; none where no shape is known."""
    if graph.is_quantized and (graph.share or 0.0) < LEAST_SHARE and (graph.share is not None or not graph.inside):
        share = graph.share or 0.0
        yield Place("", f"only {share:.1%} of the multiply-accumulates are in {graph.numbers.title}")


def left_out(graph: LintGraph) -> Iterator[Place]:
    """The products of a quantised graph that are not, with their shares of the MACs."""
    total, inside = sum(graph.macs.values()), set(graph.inside)
    if not graph.quantizers or not total:
        return
    outside = sorted((node for node in graph.macs if node not in inside), key=lambda node: -graph.macs[node])
    large = [node for node in outside if graph.macs[node] >= _LISTED * total]
    for node in large:
        yield place(node, f"{{}} has {graph.macs[node] / total:.1%} of the MACs and is not in {graph.numbers.title}")
    small = [node for node in outside[len(large) :] if graph.macs[node]]
    if small:
        share = sum(graph.macs[node] for node in small) / total
        name, more = label(small[0]), len(small) - 1
        first, verb = (f"{name} and {more} smaller ones have", "are") if more else (f"{name} has", "is")
        yield place(small[0], f"{first} {share:.2%} of the MACs and {verb} not in {graph.numbers.title}")
