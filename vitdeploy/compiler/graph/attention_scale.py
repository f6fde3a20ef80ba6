"""The scale of attention inside the query projection.

    softmax(s (x Wq + bq) K^T)      =      softmax((x (s Wq) + s bq) K^T)

Exact where s is a power of two (head sizes 16 and 64: 1/4 and 1/8), and one rounding apart elsewhere. It saves a pass
over (batch, heads, tokens, head_dim) in each layer and keeps queries small in half precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.compiler.graph.result import PassResult
from vitdeploy.compiler.graph.values import constant, new_initializer, only_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_attention_scale"]


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
        value = mul.inputs[0] if factors[0] is None else mul.inputs[1]
        if factor is None or factor.size != 1 or value is None:
            continue
        node = value.producer()
        while node is not None and node.op_type in ("Reshape", "Transpose") and _single(node.outputs[0]):
            value = node.inputs[0]
            node = None if value is None else value.producer()
        if node is None or node.op_type != "Add" or not _single(node.outputs[0]):
            continue
        sides = [(index, constant(operand)) for index, operand in enumerate(node.inputs)]
        bias = next(((index, array) for index, array in sides if array is not None and array.ndim == 1), None)
        if bias is None:
            continue
        product = node.inputs[1 - bias[0]]
        matmul = None if product is None else product.producer()
        if matmul is None or matmul.op_type != "MatMul" or not _single(matmul.outputs[0]):
            continue
        weight = constant(matmul.inputs[1])
        if weight is None or weight.ndim != 2:
            continue
        scale = factor.reshape(()).astype(weight.dtype)
        weight_name = matmul.inputs[1].name  # type: ignore[union-attr]
        bias_name = node.inputs[bias[0]].name  # type: ignore[union-attr]
        matmul.replace_input_with(1, new_initializer(graph, f"{weight_name}.scaled", weight * scale))
        node.replace_input_with(bias[0], new_initializer(graph, f"{bias_name}.scaled", bias[1] * scale))
        source = mul.inputs[0] if factors[0] is None else mul.inputs[1]
        ir.convenience.replace_all_uses_with(mul.outputs[0], source)  # type: ignore[arg-type]
        graph.remove(mul, safe=True)
        changed += 1
    return PassResult(
        "fold-attention-scale", changed, None if changed else "no query projection is followed by a constant factor"
    )


def _single(value: ir.Value) -> bool:
    return only_consumer(value) is not None
