"""The scale of attention inside the query projection.

    softmax(s (x Wq + bq) K^T)      =      softmax((x (s Wq) + s bq) K^T)

Exact where s is a power of two (head sizes 16 and 64: 1/4 and 1/8), and one rounding apart elsewhere. It saves a pass
over (batch, heads, tokens, head_dim) in each layer and keeps queries small in half precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.compiler.graph.result import PassResult
from vitdeploy.compiler.graph.values import affine_before, constant, only_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_attention_scale"]

_MOVES = ("Reshape", "Transpose")


def fold_attention_scale(model: ir.Model) -> PassResult:
    """Move scalar factors of Mul(Transpose(Reshape(x W + b))) into W and b, in place."""
    import onnx_ir as ir

    graph = model.graph
    changed = 0
    for mul in list(graph):
        if mul.op_type != "Mul" or mul.outputs[0].is_graph_output():
            continue
        factors = [constant(value) for value in mul.inputs]
        if (factors[0] is None) == (factors[1] is None):
            continue
        factor = factors[0] if factors[0] is not None else factors[1]
        source = mul.inputs[0] if factors[0] is None else mul.inputs[1]
        if factor is None or factor.size != 1 or source is None or only_consumer(source) is None:
            continue
        value: ir.Value | None = source
        node = source.producer()
        while value is not None and node is not None and node.op_type in _MOVES and only_consumer(value) is not None:
            value = node.inputs[0]
            node = None if value is None else value.producer()
        affine = affine_before(value)
        if affine is None:
            continue
        scale = factor.reshape(()).astype(affine.weight.dtype)
        affine.replace(graph, affine.weight * scale, None if affine.bias is None else affine.bias * scale)
        ir.convenience.replace_all_uses_with(mul.outputs[0], source)
        graph.remove(mul, safe=True)
        changed += 1
    return PassResult(
        "fold-attention-scale", changed, None if changed else "no query projection is followed by a constant factor"
    )
