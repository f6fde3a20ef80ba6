"""The structural check sees what would make INT8 slower than FP16, and passes what would not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from vitdeploy.bundle import Bundle
from vitdeploy.compiler.lint.structure import Structure, check_structure
from vitdeploy.compiler.passes.values import new_initializer
from vitdeploy.core.errors import ModelError


@pytest.fixture
def int8(tiny_bundle: Path) -> ir.Model:
    return ir.load(tiny_bundle / "model.int8.onnx")


def find(model: ir.Model, op_type: str, part: str = "") -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type and part in (node.name or ""))


def test_our_form_passes_and_its_structure_is_recorded(tiny_bundle: Path, int8: ir.Model) -> None:
    structure = check_structure(int8)
    assert not structure.problems()
    structure.require_sound()
    form = Bundle.open(tiny_bundle).find(kind="onnx", precision="int8", target="tensorrt")
    assert form is not None and form.built_with["structure"] == structure.to_json()


def test_macs_are_those_of_the_model(int8: ir.Model) -> None:
    tokens, hidden, mlp, heads, layers, patches = 17, 48, 96, 4, 3, 16
    linear = layers * tokens * (4 * hidden * hidden + 2 * hidden * mlp)
    attention = layers * 2 * heads * tokens * tokens * (hidden // heads)
    ends = patches * (3 * 8 * 8) * hidden + hidden * 10
    structure = check_structure(int8)
    assert (structure.macs_int8, structure.macs) == (linear, linear + attention + ends)


def test_single_precision_around_the_products_is_seen(tiny_bundle: Path) -> None:
    from vitdeploy.compiler.quantization.calibration import Calibration
    from vitdeploy.compiler.quantization.insert_qdq import quantize
    from vitdeploy.compiler.quantization.schemes import INT8_SIGNED

    model = ir.load(tiny_bundle / "model.onnx")
    form = Bundle.open(tiny_bundle).find(kind="onnx", precision="fp32")
    assert form is not None
    quantize(model, Calibration.load(tiny_bundle / "calibration.json", form.sha256), scheme=INT8_SIGNED)
    assert check_structure(model).fp32_islands


def an_island(model: ir.Model) -> None:
    """One GELU in FP32, between two casts."""
    gelu = find(model, "Gelu")
    before, after = gelu.inputs[0], gelu.outputs[0]
    up = ir.node("Cast", [before], attributes={"to": ir.DataType.FLOAT}, name="up")
    again = ir.node("Gelu", [up.outputs[0]], name="single/Gelu")
    down = ir.node("Cast", [again.outputs[0]], attributes={"to": ir.DataType.FLOAT16}, name="down")
    for node, dtype in ((up, ir.DataType.FLOAT), (again, ir.DataType.FLOAT), (down, ir.DataType.FLOAT16)):
        node.outputs[0].type = ir.TensorType(dtype)
        node.outputs[0].name = f"{node.name}_output"
        model.graph.insert_before(gelu, node)
    ir.convenience.replace_all_uses_with(after, down.outputs[0])


def pair(model: ir.Model, node: ir.Node, index: int, zero: np.ndarray, scale: np.ndarray) -> None:
    """Q/DQ in front of one input of a node."""
    value = node.inputs[index]
    assert value is not None
    constants = [new_initializer(model.graph, "s", scale), new_initializer(model.graph, "z", zero)]
    q = ir.node("QuantizeLinear", [value, *constants], name="extra/QuantizeLinear")
    dq = ir.node("DequantizeLinear", [q.outputs[0], *constants], name="extra/DequantizeLinear")
    q.outputs[0].type, dq.outputs[0].type = constants[1].type, value.type
    dq.outputs[0].shape = value.shape
    for made in (q, dq):
        made.outputs[0].name = f"{made.name}_output"
        model.graph.insert_before(node, made)
    node.replace_input_with(index, dq.outputs[0])


def a_residual(model: ir.Model) -> None:
    pair(model, find(model, "Add", "vit.layers.1/Add"), 1, np.array(0, np.int8), np.array(0.1, np.float16))


def a_softmax(model: ir.Model) -> None:
    pair(model, find(model, "Softmax"), 0, np.array(0, np.int8), np.array(0.1, np.float16))


def product_of_scores(model: ir.Model) -> ir.Node:
    scores = find(model, "Softmax").inputs[0]
    assert scores is not None
    product = scores.producer()
    assert product is not None
    return product


def queries_alone(model: ir.Model) -> None:
    pair(model, product_of_scores(model), 0, np.array(0, np.int8), np.array(0.1, np.float16))


def queries_and_keys_alone(model: ir.Model) -> None:
    queries_alone(model)
    pair(model, product_of_scores(model), 1, np.array(0, np.int8), np.array(0.1, np.float16))


def a_zero_point(model: ir.Model) -> None:
    node = find(model, "DequantizeLinear", "LayerNormalization_output")
    node.replace_input_with(2, new_initializer(model.graph, "z", np.array(3, np.int8)))


def unsigned(model: ir.Model) -> None:
    node = find(model, "QuantizeLinear", "LayerNormalization_output")
    node.replace_input_with(2, new_initializer(model.graph, "z", np.array(128, np.uint8)))


def single_scale(model: ir.Model) -> None:
    node = find(model, "QuantizeLinear", "LayerNormalization_output")
    node.replace_input_with(1, new_initializer(model.graph, "s", np.array(0.1, np.float32)))


def scales_along_rows(model: ir.Model) -> None:
    find(model, "DequantizeLinear", "fc1/weight").attributes["axis"] = ir.AttrInt64("axis", 0)


def many_scales(model: ir.Model) -> None:
    node = find(model, "DequantizeLinear", "Gelu_output")
    node.replace_input_with(1, new_initializer(model.graph, "s", np.full(96, 0.1, np.float16)))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (an_island, "FP32 island at single/Gelu"),
        (a_residual, "one side of the residual vit.layers.1/Add"),
        (a_softmax, "feeds Softmax, not a product"),
        (queries_alone, "has only one input in INT8"),
        (queries_and_keys_alone, "the product behind its softmax is not"),
        (a_zero_point, "not symmetric int8"),
        (unsigned, "not symmetric int8"),
        (single_scale, "a scale of another type"),
        (scales_along_rows, "along the wrong axis"),
        (many_scales, "96 scales for one activation"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_makes_int8_slow_is_named(harm: Callable[[ir.Model], None], message: str, int8: ir.Model) -> None:
    harm(int8)
    with pytest.raises(ModelError, match=message) as caught:
        check_structure(int8).require_sound()
    assert "--fp16" in str(caught.value.hint)


def test_a_graph_with_hardly_anything_in_int8_is_refused(tiny_bundle: Path) -> None:
    structure = check_structure(ir.load(tiny_bundle / "model.fp16.onnx"))
    assert structure.share == 0 and not structure.fp32_islands
    with pytest.raises(ModelError, match=r"only 0.0% of the multiply-accumulates"):
        structure.require_sound()


def test_a_long_attention_is_refused() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 20]>'
        "g (float[b,1,600,8] q, float[b,1,8,600] k, float[b,1,600,8] v) => (float[b,1,600,8] o)"
        "<float s = {0.1}, int8 z = {0}> {"
        "q8 = QuantizeLinear (q, s, z) qf = DequantizeLinear (q8, s, z)"
        "k8 = QuantizeLinear (k, s, z) kf = DequantizeLinear (k8, s, z)"
        "v8 = QuantizeLinear (v, s, z) vf = DequantizeLinear (v8, s, z)"
        "c = MatMul (qf, kf) p = Softmax (c) p8 = QuantizeLinear (p, s, z) pf = DequantizeLinear (p8, s, z)"
        "o = MatMul (pf, vf) }"
    )
    model = ir.from_onnx_text(text)
    from onnx_ir.passes import common

    common.ShapeInferencePass()(model)
    structure = check_structure(model)
    assert structure.share == 1 and structure.macs == 2 * 600 * 600 * 8
    assert any("no fused INT8 attention for 600 tokens" in problem for problem in structure.problems())


def test_what_a_default_of_another_tool_makes_is_seen(tiny_bundle: Path, tmp_path: Path) -> None:
    """onnxruntime.quantization's static default quantises the residual additions, and to uint8."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
            self.left = [{"image": pixels}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    quantization.quantize_static(
        str(tiny_bundle / "model.onnx"), str(tmp_path / "theirs.onnx"), Reader(), op_types_to_quantize=["MatMul", "Add"]
    )
    model = ir.load(tmp_path / "theirs.onnx")
    assert check_structure(model).problems()


def test_a_sound_structure_says_its_figures() -> None:
    text = str(Structure(2_000_000_000, 1_900_000_000, (), 0, ()))
    assert text == "95.0% of 2 GMACs in INT8, 0 FP32 islands, 0 one-sided residuals, 0 Q/DQ that can't be fused"
