"""Counting an ONNX graph whose numbers are known by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy.core.errors import ModelError
from vitdeploy.inspection.graph import read_graph

GRAPH = """
<ir_version: 9, opset_import: ["" : 20, "com.example" : 1], producer_name: "by hand">
graph (float[n, 4] x) => (float[n, 3] y)
<
  float scale = {{0.5}}, {kind} zero = {{0}}, {kind}[3, 4] weights = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
  float[3] bias = {{0, 0, 0}}
>
{{
  q = QuantizeLinear (x, scale, zero)
  a = DequantizeLinear (q, scale, zero)
  w = DequantizeLinear (weights, scale, zero)
  t = Transpose <perm = [1, 0]> (w)
  p = MatMul ({factor}, t)
  shape = Constant <value = int64[2] {{-1, 3}}> ()
  r = Reshape (p, shape)
  y = Add (r, bias)
}}
"""


def graph_file(path: Path, *, kind: str = "int8", factor: str = "a") -> Path:
    import onnx

    onnx.save(onnx.parser.parse_model(GRAPH.format(kind=kind, factor=factor)), path)
    return path


def test_a_graph_is_counted(tmp_path: Path) -> None:
    facts = read_graph(graph_file(tmp_path / "graph.onnx"))
    assert facts.opsets == {"ai.onnx": 20, "com.example": 1} and facts.ir_version == 9 and facts.producer == "by hand"
    assert facts.operators["DequantizeLinear"] == facts.dequantize_nodes == 2
    assert facts.operators["MatMul"] == facts.products == 1 and facts.quantize_nodes == 1
    assert facts.inputs[0].shape == ("n", 4) and facts.outputs[0].dtype == "float32"
    assert facts.weights["int8"].elements == 13 and facts.weights["int8"].tensors == 2
    assert facts.weights["float32"].size_bytes == 4 * 4
    assert facts.weights["int64"].size_bytes == 8 * 2  # the constant
    assert facts.parameters == 12 + 3 + 2  # weights, bias, shape; neither scale nor zero point


@pytest.mark.parametrize(
    ("kind", "factor", "products"), [("int8", "a", 1), ("uint8", "a", 1), ("int8", "x", 0), ("int16", "a", 0)]
)
def test_a_product_is_int8_when_both_factors_are(tmp_path: Path, kind: str, factor: str, products: int) -> None:
    """The weights come through a Transpose; a float factor, or wider integers, make it no INT8 product."""
    assert read_graph(graph_file(tmp_path / "graph.onnx", kind=kind, factor=factor)).int8_products == products


def test_a_cut_file_is_no_graph(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "graph.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match="can't be read as ONNX"):
        read_graph(path)
