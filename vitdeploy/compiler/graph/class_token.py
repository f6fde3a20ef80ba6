"""The class token without a shape computation.

The exporter writes, for x of (batch, patches, hidden), a learned token c and positions p:

    y = Concat(Expand(c, [batch, 1, 1]), x) + p        with batch = Shape(x)[0]

Row 0 of y is c + p[0], the others are x + p[1:], so

    y = Pad(x, one zero row in front) + p'             with p'[0] = c + p[0], p'[1:] = p[1:]

is the same numbers with the same roundings (x + p is one addition in both) and no Shape, Expand or Concat.
Several tokens in a row (class and distillation token) are folded the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.graph.result import PassResult
from vitdeploy.compiler.graph.values import constant, new_initializer, only_consumer, producer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_class_token"]

_NAME = "fold-class-token"


def _token(value: ir.Value | None) -> np.ndarray | None:
    """The constant (1, n, hidden) behind a token that is expanded to the batch."""
    expand = producer(value, "Expand")
    array = constant(value if expand is None else expand.inputs[0])
    return array if array is not None and array.ndim == 3 and array.shape[0] == 1 else None


def fold_class_token(model: ir.Model) -> PassResult:
    """Rewrite the embedding of a ViT in place."""
    import onnx_ir as ir

    graph = model.graph
    for concat in list(graph):
        if concat.op_type != "Concat" or len(concat.inputs) < 2:
            continue
        tokens = [_token(value) for value in concat.inputs[:-1]]
        patches = concat.inputs[-1]
        add = only_consumer(concat.outputs[0])
        if any(token is None for token in tokens) or patches is None or add is None or add.op_type != "Add":
            continue
        position_value = next(value for value in add.inputs if value is not concat.outputs[0])
        positions = constant(position_value)
        prefix = np.concatenate([token for token in tokens if token is not None], axis=1)  # (1, n, hidden)
        if concat.attributes["axis"].as_int() not in (1, -2):
            continue
        if positions is None or positions.ndim != 3 or positions.shape[0] != 1:
            return PassResult(_NAME, 0, "the positions are not one constant of shape (1, tokens, hidden)")
        count = prefix.shape[1]
        folded = positions.copy()
        folded[:, :count] += prefix
        name = position_value.name or "positions"
        table = new_initializer(graph, f"{name}.with_tokens", folded)
        pads = new_initializer(graph, f"{name}.pads", np.array([0, count, 0, 0, 0, 0], dtype=np.int64))
        zero = new_initializer(graph, f"{name}.zero", np.zeros((), dtype=positions.dtype))
        pad = ir.node("Pad", [patches, pads, zero], attributes={"mode": "constant"}, name=f"{name}/Pad")
        pad.outputs[0].name = f"{name}/Pad_output"
        pad.outputs[0].type = concat.outputs[0].type
        pad.outputs[0].shape = concat.outputs[0].shape
        graph.insert_before(add, pad)
        for index, value in enumerate(add.inputs):
            add.replace_input_with(index, pad.outputs[0] if value is concat.outputs[0] else table)
        return PassResult(_NAME, 1)
    return PassResult(_NAME, 0, "no class token is put in front of the patches")
