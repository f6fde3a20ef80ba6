"""Queries, keys and values by one product.

    x Wq + bq, x Wk + bk, x Wv + bv      =      Split(x [Wq Wk Wv] + [bq bk bv])

The same sums in the same order, so the same numbers. One larger product reads x once and fills wide hardware better;
against it stands the Split. Which wins depends on the target: docs/export.md has the measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import Affine, affine_before, constant, new_initializer, only_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["merge_qkv"]

_NAME = "merge-qkv"


def merge_qkv(model: ir.Model) -> PassResult:
    """Merge the three projections of each attention, in place."""
    groups: dict[ir.Value, list[Affine]] = {}
    for node in model.graph:
        if node.op_type != "Reshape":
            continue
        affine = affine_before(node.inputs[0])
        if affine is not None and affine.matmul.inputs[0] is not None:
            groups.setdefault(affine.matmul.inputs[0], []).append(affine)
    changed = 0
    for source, parts in groups.items():
        if len(parts) == 3 and len({part.weight.shape for part in parts}) == 1:
            _merge(model.graph, source, parts)
            changed += 1
    return PassResult(_NAME, changed, None if changed else "no three projections of one size read the same tensor")


def _merge(graph: ir.Graph, source: ir.Value, parts: list[Affine]) -> None:
    import onnx_ir as ir

    order = {node: index for index, node in enumerate(graph)}
    parts = sorted(parts, key=lambda part: order[part.matmul])
    name = f"{(parts[0].matmul.name or 'attention/MatMul').rpartition('/')[0].rpartition('.')[0]}.qkv_proj"
    dtype, width = parts[0].weight.dtype, parts[0].width
    weight = np.concatenate([part.weight for part in parts], axis=1)
    product = ir.node("MatMul", [source, new_initializer(graph, f"{name}.weight", weight)], name=f"{name}/MatMul")
    nodes = [product]
    if any(part.bias is not None for part in parts):
        bias = np.concatenate([np.zeros(width, dtype) if part.bias is None else part.bias for part in parts])
        constant_bias = new_initializer(graph, f"{name}.bias", bias)
        nodes.append(ir.node("Add", [product.outputs[0], constant_bias], name=f"{name}/Add"))
    attributes = {"axis": -1, "num_outputs": 3}
    nodes.append(ir.node("Split", [nodes[-1].outputs[0]], attributes=attributes, num_outputs=3, name=f"{name}/Split"))
    for node in nodes:
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}:{index}" if index else f"{node.name}_output"
            value.type = source.type
            if source.shape is not None:
                columns = width if node.op_type == "Split" else 3 * width
                value.shape = ir.Shape([*list(source.shape)[:-1], columns])
    graph.insert_before(parts[0].matmul, nodes)
    for index, part in enumerate(parts):
        last = part.matmul if part.add is None else part.add
        reader = only_consumer(last.outputs[0])
        assert reader is not None
        ir.convenience.replace_all_uses_with(last.outputs[0], nodes[-1].outputs[index])
        for node in (part.add, part.matmul):
            if node is not None:
                _remove(graph, node)


def _remove(graph: ir.Graph, node: ir.Node) -> None:
    constants = [value for value in node.inputs if constant(value) is not None]
    graph.remove(node, safe=True)
    for value in constants:
        if value is not None and not value.uses() and value.name in graph.initializers:
            del graph.initializers[value.name]
