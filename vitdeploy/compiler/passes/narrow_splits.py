"""A Split into many parts as a Slice a part: WebGPU gives a kernel few storage buffers, ten on many devices.

    Split(x, n)[i]  =  Slice(x, i c, min((i + 1) c, d))        d: the size of that axis of x, c = ceil(d / n)

The same numbers in the same places. Where d is not known from the graph the Split stays: in our graphs those are of
int64, which ONNX Runtime computes on the CPU.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import constant, new_initializer, producer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["MOST_PARTS", "narrow_splits"]

MOST_PARTS = 7
"""Outputs that a Split may keep: WebGPU promises 8 storage buffers, and its input takes one."""


def narrow_splits(model: ir.Model, most: int = MOST_PARTS) -> PassResult:
    """Put Slices in the place of each Split into more than `most` parts, in place."""
    import onnx_ir as ir

    changed, unknown = 0, 0
    for node in list(model.graph):
        if node.op_type != "Split" or len(node.outputs) <= most:
            continue
        bounds = _bounds(node)
        if bounds is None:
            unknown += 1
            continue
        slices = _slices(model.graph, node, bounds)
        model.graph.insert_before(node, slices)
        for old, made in zip(node.outputs, slices, strict=True):
            ir.convenience.replace_all_uses_with(old, made.outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        changed += 1
    why = f"the sizes of {unknown} are not known" if unknown else f"no Split has more than {most} outputs"
    return PassResult("narrow-splits", changed, None if changed else why)


def _slices(graph: ir.Graph, node: ir.Node, bounds: list[int]) -> list[ir.Node]:
    import onnx_ir as ir

    def ints(name: str, number: int) -> ir.Value:
        return new_initializer(graph, f"{node.name}/{name}", np.array([number], np.int64))

    edges, axis = [ints(f"edge_{index}", edge) for index, edge in enumerate(bounds)], ints("axis", _axis(node))
    made = []
    for index, ((begin, end), old) in enumerate(zip(pairwise(edges), node.outputs, strict=True)):
        slice_ = ir.node("Slice", [node.inputs[0], begin, end, axis], name=f"{node.name}/Slice_{index}")
        out = slice_.outputs[0]
        out.name, out.type, out.shape = old.name, old.type, old.shape
        made.append(slice_)
    return made


def _axis(node: ir.Node) -> int:
    attribute = node.attributes.get("axis")
    return 0 if attribute is None else int(attribute.as_int())


def _bounds(node: ir.Node) -> list[int] | None:
    """Where the parts begin, and where the last ends; None where that is not known."""
    parts = len(node.outputs)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = constant(node.inputs[1])
        return None if sizes is None else [0, *np.cumsum(sizes).tolist()]
    size = _size(node.inputs[0], _axis(node))
    if size is None:
        return None
    part = -(-size // parts)
    return [min(index * part, size) for index in range(parts + 1)]


def _size(value: ir.Value | None, axis: int) -> int | None:
    """The size of one axis, from the value's shape or from the Reshape that makes it."""
    shape = None if value is None else value.shape
    if shape is not None:
        size = shape[axis]
        return size if isinstance(size, int) else None
    reshape = producer(value, "Reshape")
    target = None if reshape is None else constant(reshape.inputs[1])
    return int(target[axis]) if target is not None and target[axis] > 0 else None
