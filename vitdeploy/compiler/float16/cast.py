"""The model in half precision, the preprocessing in single: a strongly typed graph.

Every float32 weight and activation between `pixel_values` and the outputs becomes float16, or bfloat16; inputs and
outputs keep their types. LayerNormalization keeps its mean and variance in float32 (`stash_type` 1): a float16 square
overflows from |x| = 256 on. No builder flag decides a precision: TensorRT 10, 11 and RTX, ONNX Runtime and OpenVINO all
run what the graph says.

Nodes that half precision would spoil stay in float32, with one cast for each tensor that crosses the border:

    half -> Cast -> [ kept node -> kept node ] -> Cast -> half

and `fewer_casts` moves the border to where it cuts the fewest tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import new_initializer
from vitdeploy.core.errors import ModelError
from vitdeploy.core.operators import MOVES
from vitdeploy.core.specs import PIXEL_VALUES

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "count_casts",
    "fewer_casts",
    "model_nodes",
    "only_single",
    "reads",
    "single_by_standard",
    "to_half",
]

_CHEAP = (*MOVES, "Add", "Mul", "Sub", "Pad", "LayerNormalization", "Softmax", "ReduceMean")
_LARGEST = float(np.finfo(np.float16).max)
# Inputs that the ONNX specification holds at float32 whatever the data is.
_ALWAYS_SINGLE = {("Resize", 1), ("Resize", 2)}


def model_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes behind `pixel_values`, in order; all nodes of a graph without preprocessing."""
    preprocessing: set[ir.Node] = set()
    pending = [node for node in model.graph if any(value.name == PIXEL_VALUES for value in node.outputs)]
    while pending:
        node = pending.pop()
        if node in preprocessing:
            continue
        preprocessing.add(node)
        pending.extend(p for p in (value.producer() for value in reads(node)) if p is not None)
    return [node for node in model.graph if node not in preprocessing]


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, also from inside the branches of an If."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            for inner in attribute.as_graph():
                yield from reads(inner)


def only_single(node: ir.Node, dtype: str, opset: int) -> bool:
    """Whether the ONNX specification has no such operator in that type: Conv took up bfloat16 in opset 22."""
    import onnx

    if node.domain not in ("", "ai.onnx") or node.op_type == "Cast":
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    wanted = f"tensor({dtype})"
    for formal in (schema.inputs[0], schema.outputs[0]) if schema.inputs else schema.outputs[:1]:
        types = next(
            (c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == formal.type_str), None
        )
        if types is not None and "tensor(float)" in types and wanted not in types:
            return True
    return False


def single_by_standard(model: ir.Model, dtype: str) -> dict[str, str]:
    """{node: why} of the nodes that `to_half` leaves in float32 since ONNX has no such operator in that type."""
    opset = model.graph.opset_imports.get("", 20)
    return {
        node.name or "": f"{node.name}: {node.op_type} has no {dtype} in opset {opset}"
        for node in model_nodes(model)
        if only_single(node, dtype, opset)
    }


