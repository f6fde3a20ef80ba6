"""Small questions to ask a graph, shared by the passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.core.specs import answer_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "Affine",
    "affine_before",
    "answer_value",
    "constant",
    "new_initializer",
    "only_consumer",
    "producer",
    "replace_constant",
]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or constant, None for anything computed."""
    if value is None or value.const_value is None:
        return None
    array: np.ndarray = value.const_value.numpy()
    return array


def answer_value(model: ir.Model) -> ir.Value:
    """The output of a bundle's graph that holds its answer, (batch, n)."""
    outputs = {value.name or "": value for value in model.graph.outputs}
    found: ir.Value = outputs[answer_of(tuple(outputs))]
    return found


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


def replace_constant(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray) -> None:
    """Give one node another constant under the old one's name; other readers of the old one keep it."""
    old = node.inputs[index]
    assert old is not None
    name = old.name or "constant"
    if len(list(old.uses())) == 1 and not old.is_graph_output():
        node.replace_input_with(index, None)
        graph.initializers.pop(name, None)
    node.replace_input_with(index, new_initializer(graph, name, array))


@dataclass(frozen=True)
class Affine:
    """x W + b with constant W (in, out) and b (out,), whose result one node reads; `add` is None without a bias."""

    matmul: ir.Node
    weight: np.ndarray
    add: ir.Node | None
    bias: np.ndarray | None
    bias_index: int

    @property
    def width(self) -> int:
        """Columns of W."""
        return int(self.weight.shape[1])

    def replace(self, graph: ir.Graph, weight: np.ndarray, bias: np.ndarray | None) -> None:
        """Put other numbers in W's and b's places."""
        replace_constant(graph, self.matmul, 1, weight.astype(self.weight.dtype))
        if self.add is not None and bias is not None:
            replace_constant(graph, self.add, self.bias_index, bias.astype(self.weight.dtype))


def affine_before(value: ir.Value | None) -> Affine | None:
    """The product that makes `value`, if each step of it is read by the next alone."""
    if value is None or only_consumer(value) is None:
        return None
    node, add, bias, bias_index = value.producer(), None, None, 0
    if node is not None and node.op_type == "Add":
        places = [index for index, operand in enumerate(node.inputs) if constant(operand) is not None]
        if len(places) != 1:
            return None
        add, bias_index, bias = node, places[0], constant(node.inputs[places[0]])
        source = node.inputs[1 - bias_index]
        if bias is None or bias.ndim != 1 or source is None or only_consumer(source) is None:
            return None
        node = source.producer()
    if node is None or node.op_type != "MatMul":
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or (bias is not None and bias.size != weight.shape[1]):
        return None
    return Affine(node, weight, add, bias, bias_index)
