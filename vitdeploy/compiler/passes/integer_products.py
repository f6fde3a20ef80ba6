"""Q/DQ around a product -> one operation for CPUs, with its bias inside.

    Add(MatMul(DQ(xq), DQ(Wq)), b)      =      MatMulIntegerToFloat(xq, Wq, Sx, Sw, zx, zw, b)

ONNX Runtime makes this of Q/DQ by itself, but leaves the addition: one pass more over the output of each product.
OpenVINO reads it as it reads Q/DQ. Weights' zero points of zero are left out: written down for each column, they would
be multiplied for each column. The operation is ONNX Runtime's own (domain com.microsoft), so this is for the CPU form
alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import constant, only_consumer, producer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DOMAIN", "fuse_integer_products"]

DOMAIN = "com.microsoft"


def fuse_integer_products(model: ir.Model) -> PassResult:
    """Fuse products of a quantised activation with a quantised constant weight, in place."""
    graph = model.graph
    changed = sum(_fuse(graph, node) for node in list(graph) if node.op_type == "MatMul")
    if changed:
        model.graph.opset_imports[DOMAIN] = 1
    return PassResult("fuse-integer-products", changed, None if changed else "no product is in INT8")


def _fuse(graph: ir.Graph, product: ir.Node) -> bool:
    import onnx_ir as ir

    left, right = (producer(value, "DequantizeLinear") for value in product.inputs)
    if left is None or right is None or constant(right.inputs[0]) is None or len(left.inputs) < 3:
        return False
    axis = right.attributes.get("axis")
    if axis is None or axis.as_int() != 1 or product.outputs[0].is_graph_output():
        return False
    last, bias = _bias(product)
    zero = right.inputs[2] if len(right.inputs) > 2 else None
    numbers = constant(zero)
    unread = zero if numbers is not None and not numbers.any() else None
    if unread is not None:
        zero = None
    made = ir.node(
        "MatMulIntegerToFloat",
        [left.inputs[0], right.inputs[0], left.inputs[1], right.inputs[1], left.inputs[2], zero, bias],
        domain=DOMAIN,
        name=f"{product.name}IntegerToFloat",
    )
    before, out = last.outputs[0], made.outputs[0]
    out.type, out.shape = before.type, before.shape
    out.name, before.name = before.name, None
    graph.insert_before(last, made)
    ir.convenience.replace_all_uses_with(before, out)
    for node in dict.fromkeys((last, product, left, right)):
        if not any(value.uses() for value in node.outputs):
            graph.remove(node, safe=True)
    if unread is not None and not unread.uses():
        graph.initializers.pop(unread.name, None)  # ONNX Runtime warns of constants that nothing reads
    return True


def _bias(product: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The last node to replace, and the vector that is added to the product; the product itself and None without."""
    add = only_consumer(product.outputs[0])
    if add is not None and add.op_type == "Add" and not add.outputs[0].is_graph_output():
        for value in add.inputs:
            vector = constant(value)
            if vector is not None and vector.ndim == 1 and vector.size > 1:
                return add, value
    return product, None
