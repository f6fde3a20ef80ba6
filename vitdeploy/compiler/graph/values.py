"""Small questions to ask a graph, shared by the passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["constant", "new_initializer", "only_consumer", "producer"]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or constant, None for anything computed."""
    if value is None or value.const_value is None:
        return None
    array: np.ndarray = value.const_value.numpy()
    return array


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes `value`, if it is of that type."""
    if value is None:
        return None
    node = value.producer()
    return node if node is not None and node.op_type == op_type else None


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`; None if there are more, none, or it is an output of the graph."""
    users = list(value.uses())
    if len(users) != 1 or value.is_graph_output():
        return None
    node: ir.Node = users[0].node
    return node


def new_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer under `name`, or under `name_1`, `name_2` ... where that is taken."""
    import onnx_ir as ir

    unique, count = name, 0
    while unique in graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    # A copy of its own: a view would keep alive, and may share memory with, what it was cut from.
    tensor = ir.tensor(np.array(array, order="C"), name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
