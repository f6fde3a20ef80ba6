"""A graph as the rules see it: its nodes, products and Q/DQ, and small questions about where a value comes from."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from vitdeploy.compiler.float16.cast import model_nodes
from vitdeploy.compiler.lint.findings import Place
from vitdeploy.compiler.passes.layer_names import scope_of
from vitdeploy.compiler.passes.values import constant
from vitdeploy.compiler.quantization.arithmetic import E4M3, INT8, Numbers
from vitdeploy.compiler.quantization.groups import layer_name
from vitdeploy.core.operators import REORDERS

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.compiler.lint.measured import MeasuredGraph

__all__ = [
    "PRODUCTS",
    "QDQ",
    "LintGraph",
    "dequantized",
    "is_weight",
    "label",
    "place",
    "product_macs",
    "readers",
    "scalar",
    "type_of_integers",
]

PRODUCTS = ("MatMul", "Gemm", "Conv")
QDQ = ("QuantizeLinear", "DequantizeLinear")
_OF_INTEGERS = ("MatMulInteger", "MatMulIntegerToFloat")  # products that read 8-bit integers as they are
_HALVES = ("FLOAT16", "BFLOAT16")


class LintGraph:
    """What every rule is given.

    Args:
        model: a graph whose values have types and, as far as possible, shapes.
        intended: names of nodes that are meant to be in FP32.
        numbers: what it is quantised to; None: as its Q/DQ say.
        measured: what its nodes gave on images; None: it was not run.
    """

    def __init__(
        self,
        model: ir.Model,
        intended: Collection[str] = (),
        numbers: Numbers | None = None,
        measured: MeasuredGraph | None = None,
    ) -> None:
        self.model, self.intended, self.measured = model, frozenset(intended), measured
        self.nodes = model_nodes(model)
        """Those behind the preprocessing, where `pixel_values` parts them, of the main graph."""
        self.every = list(model.graph.all_nodes())
        """All, those in branches and loops too."""
        self.quantizers = [node for node in self.nodes if node.op_type in QDQ]
        self.numbers = numbers or (E4M3 if any(_is_fp8(node) for node in self.quantizers) else INT8)
        self.is_quantized = numbers is not None or bool(self.quantizers)

    @cached_property
    def macs(self) -> dict[ir.Node, int]:
        """Multiply-accumulates of each product."""
        return {node: product_macs(node) for node in self.nodes if node.op_type in (*PRODUCTS, *_OF_INTEGERS)}

    @cached_property
    def inside(self) -> list[ir.Node]:
        """The products whose two factors are dequantised, or integers as they are."""
        return [
            node
            for node in self.macs
            if node.op_type in _OF_INTEGERS or all(dequantized(value) is not None for value in node.inputs[:2])
        ]

    @property
    def unknown(self) -> int:
        """How many products have sizes that are not known; they count for nothing in `macs` and `share`."""
        return sum(not count for count in self.macs.values())

    @property
    def share(self) -> float | None:
        """The part of the MACs in INT8 or FP8, 0..1; None where no shape is known."""
        total = sum(self.macs.values())
        return sum(self.macs[node] for node in self.inside) / total if total else None

    @cached_property
    def softmaxes(self) -> list[ir.Node]:
        return [node for node in self.nodes if node.op_type == "Softmax"]

    @cached_property
    def has_half(self) -> bool:
        """Whether anything is computed in FP16 or BF16."""
        return any(v.dtype is not None and v.dtype.name in _HALVES for node in self.every for v in node.outputs)


def place(node: ir.Node, text: str, targets: tuple[str, ...] = ()) -> Place:
    """A place at a node; `{}` in the text stands for its name."""
    name = label(node)
    return Place(name, text.replace("{}", name), scope_of(node) or _module(node), targets)


def label(node: ir.Node) -> str:
    """A node's name; of one without, what it makes."""
    return node.name or f"{node.op_type} of {node.outputs[0].name}"


def _module(node: ir.Node) -> str:
    module = layer_name(node)
    return "" if module == node.name else module.lstrip("/")


def product_macs(node: ir.Node) -> int:
    """Multiply-accumulates of a product for one picture; 0 if its shapes are not known."""
    out, left, right = node.outputs[0].shape, node.inputs[0], node.inputs[1]
    if out is None or left is None or right is None or left.shape is None or right.shape is None:
        return 0
    if sum(not isinstance(size, int) for size in out) > 1:  # the batch is a name
        return 0
    sizes = [size if isinstance(size, int) else _of_one(size) for size in out]
    depth = right.shape[1:] if node.op_type == "Conv" else _depth(node, left.shape)
    if not all(isinstance(size, int) for size in depth):
        return 0
    return math.prod(sizes) * math.prod(int(size) for size in depth)


def _of_one(batch: ir.SymbolicDim) -> int:
    """How much of the axis of a batch is of one picture: 16 of "16*batch", whose windows lie beside each other."""
    return math.prod(int(part) for part in (batch.value or "").split("*") if part.strip().isdecimal())


def _depth(node: ir.Node, left: ir.Shape) -> tuple[int | ir.SymbolicDim, ...]:
    """The axis that a product sums over."""
    turned = node.attributes.get("transA")
    return tuple(left[:1] if turned is not None and turned.as_int() else left[-1:])


def dequantized(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a value comes from, by way of moves."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in REORDERS:
        before = node.inputs[0]
        node = None if before is None else before.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a constant, or one that was quantised, cast or turned."""
    while value is not None:
        if value.const_value is not None:
            return True
        node = value.producer()
        if node is None or node.op_type not in (*REORDERS, *QDQ, "Cast", "Expand"):
            return False
        value = node.inputs[0]
    return False


def type_of_integers(node: ir.Node) -> str | None:
    """The type that a QuantizeLinear writes or a DequantizeLinear reads, by ONNX's name; None where it is not known."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    value = zero if zero is not None else node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    return None if value is None or value.dtype is None else str(value.dtype.name)


def _is_fp8(node: ir.Node) -> bool:
    return (type_of_integers(node) or "").startswith("FLOAT8")


def readers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that read a value, by way of moves."""
    pending = [use.node for use in value.uses()]
    while pending:
        node = pending.pop()
        if node.op_type in REORDERS:
            pending += [use.node for each in node.outputs for use in each.uses()]
        else:
            yield node


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None
