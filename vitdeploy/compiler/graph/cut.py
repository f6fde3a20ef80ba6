"""A part of a graph as a model of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["cut"]


def cut(model: ir.Model, start: str | None, end: str) -> ir.Model:
    """Keep, in place, what leads from one value to another (None: from the inputs); returns the model."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    outputs = [values[end]]
    if start is not None:
        old = values[start]
        new = ir.Value(name=start, type=old.type, shape=old.shape)
        old.name = f"{start}_before"
        ir.convenience.replace_all_uses_with(old, new)
        graph.inputs.clear()
        graph.inputs.append(new)
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    common.RemoveUnusedNodesPass()(model)
    return model
