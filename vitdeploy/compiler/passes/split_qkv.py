"""timm's merged queries, keys and values as three projections, the form that the other passes know.

    Transpose(Reshape(x W + b, [batch, tokens, 3, heads, d]), [2, 0, 3, 1, 4])[i]
        =   Transpose(Reshape(x Wi + bi, [batch, tokens, heads, d]), [0, 2, 1, 3])         W = [W0 W1 W2]

The same sums in the same order. The scale can then go into the queries alone, and INT8 finds its layers; --merge-qkv
puts them together again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import Affine, affine_before, constant, new_initializer, only_consumer, producer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["split_qkv"]

_PARTS = ("q_proj", "k_proj", "v_proj")


def split_qkv(model: ir.Model) -> PassResult:
    """Split each merged projection, in place."""
    changed = 0
    for transpose in list(model.graph):
        if transpose.op_type != "Transpose" or list(transpose.attributes["perm"].as_ints()) != [2, 0, 3, 1, 4]:
            continue
        reshape = producer(transpose.inputs[0], "Reshape")
        shape = None if reshape is None else constant(reshape.inputs[1])
        affine = None if reshape is None else affine_before(reshape.inputs[0])
        picked = _picked(transpose)
        if shape is None or affine is None or picked is None or shape.size != 5 or shape[2] != 3:
            continue
        _split(model.graph, affine, shape, picked)
        changed += 1
    return PassResult("split-qkv", changed, None if changed else "no projection gives queries, keys and values at once")


def _picked(transpose: ir.Node) -> dict[int, ir.Value] | None:
    """{0: queries, 1: keys, 2: values}, each (batch, heads, tokens, d); None if the readers are others than these."""
    found: dict[int, ir.Value] = {}
    for use in transpose.outputs[0].uses():
        node = use.node
        if node.op_type == "Gather" and node.attributes.get("axis", None) is not None:
            index = constant(node.inputs[1])
            if node.attributes["axis"].as_int() != 0 or index is None or index.size != 1:
                return None
            found[int(index.reshape(-1)[0]) % 3] = node.outputs[0]
        elif node.op_type == "Slice":
            numbers = [constant(value) for value in node.inputs[1:4]]
            squeeze = only_consumer(node.outputs[0])
            if any(array is None or array.size != 1 for array in numbers) or squeeze is None:
                return None
            start, end, axis = (int(array.reshape(-1)[0]) for array in numbers if array is not None)
            if squeeze.op_type != "Squeeze" or axis != 0 or end != start + 1:
                return None
            found[start] = squeeze.outputs[0]
        else:
            return None
    return found if set(found) == {0, 1, 2} else None


def _split(graph: ir.Graph, affine: Affine, shape: np.ndarray, picked: dict[int, ir.Value]) -> None:
    import onnx_ir as ir

    scope = (affine.matmul.name or "qkv/MatMul").rpartition("/")[0].rpartition(".")[0]
    batch, tokens, _, heads, depth = (int(size) for size in shape)
    width, source = affine.width // 3, affine.matmul.inputs[0]
    rows = new_initializer(graph, f"{scope}.heads", np.array([batch, tokens, heads, depth], dtype=np.int64))
    for index, part in enumerate(_PARTS):
        columns, name = slice(index * width, (index + 1) * width), f"{scope}.{part}"
        weight = new_initializer(graph, f"{name}.weight", affine.weight[:, columns])
        nodes = [ir.node("MatMul", [source, weight], name=f"{name}/MatMul")]
        if affine.bias is not None:
            bias = new_initializer(graph, f"{name}.bias", affine.bias[columns])
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=f"{name}/Add"))
        nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], rows], name=f"{scope}/Reshape_{part}"))
        perm = {"perm": [0, 2, 1, 3]}
        nodes.append(ir.node("Transpose", nodes[-1].outputs, attributes=perm, name=f"{scope}/Transpose_{part}"))
        old = picked[index]
        first = None if source is None or source.shape is None else source.shape[0]
        for node in nodes:
            out = node.outputs[0]
            out.name, out.type = f"{node.name}_output", old.type
            if node.op_type in ("MatMul", "Add"):
                out.shape = None if first is None else ir.Shape([first, tokens, width])
            elif node.op_type == "Reshape":
                out.shape = None if first is None else ir.Shape([first, tokens, heads, depth])
            else:
                out.shape = old.shape
        graph.insert_before(affine.matmul, nodes)
        ir.convenience.replace_all_uses_with(old, nodes[-1].outputs[0])
