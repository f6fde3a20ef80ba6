"""The model in half precision, the preprocessing in single: a strongly typed graph.

Every float32 weight and activation between `pixel_values` and the outputs becomes float16; one cast stands in front
and one behind each output, so inputs and outputs keep their types. LayerNormalization keeps its mean and variance in
float32 (`stash_type` 1): a float16 square overflows from |x| = 256 on. No builder flag decides a precision: TensorRT
10, 11 and RTX, ONNX Runtime and OpenVINO all run what the graph says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.graph.compose import PIXEL_VALUES
from vitdeploy.compiler.graph.result import PassResult
from vitdeploy.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["model_nodes", "to_half"]

_LARGEST = float(np.finfo(np.float16).max)
# Inputs that the ONNX specification holds at float32 whatever the data is.
_ALWAYS_SINGLE = {("Resize", 1), ("Resize", 2)}


def model_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes behind `pixel_values`, in order; all nodes of a graph without preprocessing."""
    front: set[ir.Node] = set()
    pending = [node for node in model.graph if any(value.name == PIXEL_VALUES for value in node.outputs)]
    while pending:
        node = pending.pop()
        if node in front:
            continue
        front.add(node)
        pending.extend(p for p in (value.producer() for value in _reads(node)) if p is not None)
    return [node for node in model.graph if node not in front]


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, also from inside the branches of an If."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            for inner in attribute.as_graph():
                yield from _reads(inner)


def to_half(model: ir.Model) -> PassResult:
    """Rewrite `model` in place.

    Raises:
        ModelError: a weight is outside float16's range; the message names it.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    graph = model.graph
    nodes = model_nodes(model)
    if any(value.dtype is None for node in nodes for value in node.outputs):
        common.ShapeInferencePass()(model)
    halves: dict[str, ir.Value] = {}
    casts: dict[ir.Value, ir.Value] = {}
    single, half = ir.DataType.FLOAT, ir.DataType.FLOAT16
    inside = set(nodes)

    def from_outside(value: ir.Value) -> ir.Value:
        if value not in casts:
            cast = ir.node("Cast", [value], attributes={"to": half}, name=f"{value.name}/to_half")
            cast.outputs[0].name = f"{value.name}_half"
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(half), value.shape
            graph.insert_before(nodes[0], cast)
            casts[value] = cast.outputs[0]
        return casts[value]

    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != single or (node.op_type, index) in _ALWAYS_SINGLE:
                continue
            if value.const_value is not None and value.is_initializer():
                if value.name not in halves:
                    halves[value.name or ""] = _half_initializer(graph, value)
                node.replace_input_with(index, halves[value.name or ""])
            elif value.producer() not in inside:
                node.replace_input_with(index, from_outside(value))
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == single:
            node.attributes["to"] = ir.AttrInt64("to", int(half))
        for value in node.outputs:
            if value.dtype == single:
                value.type = ir.TensorType(half)
    for name in halves:
        if not graph.initializers[name].uses():
            del graph.initializers[name]
    for value in halves.values():
        name = (value.name or "").removesuffix(".half")
        if name not in graph.initializers:
            value.name = name
    _cast_outputs(model)
    return PassResult("to-half", len(nodes))


def _half_initializer(graph: ir.Graph, value: ir.Value) -> ir.Value:
    from vitdeploy.compiler.graph.values import new_initializer

    assert value.const_value is not None
    array = value.const_value.numpy()
    # -inf is how a mask says never, and float16 has it too
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if largest > _LARGEST:
        raise ModelError(
            f"{value.name} holds {largest:.4g}, outside float16 (largest {_LARGEST:.0f})",
            hint="keep this model at FP32 or use INT8 with an FP32 remainder (--target onnx)",
        )
    return new_initializer(graph, f"{value.name}.half", array.astype(np.float16))


def _cast_outputs(model: ir.Model) -> None:
    import onnx_ir as ir

    graph = model.graph
    for index, value in enumerate(list(graph.outputs)):
        if value.dtype != ir.DataType.FLOAT16:
            continue
        name = value.name
        value.name = f"{name}_half"
        cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=f"{name}/to_single")
        out = cast.outputs[0]
        out.name, out.type, out.shape = name, ir.TensorType(ir.DataType.FLOAT), value.shape
        graph.append(cast)
        graph.outputs[index] = out
