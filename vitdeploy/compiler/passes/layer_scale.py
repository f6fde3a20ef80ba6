"""LayerScale inside the projection before it.

    lambda * (x W + b)      =      x (W diag(lambda)) + lambda * b

DINOv2, BEiT and ConvNeXt multiply what a block writes to the residual stream by a learned vector. One rounding moves;
a pass over (batch, tokens, hidden) is saved in each block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import affine_before, constant

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_layer_scale"]


def fold_layer_scale(model: ir.Model) -> PassResult:
    """Move constant vectors that multiply x W + b into W and b, in place."""
    import onnx_ir as ir

    graph = model.graph
    changed = 0
    for mul in list(graph):
        if mul.op_type != "Mul" or mul.outputs[0].is_graph_output():
            continue
        for index in (0, 1):
            factor, source = constant(mul.inputs[index]), mul.inputs[1 - index]
            affine = affine_before(source)
            if factor is None or affine is None or factor.size != affine.width or factor.shape[-1] != affine.width:
                continue
            scale = factor.reshape(-1)
            affine.replace(graph, affine.weight * scale, None if affine.bias is None else affine.bias * scale)
            ir.convenience.replace_all_uses_with(mul.outputs[0], source)  # type: ignore[arg-type]
            graph.remove(mul, safe=True)
            changed += 1
            break
    return PassResult("fold-layer-scale", changed, None if changed else "no product is followed by a learned vector")
