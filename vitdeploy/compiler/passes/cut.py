"""A part of a graph as a model of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.compiler.float16.cast import reads

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["cut"]


def cut(model: ir.Model, start: str | None, end: str) -> ir.Model:
    """Keep, in place, what leads from one value to another (None: from the inputs); returns the model."""
    import onnx_ir as ir

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
    needed = _producers(outputs)
    graph.remove([node for node in reversed(list(graph)) if node not in needed])
    read = {value for node in graph for value in reads(node)}
    for name in [name for name, value in graph.initializers.items() if value not in read]:
        del graph.initializers[name]
    return model


def _producers(outputs: list[ir.Value]) -> set[ir.Node]:
    """All nodes that lead to the outputs."""
    found: set[ir.Node] = set()
    pending = list(outputs)
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            pending += reads(node)
    return found
