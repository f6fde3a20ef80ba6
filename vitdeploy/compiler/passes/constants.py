"""Whatever depends on weights alone, computed once here instead of at every call.

The exporter folds small constants. Larger ones stay in the graph: Swin's position biases, which are a table behind an
index, SwinV2's, which come out of a small network. They are computed by ONNX Runtime, in one run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import new_initializer
from vitdeploy.evaluation.batches import open_session

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_constants"]

_NAME = "fold-constants"
_LARGEST_GROWTH = 1 << 22  # elements: a table that is expanded to more is cheaper to compute than to store
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli")


def fold_constants(model: ir.Model) -> PassResult:
    """Replace nodes that read constants only by their results, in place."""
    import onnx_ir as ir

    graph = model.graph
    known: set[ir.Value] = set()
    nodes: list[ir.Node] = []
    for node in graph:
        if node.op_type in _RANDOM or any(value.is_graph_output() for value in node.outputs):
            continue
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in _own(node)):
            continue
        if all(value is None or value in known or value.const_value is not None for value in node.inputs):
            nodes.append(node)
            known.update(node.outputs)
    inside = set(nodes)
    wanted = [v for node in nodes for v in node.outputs if any(use.node not in inside for use in v.uses())]
    wanted = [value for value in wanted if _elements(value) <= _LARGEST_GROWTH]
    if not wanted:
        return PassResult(_NAME, 0, "every node depends on the image")
    for value, array in zip(wanted, _compute(model, nodes, wanted), strict=True):
        ir.convenience.replace_all_uses_with(value, new_initializer(graph, f"{value.name}.folded", array))
    removed = 0
    for node in reversed(nodes):
        if not any(value.uses() for value in node.outputs):
            graph.remove(node, safe=True)
            removed += 1
    return PassResult(_NAME, removed)


def _own(node: ir.Node) -> list[ir.Attr]:
    return list(node.attributes.values())


def _elements(value: ir.Value) -> float:
    shape = [] if value.shape is None else list(value.shape)
    return math.prod(dim for dim in shape if isinstance(dim, int)) if value.shape is not None else math.inf


def _compute(model: ir.Model, nodes: list[ir.Node], wanted: list[ir.Value]) -> list[np.ndarray]:
    """The arrays of `wanted`, from a graph of copies of `nodes`."""
    import onnx_ir as ir

    copies: dict[ir.Value, ir.Value] = {}
    initializers: list[ir.Value] = []

    def copy_of(value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if value not in copies:
            tensor = value.const_value
            copies[value] = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=tensor)
            initializers.append(copies[value])
        return copies[value]

    made = []
    for node in nodes:
        inputs = [copy_of(value) for value in node.inputs]
        twin = ir.Node(node.domain, node.op_type, inputs, _own(node), num_outputs=len(node.outputs))
        for ours, theirs in zip(twin.outputs, node.outputs, strict=True):
            ours.name, ours.type, ours.shape = theirs.name, theirs.type, theirs.shape
            copies[theirs] = ours
        made.append(twin)
    outputs = [copies[value] for value in wanted]
    graph = ir.Graph([], outputs, nodes=made, initializers=initializers, opset_imports=model.graph.opset_imports)
    small = ir.Model(graph, ir_version=model.ir_version)
    session = open_session(small)
    results: list[np.ndarray] = session.run([value.name for value in outputs], {})
    return results
