"""A graph on images: the range of each node, what FP16 can't hold, and how much of the signal each one keeps.

Two graphs run side by side, from the same file: the tested one, computed as a device does, and a reference in FP32.

    graph with Q/DQ        as it is                                   without the Q/DQ of activations
    FP16 or BF16           rounded where it says so                   without rounding
    FP32                   rounded to FP16 behind each operation      as it is

    SQNR = 10 log10(|r|^2 / |t - r|^2)     r, t: what a node gives in the reference and in the tested graph

The noise of a node is its own and that of all before it. Weights that are stored as integers have no other form in the
file, so the reference has their rounding too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.compiler.float16.cast import model_nodes
from vitdeploy.compiler.float16.plan import LARGEST
from vitdeploy.compiler.float16.simulation import round_behind, simulate
from vitdeploy.compiler.lint.graph import QDQ, place
from vitdeploy.compiler.lint.measured import MeasuredGraph, NodeRange
from vitdeploy.compiler.lint.qdq import INTEGER
from vitdeploy.compiler.lint.reading import read_graph
from vitdeploy.compiler.passes.save import save
from vitdeploy.compiler.passes.values import new_initializer
from vitdeploy.core import progress
from vitdeploy.core.errors import ModelError
from vitdeploy.core.operators import MOVES
from vitdeploy.core.parts import in_parts
from vitdeploy.core.text import first_line
from vitdeploy.evaluation.batches import open_session

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["measure"]

_HALVES = ("FLOAT16", "BFLOAT16")
_FLOATS = ("FLOAT", *_HALVES)
_NOT_LAYERS = (*MOVES, *QDQ, "Cast", "CastLike", "Constant", "ConstantOfShape", "Range", "Shape")
_HELD_BYTES = 1 << 28  # of one graph's values at a time
_UNKNOWN_BYTES = 1 << 22

_QUANTIZED = (
    "the graph as it is, against itself in FP32 without the Q/DQ of activations; weights that are stored as integers"
    " keep their rounding in both"
)
_HALF = "the graph with its rounding to half precision, against itself in FP32"
_SINGLE = "the graph rounded to FP16 behind each operation, its weights too, against itself in FP32"
_INTEGERS = "nothing is compared: the graph has integer operators, which have no form in FP32"


@dataclass
class _Sum:
    """Of one node over all images."""

    low: float = np.inf
    high: float = -np.inf
    count: int = 0
    beyond: int = 0
    lost: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: np.ndarray, tested: np.ndarray) -> None:
        """Values of a mask that are -inf in the reference too are no part of it."""
        wide, found = reference.astype(np.float64).reshape(-1), tested.astype(np.float64).reshape(-1)
        known = np.isfinite(wide)
        if not known.all():
            wide, found = wide[known], found[known]
        if not wide.size:
            return
        finite = np.isfinite(found)
        self.low, self.high = min(self.low, float(wide.min())), max(self.high, float(wide.max()))
        self.count += wide.size
        self.beyond += int((np.abs(wide) > LARGEST).sum())
        self.lost += int(wide.size - finite.sum())
        self.signal += float(wide @ wide)
        difference = (found - wide)[finite]
        self.noise += float(difference @ difference)

    @property
    def sqnr_db(self) -> float | None:
        if self.lost or not self.noise or not self.signal:
            return None
        return float(10 * np.log10(self.signal / self.noise))


def measure(path: Path, feeds: Iterable[dict[str, np.ndarray]], source: str) -> MeasuredGraph:
    """Run a graph and its reference.

    Args:
        path: an ONNX file.
        feeds: what its inputs are given, call by call.
        source: what that is, for the record.

    Raises:
        ModelError: ONNX Runtime can't run it.
    """
    tested, reference = read_graph(path), read_graph(path)
    kind = _kind(tested)
    nodes = [node for node in model_nodes(reference) if _is_layer(node)]
    sizes = {str(node.outputs[0].name): _bytes(node.outputs[0]) for node in nodes}
    names = list(sizes)
    if kind != _SINGLE:
        _remove_qdq(reference)
        _widen(reference)
    else:
        _round_weights(tested)
    if kind == _SINGLE:
        _round_all(tested)
    elif _has_half(tested):
        simulate(tested)
        _cast_inputs(tested)
    sums = {name: _Sum() for name in names}
    chunks = list(in_parts(names, sizes.__getitem__, _HELD_BYTES))
    images = 0
    with tempfile.TemporaryDirectory() as scratch:
        sides = [
            _opened(model, names, Path(scratch) / f"{n}.onnx", path) for n, model in enumerate((reference, tested))
        ]
        with progress.task("Measuring", unit="images") as step:
            for feed in feeds:
                for chunk in chunks:
                    values, found = (_run(side, chunk, feed, path) for side in sides)
                    for name, before, after in zip(chunk, values, found, strict=True):
                        sums[name].add(before, after)
                count = len(next(iter(feed.values())))
                images += count
                step.advance(count)
    compared = kind != _INTEGERS
    rows = [_row(node, sums[name], compared) for node, name in zip(nodes, names, strict=True) if sums[name].count]
    return MeasuredGraph(images, source, kind, tuple(rows))


def _row(node: ir.Node, found: _Sum, compared: bool) -> NodeRange:
    where = place(node, "")
    return NodeRange(
        node=where.node,
        layer=where.layer,
        op_type=node.op_type,
        low=found.low,
        high=found.high,
        beyond_fp16=found.beyond / found.count,
        not_finite=found.lost / found.count,
        sqnr_db=found.sqnr_db if compared else None,
    )


def _kind(model: ir.Model) -> str:
    nodes = list(model.graph.all_nodes())
    if any(node.op_type in INTEGER.get(node.domain, ()) for node in nodes):
        return _INTEGERS
    if any(node.op_type in QDQ for node in nodes):
        return _QUANTIZED
    return _HALF if _has_half(model) else _SINGLE


def _has_half(model: ir.Model) -> bool:
    return any(v.dtype is not None and v.dtype.name in _HALVES for node in model.graph for v in node.outputs)


def _is_layer(node: ir.Node) -> bool:
    value = node.outputs[0]
    return (
        node.op_type not in _NOT_LAYERS
        and value.dtype is not None
        and value.dtype.name in _FLOATS
        and value.const_value is None
        and bool(value.name)
    )


def _bytes(value: ir.Value) -> int:
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return _UNKNOWN_BYTES
    return 4 * int(np.prod([int(size) for size in value.shape if isinstance(size, int)]))


def _remove_qdq(model: ir.Model) -> None:
    """Who reads a DequantizeLinear behind a QuantizeLinear reads what that was given."""
    import onnx_ir as ir

    for node in list(model.graph):
        quantize = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or node.outputs[0].is_graph_output():
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], quantize.inputs[0])


def _widen(model: ir.Model) -> None:
    """All of half precision in FP32."""
    import onnx_ir as ir

    halves, single = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16), ir.TensorType(ir.DataType.FLOAT)
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if value.dtype in halves and value.const_value is not None:
            wide = new_initializer(graph, f"{name}.wide", value.const_value.numpy().astype(np.float32))
            ir.convenience.replace_all_uses_with(value, wide)
            del graph.initializers[name]
    for node in graph:
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and ir.DataType(to.as_int()) in halves:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        for value in node.outputs:
            if value.dtype in halves:
                value.type = single
    _cast_inputs(model)


def _cast_inputs(model: ir.Model) -> None:
    """Inputs in half precision keep their type; a Cast stands behind them."""
    import onnx_ir as ir

    for value in model.graph.inputs:
        if value.dtype is None or value.dtype.name not in _HALVES:
            continue
        uses = list(value.uses())
        cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=f"{value.name}/to_float")
        cast.outputs[0].name = f"{value.name}_float"
        first = next(iter(model.graph))
        model.graph.insert_before(first, cast)
        for use in uses:
            use.node.replace_input_with(use.idx, cast.outputs[0])


def _round_weights(model: ir.Model) -> None:
    import onnx_ir as ir

    nodes = set(model_nodes(model))
    for name, value in list(model.graph.initializers.items()):
        readers = {use.node for use in value.uses()}
        if value.dtype != ir.DataType.FLOAT or value.const_value is None or not readers <= nodes:
            continue
        with np.errstate(over="ignore"):
            array = value.const_value.numpy().astype(np.float16).astype(np.float32)
        rounded = new_initializer(model.graph, f"{name}.rounded", array)
        ir.convenience.replace_all_uses_with(value, rounded)


def _round_all(model: ir.Model) -> None:
    import onnx_ir as ir

    for node in model_nodes(model):
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and value.const_value is None and node.op_type not in MOVES:
                round_behind(model.graph, node, value, ir.DataType.FLOAT16, down=True)


def _opened(model: ir.Model, names: list[str], file: Path, path: Path) -> Any:
    values = {value.name: value for node in model.graph for value in node.outputs}
    held = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(values[name] for name in names if name not in held)
    try:
        save(model, file, external=True)
        return open_session(file, fuse=False)
    except Exception as error:  # onnxruntime's own kinds of errors, of whatever a graph may have
        raise _cannot_run(path, error) from error


def _run(session: Any, names: list[str], feed: dict[str, np.ndarray], path: Path) -> list[np.ndarray]:
    try:
        found: list[np.ndarray] = session.run(names, feed)
    except Exception as error:  # as above
        raise _cannot_run(path, error) from error
    return found


def _cannot_run(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} can't be run: {first_line(error)}", hint="leave --measure out: the other rules need no run"
    )
