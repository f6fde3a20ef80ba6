"""Operations that give back what they got, and guards against what can't happen.

    x + 0 = x,   1 x = x,   Pad by nothing, Identity, Expand or Reshape to the shape that is there = x
    x / Expand(y, shape of x) = x / y        and +, -, x: broadcasting repeats y as well, and needs no shape
    Where(IsNaN(softmax(z)), 0, softmax(z)) = softmax(z)        unless a whole row of z is -inf

The last is what scaled_dot_product_attention leaves for rows that are masked everywhere; a mask of zeros is what eager
attention leaves. Images have no such rows: a constant mask is looked at, and a computed one keeps its guard. The bias
of a product stays where it is zero too: INT8 puts its correction there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import constant, producer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["remove_no_ops"]

_BROADCASTING = ("Add", "Sub", "Mul", "Div")


def remove_no_ops(model: ir.Model) -> PassResult:
    """Take them out of `model` in place."""
    import onnx_ir as ir

    graph = model.graph
    changed = 0
    for node in list(graph):
        source = _passed_on(node)
        if source is None or node.outputs[0].is_graph_output():
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        graph.remove(node, safe=True)
        changed += 1
    return PassResult("remove-no-ops", changed, None if changed else "every operation changes something")


def _passed_on(node: ir.Node) -> ir.Value | None:
    """The input that a node gives back unchanged."""
    first = node.inputs[0] if node.inputs else None
    if node.op_type == "Identity":
        return first
    if node.op_type == "Pad":
        pads = constant(node.inputs[1])
        return first if pads is not None and not pads.any() else None
    if node.op_type == "Expand" and _is_broadcast_anyway(node.outputs[0]):
        return first
    if node.op_type in ("Reshape", "Expand"):
        return first if first is not None and _same_static_shape(first, node.outputs[0]) else None
    if node.op_type in ("Add", "Mul"):
        neutral = 0.0 if node.op_type == "Add" else 1.0
        for index in (0, 1):
            array, other = constant(node.inputs[index]), node.inputs[1 - index]
            if array is None or other is None or not (array == neutral).all():
                continue
            is_bias = node.op_type == "Add" and array.ndim == 1 and producer(other, "MatMul") is not None
            if not is_bias and _same_shape(other, node.outputs[0]):
                return other
    if node.op_type == "Where":
        return _guarded(node)
    return None


def _guarded(node: ir.Node) -> ir.Value | None:
    """The softmax behind a NaN guard that can't be needed."""
    guard, fallback, value = producer(node.inputs[0], "IsNaN"), constant(node.inputs[1]), node.inputs[2]
    softmax = producer(value, "Softmax")
    if guard is None or softmax is None or fallback is None or guard.inputs[0] is not value:
        return None
    masked = producer(softmax.inputs[0], "Add")
    if masked is not None:
        masks = [constant(operand) for operand in masked.inputs]
        mask = next((array for array in masks if array is not None), None)
        if mask is None or (mask.ndim and bool(np.isneginf(mask).all(axis=-1).any())):
            return None
    return value


def _is_broadcast_anyway(expanded: ir.Value) -> bool:
    """Whether each reader combines an expanded tensor, element by element, with one that has its shape already."""
    if not expanded.uses() or expanded.is_graph_output():
        return False
    for use in expanded.uses():
        others = [value for value in use.node.inputs if value is not expanded]
        if use.node.op_type not in _BROADCASTING or len(others) != 1 or others[0] is None:
            return False
        if not _same_static_shape(others[0], expanded):
            return False
    return True


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and other.shape is not None and list(one.shape) == list(other.shape)


def _same_static_shape(one: ir.Value, other: ir.Value) -> bool:
    """Equal shapes of which at most one dimension is unknown, and that one by the same name."""
    return _same_shape(one, other) and all(isinstance(dim, int) or dim.value is not None for dim in (one.shape or ()))
