"""The products that INT8 is about: those with constant weights, grouped by the activation that they read.

Q, K and V read one tensor, so they share one range and one smoothing vector. A group also knows what its channels can
be rescaled into at no cost, as smoothing needs:

    LayerNorm        y = n * gamma + beta               (y - z) / s = n * (gamma / s) + (beta - z) / s
    attention value  o = softmax(.) (x Wv + bv)         (o - z) / s = softmax(.) (x (Wv / s) + (bv - z) / s)

The second holds since attention mixes tokens with weights that add up to one, and never channels. Nothing can be moved
through GELU.

A patch embedding is a convolution whose windows do not overlap, so it is the same product on rows of pixels, one row a
patch; a classifier reads one row a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.float16.cast import model_nodes
from vitdeploy.compiler.passes.values import constant, only_consumer
from vitdeploy.compiler.quantization.recipe import Placement

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["QuantGroup", "Source", "bias_of", "channel_axis", "find_groups", "layer_name", "matrix_of"]


@dataclass(frozen=True)
class Source:
    """The two vectors or matrices whose last axis may be divided by s: (gamma, beta) or (Wv, bv)."""

    node: ir.Node
    scale: tuple[ir.Node, int]  # the node and input index that hold gamma or Wv
    shift: tuple[ir.Node, int] | None  # ... beta or bv


@dataclass(frozen=True)
class QuantGroup:
    """Products that read the same activation.

    `kind` is "linear" (activation (batch, tokens, channels), or with tokens in rows and columns, or by windows that are
    in the batch's place, as Swin has them), "patch_embedding" (a Conv, (batch, channels, height,
    width)) or "classifier" ((batch, channels)).
    """

    activation: ir.Value
    products: tuple[ir.Node, ...]
    source: Source | None
    kind: str = "linear"

    @property
    def name(self) -> str:
        """After its layers: `vit.layers.0.attention.q_proj+k_proj+v_proj`."""
        names = [layer_name(node) for node in self.products]
        return "+".join([names[0], *(name.rpartition(".")[2] for name in names[1:])])

    @property
    def can_shift(self) -> bool:
        """Whether the activation may be shifted: it can't be smoothed, and each product has a bias for the shift."""
        return (
            self.kind == "linear" and self.source is None and all(bias_of(node) is not None for node in self.products)
        )

    @property
    def can_centre(self) -> bool:
        """Whether a constant may be taken off each channel of the activation, for the products' biases to add again."""
        has_shift = self.source is not None and self.source.shift is not None
        return has_shift and all(bias_of(node) is not None for node in self.products)

    def weights(self) -> list[np.ndarray]:
        """The weights as matrices (channels in, channels out), one a layer."""
        return [matrix_of(node) for node in self.products]

    def rows(self, activation: np.ndarray) -> np.ndarray:
        """One picture's activation, without its batch axis, as the rows that the weights' matrices multiply."""
        if self.kind == "linear":
            return activation.reshape(-1, activation.shape[-1])
        if self.kind == "classifier":
            return activation[np.newaxis]
        kernel = self.products[0].inputs[1]
        assert kernel is not None and kernel.shape is not None
        _, channels, tall, wide = (int(size) for size in kernel.shape)
        down, across = activation.shape[1] // tall, activation.shape[2] // wide
        cut = activation[:, : down * tall, : across * wide].reshape(channels, down, tall, across, wide)
        # (channels, down, tall, across, wide) -> (down * across, channels * tall * wide)
        rows: np.ndarray = cut.transpose(1, 3, 0, 2, 4).reshape(down * across, channels * tall * wide)
        return rows


def layer_name(node: ir.Node) -> str:
    """The module that a node comes from."""
    return (node.name or "").rpartition("/")[0] or (node.name or "")


def channel_axis(product: ir.Node) -> int:
    """The axis of a product's weight along which its output channels lie."""
    if product.op_type == "MatMul" or (product.op_type == "Gemm" and not _flag(product, "transB")):
        return 1
    return 0


def matrix_of(product: ir.Node) -> np.ndarray:
    """A product's weight as (channels in, channels out)."""
    weight = constant(product.inputs[1])
    assert weight is not None, "products of a group have constant weights"
    flat: np.ndarray = weight.reshape(len(weight), -1) if product.op_type == "Conv" else weight
    return flat if channel_axis(product) == 1 else flat.T


def bias_of(product: ir.Node) -> tuple[ir.Node, int] | None:
    """The node and its input that hold a constant bias per channel: the product's own, or the addition behind it."""
    if product.op_type in ("Conv", "Gemm"):
        has = len(product.inputs) > 2 and constant(product.inputs[2]) is not None
        return (product, 2) if has else None
    add = only_consumer(product.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    for index, value in enumerate(add.inputs):
        bias = constant(value)
        if bias is not None and bias.ndim == 1:
            return add, index
    return None


def find_groups(model: ir.Model, placement: Placement | None = None) -> list[QuantGroup]:
    """All groups in graph order: the products of the encoder, and with `placement` what else it names."""
    placement = placement or Placement()
    groups: dict[ir.Value, list[ir.Node]] = {}
    kinds: dict[ir.Value, str] = {}
    for node in model_nodes(model):
        kind = _kind(node)
        wanted = {"linear": True, "patch_embedding": placement.patch_embedding, "classifier": placement.classifier}
        activation = node.inputs[0] if kind is not None else None
        if kind is None or activation is None or not wanted[kind]:
            continue
        groups.setdefault(activation, []).append(node)
        kinds[activation] = kind
    return [
        QuantGroup(value, tuple(nodes), _source(value, nodes) if kinds[value] == "linear" else None, kinds[value])
        for value, nodes in groups.items()
    ]


def _kind(node: ir.Node) -> str | None:
    """What kind of group a node belongs to, None for all but products with a constant weight."""
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    weight, activation = constant(node.inputs[1]), node.inputs[0]
    if weight is None or activation is None:
        return None
    if node.op_type == "Conv":
        return "patch_embedding" if _cuts_patches(node, weight) else None
    if weight.ndim != 2 or (node.op_type == "Gemm" and not _plain(node)):
        return None
    rank = len(activation.shape or ())
    if rank >= 3 and node.op_type == "MatMul":
        return "linear"
    # Two-dimensional activations are pooled: heads and poolers, a thousandth of the work.
    leads_out = any(value.is_graph_output() for use in node.outputs[0].uses() for value in use.node.outputs)
    return "classifier" if rank == 2 and (leads_out or node.outputs[0].is_graph_output()) else None


def _plain(gemm: ir.Node) -> bool:
    return _flag(gemm, "alpha", 1.0) == 1 and _flag(gemm, "beta", 1.0) == 1 and not _flag(gemm, "transA")


def _flag(node: ir.Node, name: str, default: float = 0) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _cuts_patches(conv: ir.Node, weight: np.ndarray) -> bool:
    """Whether the windows of a convolution stand side by side: strides as large as the kernel, no padding."""
    strides, pads = conv.attributes.get("strides"), conv.attributes.get("pads")
    return (
        weight.ndim == 4
        and strides is not None
        and tuple(strides.as_ints()) == weight.shape[2:]
        and (pads is None or not any(pads.as_ints()))
        and _flag(conv, "group", 1) == 1
        and "auto_pad" not in {name for name, a in conv.attributes.items() if a.value not in ("NOTSET", "VALID")}
    )


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
