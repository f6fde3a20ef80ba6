"""The scale of attention inside the query projection.

    softmax(s (x Wq + bq) K^T)  =  softmax(s ((x Wq + bq) K^T))  =  softmax((x (s Wq) + s bq) K^T)

Exact where s is a power of two (head sizes 16 and 64: 1/4 and 1/8), and one rounding apart elsewhere. It saves a pass
over (batch, heads, tokens, head_dim) in each layer and keeps queries small in half precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import affine_before, constant, only_consumer
from vitdeploy.core.operators import REORDERS

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_attention_scale"]


def fold_attention_scale(model: ir.Model) -> PassResult:
    """Move the scalar factors of queries, or of their products with the keys, into Wq and bq, in place."""
    import onnx_ir as ir

    graph = model.graph
    changed = 0
    for node in list(graph):
        found = _scaled(node)
        if found is None or only_consumer(found[0]) is None or node.outputs[0].is_graph_output():
            continue
        source, scale = found
        affine = affine_before(_projected(source))
        if affine is None:
            continue
        scale = scale.astype(affine.weight.dtype)
        affine.replace(graph, affine.weight * scale, None if affine.bias is None else affine.bias * scale)
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        graph.remove(node, safe=True)
        changed += 1
    return PassResult(
        "fold-attention-scale", changed, None if changed else "no query projection is followed by a constant factor"
    )


def _scaled(node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """What a Mul or Div by one constant number reads, and the factor; None for any other node."""
    if node.op_type not in ("Mul", "Div"):
        return None
    places = [index for index, value in enumerate(node.inputs) if constant(value) is not None]
    if len(places) != 1 or (node.op_type == "Div" and places != [1]):
        return None
    source, number = node.inputs[1 - places[0]], constant(node.inputs[places[0]])
    if source is None or number is None or number.size != 1 or not number.any():
        return None
    number = number.reshape(())
    return source, number if node.op_type == "Mul" else 1 / number


def _projected(value: ir.Value) -> ir.Value | None:
    """Where the queries came out of their projection: before Q K^T, if `value` is that, and before the heads' moves."""
    node = value.producer()
    if node is not None and node.op_type == "MatMul" and all(constant(factor) is None for factor in node.inputs):
        found = node.inputs[0]
    else:
        found = value
    while found is not None and only_consumer(found) is not None:
        node = found.producer()
        if node is None or node.op_type not in REORDERS:
            break
        found = node.inputs[0]
    return found