def to_half(model: ir.Model, keep: Collection[str] = (), *, dtype: str = "float16") -> PassResult:
    """Rewrite `model` in place.

    Args:
        model: the FP32 graph, or an INT8 graph with an FP32 remainder.
        keep: names of nodes that stay in float32.
        dtype: "float16" or "bfloat16".

    Raises:
        ModelError: a weight is outside float16's range; the message names it.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    nodes = model_nodes(model)
    if any(value.dtype is None for node in nodes for value in node.outputs):
        common.ShapeInferencePass()(model)
    opset = model.graph.opset_imports.get("", 20)
    kept = {node for node in nodes if node.name in keep or only_single(node, dtype, opset)}
    kept |= _quantizers_of(nodes, kept)
    kept |= {node for node in nodes if _ends_in_single(node)}
    half = ir.DataType.FLOAT16 if dtype == "float16" else ir.DataType.BFLOAT16
    casts = _Rewrite(model, nodes, kept, half).run()
    return PassResult(
        "to-half", len(nodes) - len(kept), None if not kept else f"{casts} casts around {len(kept)} nodes"
    )


def _quantizers_of(nodes: list[ir.Node], kept: set[ir.Node]) -> set[ir.Node]:
    """Q takes the type of what it reads and DQ that of who reads it: with a kept neighbour neither needs a cast."""
    found = set()
    for node in nodes:
        if node.op_type == "DequantizeLinear":
            users = [use.node for use in node.outputs[0].uses()]
            if users and all(user in kept for user in users):
                found.add(node)
        if node.op_type == "QuantizeLinear":
            source = node.inputs[0].producer() if node.inputs[0] is not None else None
            if source in kept:
                found.add(node)
    return found


def _ends_in_single(node: ir.Node) -> bool:
    """The softmax or sigmoid of the scores: it reads the logits, which leave the graph in single precision anyway."""
    first = node.inputs[0] if node.inputs else None
    last = node.outputs[0]
    return (
        node.op_type in ("Softmax", "Sigmoid")
        and last.is_graph_output()
        and first is not None
        and first.is_graph_output()
    )


class _Rewrite:
    """One conversion: which values have which type, and the casts between them."""

    def __init__(self, model: ir.Model, nodes: list[ir.Node], kept: set[ir.Node], half: ir.DataType) -> None:
        import onnx_ir as ir

        self._ir, self._graph = ir, model.graph
        self._nodes, self._inside, self._kept = nodes, set(nodes), kept
        self._single, self._half = ir.DataType.FLOAT, half
        self._weights: dict[str, ir.Value] = {}
        self._casts: dict[tuple[ir.Value, bool], ir.Value] = {}

    def run(self) -> int:
        for node in self._nodes:
            for value in node.outputs:
                if value.dtype == self._single and node not in self._kept:
                    value.type = self._ir.TensorType(self._half)
        for node in self._nodes:
            self._convert(node)
        for name in self._weights:
            if not self._graph.initializers[name].uses():
                del self._graph.initializers[name]
        for value in self._weights.values():
            name = (value.name or "").removesuffix(".half")
            if name not in self._graph.initializers:
                value.name = name
        self._cast_outputs()
        return len(self._casts)

    def _convert(self, node: ir.Node) -> None:
        to_half = node not in self._kept
        for index, value in enumerate(node.inputs):
            if value is None or (node.op_type, index) in _ALWAYS_SINGLE:
                continue
            if value.const_value is not None and value.is_initializer():
                if to_half and value.dtype == self._single:
                    node.replace_input_with(index, self._weight(value))
            elif value.dtype == (self._single if to_half else self._half):
                node.replace_input_with(index, self._cast(value, to_half))
        to = node.attributes.get("to")
        if to_half and node.op_type == "Cast" and to is not None and to.as_int() == self._single:
            node.attributes["to"] = self._ir.AttrInt64("to", int(self._half))

    def _weight(self, value: ir.Value) -> ir.Value:
        name = value.name or ""
        if name not in self._weights:
            assert value.const_value is not None
            self._weights[name] = _half_initializer(self._graph, name, value.const_value.numpy(), self._half)
        return self._weights[name]

    def _cast(self, value: ir.Value, to_half: bool) -> ir.Value:
        if (value, to_half) not in self._casts:
            to, word = (self._half, "half") if to_half else (self._single, "single")
            cast = self._ir.node("Cast", [value], attributes={"to": to}, name=f"{value.name}/to_{word}")
            out = cast.outputs[0]
            out.name, out.type, out.shape = f"{value.name}_{word}", self._ir.TensorType(to), value.shape
            producer = value.producer()
            if producer not in self._inside:
                self._graph.insert_before(self._nodes[0], cast)
            else:
                self._graph.insert_after(producer, cast)
            self._casts[value, to_half] = out
        return self._casts[value, to_half]

    def _cast_outputs(self) -> None:
        """Outputs keep their names and float32."""
        for index, value in enumerate(list(self._graph.outputs)):
            if value.dtype != self._half:
                continue
            name = value.name
            cast_up = self._casts.get((value, False))
            value.name = f"{name}_half"
            if cast_up is None:
                cast_up = self._cast(value, False)
            cast_up.name = name
            self._graph.outputs[index] = cast_up


def _half_initializer(graph: ir.Graph, name: str, array: np.ndarray, half: ir.DataType) -> ir.Value:
    # -inf is how a mask says never, and float16 has it too
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if half.name == "FLOAT16" and largest > _LARGEST:
        raise ModelError(
            f"{name} holds {largest:.4g}, outside float16 (largest {_LARGEST:.0f})",
            hint="keep this model at FP32 or use INT8 with an FP32 remainder (--int8 --target onnx)",
        )
    return new_initializer(graph, f"{name}.half", array.astype(half.numpy()))


def count_casts(nodes: list[ir.Node], kept: Collection[ir.Node]) -> int:
    """Tensors that cross the border between kept and converted nodes, one cast each and direction."""
    import onnx_ir as ir

    inside, count = set(nodes), 0
    for node in nodes:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                others = {use.node in kept for use in value.uses() if use.node in inside}
                count += len(others - {node in kept})
    return count


def fewer_casts(nodes: list[ir.Node], kept: set[ir.Node]) -> set[ir.Node]:
    """Take cheap neighbours of kept nodes in as long as that saves casts; products are never taken in."""
    best = set(kept)
    improved = True
    while improved:
        improved = False
        inside = set(nodes)
        around = {use.node for node in best for value in node.outputs for use in value.uses()}
        around |= {p for node in best for v in node.inputs if v is not None and (p := v.producer()) is not None}
        for node in sorted(around & inside - best, key=lambda node: node.name or ""):
            if node.op_type in _CHEAP and count_casts(nodes, best | {node}) < count_casts(nodes, best):
                best.add(node)
                improved = True
    return best
