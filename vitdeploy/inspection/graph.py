"""What is in an ONNX file, counted: operators, parameters and their types, and how much of it computes in INT8."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitdeploy.core.errors import require
from vitdeploy.core.onnx_files import read_message
from vitdeploy.core.operators import REORDERS
from vitdeploy.core.specs import TensorSpec

__all__ = ["GraphFacts", "WeightCount", "read_graph"]

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_FUSED = "MatMulIntegerToFloat"  # ONNX Runtime's, of two 8-bit inputs, two scales, two zero points and a bias
# What may stand between a DequantizeLinear and the product that it feeds, without leaving INT8.


@dataclass(frozen=True)
class WeightCount:
    """The stored tensors of one type: how many, their elements in all, and their size."""

    tensors: int
    elements: int
    size_bytes: int


@dataclass(frozen=True)
class GraphFacts:
    """An ONNX graph, its subgraphs included.

    `weights` are all stored tensors by type, `parameters` their elements without the scales and zero points of Q/DQ.
    `products` are the matrix products and convolutions, `int8_products` those of them whose two factors are both
    dequantised INT8, `fp8_products` FP8.
    """

    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    parameters: int
    weights: dict[str, WeightCount]
    quantize_nodes: int
    dequantize_nodes: int
    products: int
    int8_products: int
    fp8_products: int

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }


def read_graph(path: Path) -> GraphFacts:
    """Read an ONNX file; weights that it keeps in other files are counted and not read.

    Raises:
        ModelError: it is damaged or no ONNX file.
        DependencyError: the package onnx is not installed.
    """
    model, onnx = read_message(path), require("onnx", extra="build")
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    operators = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)
    stored = {tensor.name for graph in _graphs(model.graph) for tensor in graph.initializer}
    weights = _weights(onnx, model.graph, nodes)
    return GraphFacts(
        ir_version=model.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(_spec(onnx, value) for value in model.graph.input if value.name not in stored),
        outputs=tuple(_spec(onnx, value) for value in model.graph.output),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        parameters=sum(count.elements for count in weights.values()) - _scale_elements(model.graph, nodes),
        weights=weights,
        quantize_nodes=operators["QuantizeLinear"],
        dequantize_nodes=operators["DequantizeLinear"],
        products=sum(node.op_type in (*_PRODUCTS, _FUSED) for node in nodes),
        int8_products=_quantized_products(onnx, model.graph, nodes, ("int8", "uint8"))
        + sum(node.op_type == _FUSED for node in nodes),
        fp8_products=_quantized_products(onnx, model.graph, nodes, ("float8e4m3fn", "float8e5m2")),
    )


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and every graph inside its nodes (branches, loop bodies)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner)


def _weights(onnx: Any, graph: Any, nodes: list[Any]) -> dict[str, WeightCount]:
    tensors = [tensor for inner in _graphs(graph) for tensor in inner.initializer]
    tensors += [a.t for node in nodes if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
    found: dict[str, list[int]] = {}
    for tensor in tensors:
        found.setdefault(_dtype(onnx, tensor.data_type), []).append(math.prod(tensor.dims))
    counts = {}
    for dtype, sizes in found.items():
        elements = sum(sizes)
        counts[dtype] = WeightCount(len(sizes), elements, elements * _bits(dtype) // 8)
    return dict(sorted(counts.items(), key=lambda item: -item[1].size_bytes))


def _scale_elements(graph: Any, nodes: list[Any]) -> int:
    """Elements of the stored scales and zero points."""
    quantizers = ("QuantizeLinear", "DequantizeLinear")
    names = {name for node in nodes if node.op_type in quantizers for name in node.input[1:]}
    names |= {name for node in nodes if node.op_type == _FUSED for name in node.input[2:6]}
    return sum(math.prod(t.dims) for inner in _graphs(graph) for t in inner.initializer if t.name in names)


def _dtype(onnx: Any, data_type: int) -> str:
    """NumPy's name where there is one."""
    names = {"float": "float32", "double": "float64"}
    name = str(onnx.TensorProto.DataType.Name(data_type)).lower()
    return names.get(name, name)


def _bits(dtype: str) -> int:
    named = {"bool": 8, "bfloat16": 16, "complex64": 64, "complex128": 128, "string": 0}
    digits = dtype.removeprefix("u").removeprefix("int").removeprefix("float")
    width = digits.partition("e")[0]
    return named.get(dtype) or (int(width) if width.isdigit() else 0)


def _spec(onnx: Any, value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_param or "?" if dim.WhichOneof("value") != "dim_value" else int(dim.dim_value)
        for dim in tensor.shape.dim
    )
    return TensorSpec(value.name, _dtype(onnx, tensor.elem_type), shape)


def _quantized_products(onnx: Any, graph: Any, nodes: list[Any], types: tuple[str, ...]) -> int:
    """How many products have two factors that are dequantised from these types."""
    makers = {output: node for node in nodes for output in node.output}
    stored = {t.name: _dtype(onnx, t.data_type) for inner in _graphs(graph) for t in inner.initializer}

    def dequantised(name: str) -> bool:
        node = makers.get(name)
        while node is not None and node.op_type in (*REORDERS, "Cast"):
            node = makers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return False
        # The zero point has the type of the values; without one they are stored, or uint8 by QuantizeLinear's default.
        typed = node.input[2] if len(node.input) > 2 else node.input[0]
        return stored.get(typed, "uint8") in types

    return sum(node.op_type in _PRODUCTS and all(map(dequantised, node.input[:2])) for node in nodes)
