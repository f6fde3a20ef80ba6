"""Whether an INT8 graph can run faster than FP16 on TensorRT, read from the graph: no GPU is needed to see that not.

TensorRT builds what a strongly typed graph says. What makes INT8 slower than FP16 there:

    FP32 islands          regions of the model that compute in FP32, where the remainder should be FP16
    one-sided residuals   an addition of which one side comes from Q/DQ and the other does not: an extra pass over it
    Q/DQ without fusion   a DequantizeLinear that feeds no product, a product with one input in INT8 only, a zero point
                          or a uint8 type, a scale of another type than the graph around it, scales that are not one an
                          activation and one an output channel of a weight, and attention quantised in part or over
                          more tokens than the fused kernel takes
    too little            hardly any of the multiply-accumulates (MACs) in INT8
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.compiler.attention import LONGEST
from vitdeploy.compiler.graph.half import model_nodes
from vitdeploy.compiler.graph.values import constant, producer
from vitdeploy.compiler.layers import channel_axis
from vitdeploy.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LEAST_SHARE", "Structure", "check_structure", "product_macs"]

LEAST_SHARE = 0.1
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")  # the same numbers in another order
_SHOWN = 4


@dataclass(frozen=True)
class Structure:
    """What the graph is made of. MACs are those of one picture; lists hold what is wrong, in words."""

    macs: int
    macs_int8: int
    fp32_islands: tuple[str, ...]
    one_sided_residuals: tuple[str, ...]
    unfusable: tuple[str, ...]

    @property
    def share(self) -> float:
        """The part of the MACs in INT8, 0..1."""
        return self.macs_int8 / self.macs if self.macs else 0.0

    def problems(self) -> list[str]:
        """Why this graph would not run faster than FP16; empty if it can."""
        found = [f"FP32 island at {name}" for name in self.fp32_islands]
        found += [f"Q/DQ on one side of the residual {name}" for name in self.one_sided_residuals]
        found += list(self.unfusable)
        if self.share < LEAST_SHARE:
            found.append(f"only {self.share:.1%} of the multiply-accumulates are in INT8")
        return found

    def require_sound(self) -> None:
        """
        Raises:
            ModelError: the graph would be slower than FP16 by its structure.
        """
        problems = self.problems()
        if problems:
            more = f" ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise ModelError(
                f"this INT8 graph would be no faster than FP16: {'; '.join(problems[:_SHOWN])}{more}",
                hint="use --fp16 for this model, or quantise other parts of it (see docs/int8.md)",
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "macs": self.macs,
            "macs_int8": self.macs_int8,
            "share_int8": round(self.share, 4),
            "fp32_islands": list(self.fp32_islands),
            "one_sided_residuals": list(self.one_sided_residuals),
            "unfusable": list(self.unfusable),
        }

    def __str__(self) -> str:
        return (
            f"{self.share:.1%} of {self.macs / 1e9:.3g} GMACs in INT8, {len(self.fp32_islands)} FP32 islands,"
            f" {len(self.one_sided_residuals)} one-sided residuals, {len(self.unfusable)} Q/DQ that can't be fused"
        )


def check_structure(model: ir.Model, intended: Collection[str] = ()) -> Structure:
    """Look at an INT8 graph for TensorRT, with shapes of its values; `intended` are nodes that must be in FP32."""
    nodes = model_nodes(model)
    macs = {node: product_macs(node) for node in nodes if node.op_type in _PRODUCTS}
    inside = [node for node in macs if all(_dequantized(value) is not None for value in node.inputs[:2])]
    unfusable = [reason for node in nodes for reason in _unfusable(node)]
    return Structure(
        macs=sum(macs.values()),
        macs_int8=sum(macs[node] for node in inside),
        fp32_islands=tuple(_islands([node for node in nodes if node.name not in intended])),
        one_sided_residuals=tuple(node.name or "Add" for node in nodes if _one_sided(node)),
        unfusable=tuple(dict.fromkeys([*unfusable, *_attention(inside)])),
    )


def product_macs(node: ir.Node) -> int:
    """Multiply-accumulates of a MatMul, Gemm or Conv for one picture; 0 if its shapes are not known."""
    out, left, right = node.outputs[0].shape, node.inputs[0], node.inputs[1]
    if out is None or left is None or right is None or left.shape is None or right.shape is None:
        return 0
    sizes = [size for size in out if isinstance(size, int)]  # the batch is a name
    if len(sizes) < len(out) - 1:
        return 0
    depth = right.shape[1:] if node.op_type == "Conv" else left.shape[-1:]
    if not all(isinstance(size, int) for size in depth):
        return 0
    return math.prod(sizes) * math.prod(int(size) for size in depth)


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a value comes from, by way of moves."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _MOVES:
        before = node.inputs[0]
        node = None if before is None else before.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _one_sided(node: ir.Node) -> bool:
    if node.op_type != "Add" or any(constant(value) is not None for value in node.inputs):
        return False
    return len({_dequantized(value) is None for value in node.inputs}) == 2


def _islands(nodes: list[ir.Node]) -> list[str]:
    """The first node of each connected region that computes in FP32; casts and Q/DQ only cross borders."""
    import onnx_ir as ir

    single = [
        node
        for node in nodes
        if node.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear")
        and any(value.dtype == ir.DataType.FLOAT and not value.is_graph_output() for value in node.outputs)
    ]
    region: dict[ir.Node, ir.Node] = {}  # node -> the first of its region
    for node in single:
        before = {
            region[p] for p in (v.producer() for v in node.inputs if v is not None) if p is not None and p in region
        }
        first = min(before, key=single.index, default=node)
        region[node] = first
        for other, root in region.items():
            if root in before:
                region[other] = first
    return [node.name or node.op_type for node in dict.fromkeys(region.values())]


def _unfusable(node: ir.Node) -> list[str]:
    if node.op_type in _PRODUCTS:
        sides = [_dequantized(value) is not None for value in node.inputs[:2]]
        return [f"{node.name} has only one input in INT8"] if len(set(sides)) == 2 else []
    if node.op_type == "QuantizeLinear":
        readers = [use.node.op_type for use in node.outputs[0].uses()]
        lost = sorted(set(readers) - {"DequantizeLinear"})
        return [*_bad_types(node), *([f"{node.name} is read by {', '.join(lost)}"] if lost else [])]
    if node.op_type == "DequantizeLinear":
        return [*_bad_types(node), *_bad_axis(node), *_bad_readers(node)]
    return []


def _bad_types(node: ir.Node) -> list[str]:
    import onnx_ir as ir

    scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    points = constant(zero)
    if zero is not None and (zero.dtype != ir.DataType.INT8 or points is None or points.any()):
        return [f"{node.name} is not symmetric int8 (its zero point is not 0, or of another type)"]
    around = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
    if scale is not None and around is not None and around.dtype is not None and scale.dtype != around.dtype:
        return [f"{node.name} has a scale of another type than its data"]
    return []


def _bad_axis(dequantize: ir.Node) -> list[str]:
    """Weights have a scale per output channel, activations have one."""
    data, scale = dequantize.inputs[0], constant(dequantize.inputs[1])
    size = 1 if scale is None else scale.size
    if constant(data) is None:
        return [f"{dequantize.name} has {size} scales for one activation"] if size > 1 else []
    axis = dequantize.attributes.get("axis")
    given = 1 if axis is None else axis.as_int()
    readers = [use.node for use in dequantize.outputs[0].uses() if use.node.op_type in _PRODUCTS]
    if size > 1 and any(channel_axis(node) != given for node in readers):
        return [f"{dequantize.name} has its scales along the wrong axis of a weight"]
    return []


def _bad_readers(dequantize: ir.Node) -> list[str]:
    pending, lost = [use.node for use in dequantize.outputs[0].uses()], []
    while pending:
        node = pending.pop()
        if node.op_type in _MOVES:
            pending += [use.node for value in node.outputs for use in value.uses()]
        elif node.op_type not in _PRODUCTS:
            lost.append(node.op_type)
    return [f"{dequantize.name} feeds {', '.join(sorted(set(lost)))}, not a product"] if lost else []


def _attention(int8_products: list[ir.Node]) -> list[str]:
    """Attention in INT8 takes both of its products, and no more tokens than the fused kernel does."""
    found, inside = [], set(int8_products)
    for node in int8_products:
        for use in node.outputs[0].uses():
            if use.node.op_type != "Softmax":
                continue
            tokens = (node.outputs[0].shape or [0])[-1]
            if isinstance(tokens, int) and tokens > LONGEST:
                found.append(f"{node.name}: there is no fused INT8 attention for {tokens} tokens (at most {LONGEST})")
            mixing = _products_behind(use.node)
            if not mixing or not mixing <= inside:
                found.append(f"{node.name} is in INT8 and the product behind its softmax is not")
        scores = _scores_before(node)
        if scores is not None and scores not in inside:
            found.append(f"{node.name} is in INT8 and the product before its softmax is not")
    return found


def _scores_before(mixing: ir.Node) -> ir.Node | None:
    """The product whose softmax a product reads through Q/DQ."""
    value = mixing.inputs[0]
    for op_type in ("DequantizeLinear", "QuantizeLinear", "Softmax", "MatMul"):
        node = producer(value, op_type)
        if node is None:
            return None
        value = node.inputs[0]
    return node


def _products_behind(softmax: ir.Node) -> set[ir.Node]:
    pending, found = [use.node for use in softmax.outputs[0].uses()], set()
    while pending:
        node = pending.pop()
        if node.op_type in _PRODUCTS:
            found.add(node)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            pending += [use.node for use in node.outputs[0].uses()]
    return found
