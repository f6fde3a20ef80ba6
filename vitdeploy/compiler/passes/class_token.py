"""Class and register tokens without a shape computation.

The exporter writes, for x of (batch, patches, hidden), a learned token c and positions p:

    y = Concat(Expand(c, [batch, 1, 1]), x) + p        with batch = Shape(x)[0]

Row 0 of y is c + p[0], the others are x + p[1:], so

    y = Pad(x, one zero row in front) + p'             with p'[0] = c + p[0], p'[1:] = p[1:]

is the same numbers with the same roundings (x + p is one addition in both) and no Shape, Expand or Concat. Several
tokens in a row (class and distillation token) are folded the same way, and so is a token without positions (BEiT):
its p is 0. Registers r, which DINOv2 puts behind the class token once the positions are added, are further rows:

    Concat(y[:, :1], Expand(r), y[:, 1:])   =   Pad(x, 1 + R zero rows) + (c + p[0], r, p[1:])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import constant, new_initializer, only_consumer, producer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_class_token"]

_NAME = "fold-class-token"


def _token(value: ir.Value | None) -> np.ndarray | None:
    """The constant (1, n, hidden) behind a token that is expanded to the batch."""
    expand = producer(value, "Expand")
    array = constant(value if expand is None else expand.inputs[0])
    if array is None or array.size == 0 or array.ndim not in (1, 3) or array.shape[0] not in (1, array.size):
        return None
    return array.reshape(1, -1, array.shape[-1])


def fold_class_token(model: ir.Model) -> PassResult:
    """Rewrite the embedding of a ViT in place."""
    why = "no class token is put in front of the patches"
    for concat in list(model.graph):
        if concat.op_type != "Concat" or len(concat.inputs) < 2 or concat.attributes["axis"].as_int() not in (1, -2):
            continue
        tokens = [_token(value) for value in concat.inputs[:-1]]
        found = [token for token in tokens if token is not None]
        patches = concat.inputs[-1]
        if len(found) != len(tokens) or patches is None or patches.shape is None or len(patches.shape) != 3:
            continue
        count = patches.shape[1]
        if not isinstance(count, int):
            why = "the number of patches is not known"
            continue
        last = _fold(model.graph, concat, np.concatenate(found, axis=1), patches, count)
        return PassResult(_NAME, 1 + _fold_registers(model.graph, last))
    return PassResult(_NAME, 0, why)


def _fold(graph: ir.Graph, concat: ir.Node, prefix: np.ndarray, patches: ir.Value, count: int) -> ir.Node:
    """Replace the concatenation of `prefix` (1, n, hidden) and the patches; the addition that stands for it."""
    rows = prefix.shape[1]
    table = np.concatenate([prefix, np.zeros((1, count, prefix.shape[2]), dtype=prefix.dtype)], axis=1)
    name, replaced = "tokens", concat
    add = only_consumer(concat.outputs[0])
    if add is not None and add.op_type == "Add":
        position = next((value for value in add.inputs if value is not concat.outputs[0]), None)
        positions = constant(position)
        if positions is not None and positions.ndim == 3 and positions.shape == table.shape:
            table = positions.copy()  # not 0 + p: the sum below is the only rounding
            table[:, :rows] += prefix
            name, replaced = (position.name if position is not None else None) or "positions", add
    return _pad_and_add(graph, replaced, patches, rows, table, name)


def _pad_and_add(
    graph: ir.Graph, replaced: ir.Node, patches: ir.Value, rows: int, table: np.ndarray, name: str
) -> ir.Node:
    """Put Add(Pad(patches), table) in the place of a node."""
    import onnx_ir as ir

    pads = new_initializer(graph, f"{name}.pads", np.array([0, rows, 0, 0, 0, 0], dtype=np.int64))
    zero = new_initializer(graph, f"{name}.zero", np.zeros((), dtype=table.dtype))
    summand = new_initializer(graph, f"{name}.with_tokens", table)
    out = replaced.outputs[0]
    pad = ir.node("Pad", [patches, pads, zero], attributes={"mode": "constant"}, name=f"{name}/Pad")
    add = ir.node("Add", [pad.outputs[0], summand], name=f"{name}/Add")
    for node in (pad, add):
        node.outputs[0].name = f"{node.name}_output"
        node.outputs[0].type, node.outputs[0].shape = out.type, out.shape
    graph.insert_before(replaced, [pad, add])
    if out.is_graph_output():
        add.outputs[0].name, out.name = out.name, f"{out.name}_before"
    ir.convenience.replace_all_uses_with(out, add.outputs[0], replace_graph_outputs=True)
    return add


def _fold_registers(graph: ir.Graph, add: ir.Node) -> int:
    """Registers between the class token and the patches; `add` is the sum of the padded patches and their table."""
    table, out = constant(add.inputs[1]), add.outputs[0]
    readers = [use.node for use in out.uses()]
    slices = [node for node in readers if node.op_type == "Slice"]
    concat = only_consumer(slices[0].outputs[0]) if slices else None
    if table is None or len(readers) != 2 or len(slices) != 2 or concat is None or concat.op_type != "Concat":
        return 0
    if len(concat.inputs) != 3 or concat.attributes["axis"].as_int() not in (1, -2):
        return 0
    head, registers, tail = concat.inputs[0], _token(concat.inputs[1]), concat.inputs[2]
    cut = _rows_before(head, out)
    if registers is None or cut is None or _rows_from(tail, out) != cut:
        return 0
    pad = producer(add.inputs[0], "Pad")
    assert pad is not None and pad.inputs[0] is not None
    rows = int(constant(pad.inputs[1])[1])  # type: ignore[index]
    if cut > rows:
        return 0
    whole = np.concatenate([table[:, :cut], registers, table[:, cut:]], axis=1)
    name = (add.name or "tokens/Add").rpartition("/")[0]
    _pad_and_add(graph, concat, pad.inputs[0], rows + registers.shape[1], whole, f"{name}.registers")
    return 1


def _slice(value: ir.Value | None, source: ir.Value) -> tuple[int, int] | None:
    """(start, end) of a slice of the token axis."""
    node = producer(value, "Slice")
    if node is None or node.inputs[0] is not source:
        return None
    numbers = [constant(operand) for operand in node.inputs[1:5]]
    if any(array is None or array.size != 1 for array in numbers):
        return None
    start, end, axis, *step = (int(array.reshape(-1)[0]) for array in numbers if array is not None)
    return (start, end) if axis == 1 and step in ([], [1]) else None


def _rows_before(value: ir.Value | None, source: ir.Value) -> int | None:
    cut = _slice(value, source)
    return cut[1] if cut is not None and cut[0] == 0 and cut[1] > 0 else None


def _rows_from(value: ir.Value | None, source: ir.Value) -> int | None:
    cut = _slice(value, source)
    tokens = source.shape[1] if source.shape is not None else None
    return cut[0] if cut is not None and isinstance(tokens, int) and cut[1] >= tokens else None
