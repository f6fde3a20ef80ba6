"""The products that INT8 is about: MatMuls with constant weights, grouped by the activation that they read.

Q, K and V read one tensor, so they share one range and one smoothing vector. A group also knows what its channels can
be rescaled into at no cost, as smoothing needs:

    LayerNorm        y = n * gamma + beta               y / s = n * (gamma / s) + beta / s
    attention value  o = softmax(.) (x Wv + bv)         o / s = softmax(.) (x (Wv / s) + bv / s)

The second holds since attention mixes tokens, never channels. Nothing can be moved through GELU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.graph.half import model_nodes
from vitdeploy.compiler.graph.values import constant, only_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LayerGroup", "Source", "bias_of", "find_groups", "layer_name"]


@dataclass(frozen=True)
class Source:
    """The two vectors or matrices whose last axis may be divided by s: (gamma, beta) or (Wv, bv)."""

    node: ir.Node
    scale: tuple[ir.Node, int]  # the node and input index that hold gamma or Wv
    shift: tuple[ir.Node, int] | None  # ... beta or bv


@dataclass(frozen=True)
class LayerGroup:
    """MatMuls that read the same activation (batch, tokens, channels)."""

    activation: ir.Value
    matmuls: tuple[ir.Node, ...]
    source: Source | None

    @property
    def name(self) -> str:
        """After its layers: `vit.layers.0.attention.q_proj+k_proj+v_proj`."""
        names = [layer_name(node) for node in self.matmuls]
        return "+".join([names[0], *(name.rpartition(".")[2] for name in names[1:])])

    @property
    def can_shift(self) -> bool:
        """Whether the activation may be shifted: it can't be smoothed, and each product has a bias for the shift."""
        return self.source is None and all(bias_of(node) is not None for node in self.matmuls)

    def weights(self) -> list[np.ndarray]:
        """The weights (channels in, channels out), one a layer."""
        arrays = [constant(node.inputs[1]) for node in self.matmuls]
        return [array for array in arrays if array is not None]


def layer_name(node: ir.Node) -> str:
    """The module that a node comes from."""
    return (node.name or "").rpartition("/")[0] or (node.name or "")


def bias_of(matmul: ir.Node) -> tuple[ir.Node, int] | None:
    """The addition behind a product and the input of it that holds a constant bias per channel."""
    add = only_consumer(matmul.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    for index, value in enumerate(add.inputs):
        bias = constant(value)
        if bias is not None and bias.ndim == 1:
            return add, index
    return None


def find_groups(model: ir.Model) -> list[LayerGroup]:
    """All groups in graph order: the products of the encoder, not the patch embedding, not the classifier."""
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in model_nodes(model):
        if node.op_type != "MatMul":
            continue
        weight = constant(node.inputs[1])
        activation = node.inputs[0]
        # Two-dimensional activations are pooled: heads and poolers, a thousandth of the work.
        if weight is None or weight.ndim != 2 or activation is None or len(activation.shape or ()) != 3:
            continue
        groups.setdefault(activation, []).append(node)
    return [LayerGroup(value, tuple(nodes), _source(value, nodes)) for value, nodes in groups.items()]


def _source(activation: ir.Value, readers: list[ir.Node]) -> Source | None:
    if {use.node for use in activation.uses()} != set(readers) or activation.is_graph_output():
        return None  # somebody else reads the tensor too, and must see it unscaled
    node = activation.producer()
    if node is None:
        return None
    if node.op_type == "LayerNormalization":
        shift = (node, 2) if len(node.inputs) > 2 and constant(node.inputs[2]) is not None else None
        return Source(node, (node, 1), shift) if constant(node.inputs[1]) is not None else None
    return _value_projection(node)


def _value_projection(node: ir.Node | None) -> Source | None:
    """Walk from the merged heads back through softmax(.) V to the projection of V."""
    for op_type in ("Reshape", "Transpose", "MatMul", "Transpose", "Reshape", "Add", "MatMul"):
        if node is None or node.op_type != op_type:
            return None
        if op_type == "Add":
            add = node
            index = 0 if constant(node.inputs[0]) is not None else 1
            bias = constant(node.inputs[index])
            if bias is None or bias.ndim != 1:
                return None
            value = node.inputs[1 - index]
        elif op_type == "MatMul" and constant(node.inputs[1]) is not None:
            return Source(node, (node, 1), (add, index))
        else:
            value = node.inputs[1] if op_type == "MatMul" else node.inputs[0]
        if value is None or only_consumer(value) is None:
            return None
        node = value.producer()
    return None
