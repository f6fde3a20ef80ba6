"""What a half-precision graph gives on a device, computed on a CPU.

ONNX Runtime's CPU provider has few float16 kernels: it runs a float16 graph in float32 and drops the casts between
neighbours, so that 60000 + 60000 stays finite and no rounding is seen. Here the graph is rewritten in float32 with an
explicit rounding behind each operation that a device would store in half precision:

    y = round_half(op(x))        op itself in float32, which is how tensor cores and LayerNormalization accumulate

Overflow becomes infinity as on the device. It is slower than float32 by those roundings, and is for checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.float16.cast import model_nodes
from vitdeploy.compiler.passes.values import new_initializer
from vitdeploy.core.operators import MOVES

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["round_behind", "simulate"]


def simulate(model: ir.Model) -> ir.Model:
    """The float32 graph that rounds where `model`, made by `to_half`, has half precision; `model` is used up."""
    import onnx_ir as ir

    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    graph, single = model.graph, ir.TensorType(ir.DataType.FLOAT)
    for name, value in list(graph.initializers.items()):
        if value.dtype in halves:
            assert value.const_value is not None
            array = value.const_value.numpy().astype(np.float32)
            wide = new_initializer(graph, f"{name}.wide", array)
            ir.convenience.replace_all_uses_with(value, wide)
            del graph.initializers[name]
    for node in model_nodes(model):
        for value in node.outputs:
            if value.dtype not in halves:
                continue
            half = value.dtype
            is_cast = node.op_type == "Cast"
            if not is_cast:
                value.type = single
            if node.op_type not in MOVES:
                round_behind(graph, node, value, half, down=not is_cast)
    return model


def round_behind(graph: ir.Graph, node: ir.Node, value: ir.Value, half: ir.DataType, *, down: bool) -> None:
    """Put Cast(half) and Cast(float32) behind a value; `down` is off where it was cast to half already."""
    import onnx_ir as ir

    readers = list(value.uses())
    steps = [half, ir.DataType.FLOAT] if down else [ir.DataType.FLOAT]
    current, last = value, node
    for to in steps:
        cast = ir.node("Cast", [current], attributes={"to": to}, name=f"{value.name}/round_{to.name}")
        out = cast.outputs[0]
        out.name, out.type, out.shape = f"{value.name}_round_{to.name}", ir.TensorType(to), value.shape
        graph.insert_after(last, cast)
        current, last = out, cast
    for use in readers:
        use.node.replace_input_with(use.idx, current)
