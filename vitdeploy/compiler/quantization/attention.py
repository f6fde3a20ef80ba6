"""The two products of attention that have no weights: S = Q K^T and O = softmax(S) V.

TensorRT runs them in INT8 only if Q, K, V and the softmax's output are all quantised. Each gets one scale for all
heads, as its fused kernel wants. What can be moved between Q and K at no cost, per channel j of a head:

    S = sum_j Q_j K_j = sum_j (Q_j / b_j) (b_j K_j)         b goes into the projections: Wq / b, bq / b, Wk b, bk b
    softmax(Q (K - c)^T) = softmax(Q K^T)                   since Q c^T is the same for all keys; bk - c

V is centred with the output projection's input (see `layers`), which keeps the rounding of P from being multiplied by
what all tokens have in common. O's mean error goes through the output projection into its bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitdeploy.compiler.float16.cast import model_nodes
from vitdeploy.compiler.passes.values import constant, only_consumer, producer
from vitdeploy.compiler.quantization.groups import Source, bias_of, layer_name

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["AttentionProducts", "find_attention"]

LONGEST = 512  # TensorRT has no fused INT8 attention for more tokens


@dataclass(frozen=True)
class AttentionProducts:
    """S = Q K^T with Q (batch, heads, tokens, head_dim) and K^T (batch, heads, head_dim, tokens), and O = P V.

    The sources are the projections whose output channels are those of Q, K and V, head by head; None where the graph
    does not show them. `output` is the product that reads O with its heads side by side, None where there is none.
    """

    scores: ir.Node
    softmax: ir.Node
    mixing: ir.Node
    query_source: Source | None
    key_source: Source | None
    value_source: Source | None
    output: ir.Node | None

    @property
    def name(self) -> str:
        """After its module: `vit.layers.0.attention.products`."""
        return f"{layer_name(self.softmax)}.products"

    @property
    def operands(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Q, K^T and V as the products read them."""
        query, key, value = self.scores.inputs[0], self.scores.inputs[1], self.mixing.inputs[1]
        assert query is not None and key is not None and value is not None
        return query, key, value

    @property
    def can_balance(self) -> bool:
        return self.query_source is not None and self.key_source is not None


def find_attention(model: ir.Model) -> list[AttentionProducts]:
    """All pairs of products around a softmax, in graph order."""
    found = []
    for softmax in model_nodes(model):
        if softmax.op_type != "Softmax":
            continue
        scores = producer(softmax.inputs[0], "MatMul")
        readers = [use.node for use in softmax.outputs[0].uses() if use.idx == 0 and use.node.op_type == "MatMul"]
        if scores is None or len(readers) != 1 or any(constant(value) is not None for value in scores.inputs):
            continue
        mixing = readers[0]
        if any(len(v.shape or ()) != 4 for v in (*scores.inputs, *mixing.inputs) if v is not None):
            continue
        found.append(
            AttentionProducts(
                scores,
                softmax,
                mixing,
                _projection(scores.inputs[0], (0, 2, 1, 3)),
                _projection(scores.inputs[1], (0, 2, 3, 1)),
                _projection(mixing.inputs[1], (0, 2, 1, 3)),
                _output_projection(mixing),
            )
        )
    return found


def _projection(value: ir.Value | None, order: tuple[int, ...]) -> Source | None:
    """The product with a constant weight behind Transpose(Reshape(. + bias)), nobody else reading what is between."""
    node = producer(value, "Transpose")
    if node is None or tuple(node.attributes["perm"].as_ints()) != order:
        return None
    for op_type in ("Reshape", "Add"):
        previous = node.inputs[0]
        if previous is None or only_consumer(node.outputs[0]) is None:
            return None
        node = previous.producer()
        if node is None or node.op_type != op_type:
            return None
    index = 0 if constant(node.inputs[0]) is not None else 1
    bias = constant(node.inputs[index])
    product = producer(node.inputs[1 - index], "MatMul")
    if bias is None or bias.ndim != 1 or product is None or constant(product.inputs[1]) is None:
        return None
    if only_consumer(node.outputs[0]) is None or only_consumer(product.outputs[0]) is not node:
        return None
    return Source(product, (product, 1), (node, index))


def _output_projection(mixing: ir.Node) -> ir.Node | None:
    node = only_consumer(mixing.outputs[0])
    for op_type in ("Transpose", "Reshape"):
        if node is None or node.op_type != op_type:
            return None
        node = only_consumer(node.outputs[0])
    if node is None or node.op_type != "MatMul" or constant(node.inputs[1]) is None or bias_of(node) is None:
        return None
    return node
