"""Each pass keeps the numbers and says when it declines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.graphs import drop_unused, op_types, parse, run
from vitdeploy.compiler.float16.cast import model_nodes, to_half
from vitdeploy.compiler.passes.attention_scale import fold_attention_scale
from vitdeploy.compiler.passes.class_token import fold_class_token
from vitdeploy.compiler.passes.compose import prepend_preprocessing
from vitdeploy.compiler.quantization.groups import find_groups
from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import PIXEL_VALUES

TOKENS = """
<ir_version: 10, opset_import: ["" : 20]>
tokens (float[batch, 4, 3] patches) => (float[batch, 5, 3] y)
<float[1, 1, 3] cls = {1.0, 2.0, 3.0},
 float[1, 5, 3] positions = {0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0,1.1,1.2,1.3,1.4,1.5},
 int64[1] zero = {0}, int64[1] one = {1}>
{
   shape = Shape (patches)
   batch = Gather <axis: int = 0> (shape, zero)
   target = Concat <axis: int = 0> (batch, one, one)
   expanded = Expand (cls, target)
   joined = Concat <axis: int = 1> (expanded, patches)
   y = Add (joined, positions)
}
"""

SCALED = """
<ir_version: 10, opset_import: ["" : 20]>
attention (float[batch, 4, 6] x) => (float[batch, 2, 4, 3] y)
<float[6, 6] w = {W}, float[6] b = {B}, float scale = {0.3}, int64[4] heads = {0, 4, 2, 3}>
{
   xw = MatMul (x, w)
   xwb = Add (xw, b)
   split = Reshape (xwb, heads)
   moved = Transpose <perm: ints = [0, 2, 1, 3]> (split)
   q = Mul (moved, scale)
   y = Neg (q)
}
"""


def test_the_class_token_becomes_a_pad_with_the_same_bits() -> None:
    patches = np.random.default_rng(0).standard_normal((3, 4, 3)).astype(np.float32)
    before = run(parse(TOKENS), patches=patches)
    model = parse(TOKENS)
    assert fold_class_token(model).changed == 1
    drop_unused(model)
    assert op_types(model) == ["Pad", "Add"]
    np.testing.assert_array_equal(run(model, patches=patches), before)  # the same additions, so the same bits


def test_the_class_token_pass_declines_without_a_token() -> None:
    result = fold_class_token(parse(SCALED, w=np.eye(6, dtype=np.float32), b=np.zeros(6, dtype=np.float32)))
    assert result.changed == 0 and result.declined


def test_the_scale_moves_into_the_query_projection() -> None:
    generator = np.random.default_rng(1)
    arrays = {
        "w": generator.standard_normal((6, 6)).astype(np.float32),
        "b": generator.standard_normal(6).astype(np.float32),
    }
    x = generator.standard_normal((2, 4, 6)).astype(np.float32)
    before = run(parse(SCALED, **arrays), x=x)
    model = parse(SCALED, **arrays)
    assert fold_attention_scale(model).changed == 1
    assert "Mul" not in op_types(model)
    # 0.3 is no power of two, so products round once elsewhere: a few units in the last place of values near 1.
    np.testing.assert_allclose(run(model, x=x), before, rtol=0, atol=2e-6)
    assert np.abs(run(model, x=x * 1.01) - before).max() > 1e-3  # the comparison can fail


@pytest.mark.parametrize("step", ["Div (scores, scale)", "Mul (scale, scores)"])
def test_the_scale_of_the_scores_moves_there_too(step: str) -> None:
    """As models that scale behind the product of queries and keys are exported: PVT, MobileViT."""
    generator = np.random.default_rng(2)
    arrays = {"w": generator.standard_normal((6, 6)).astype(np.float32), "b": np.ones(6, dtype=np.float32)}
    scores = "   scores = MatMul (moved, keys)\n"
    text = SCALED.replace(
        "q = Mul (moved, scale)", f"keys = Transpose <perm: ints = [0, 1, 3, 2]> (moved_x)\n{scores}   q = {step}"
    )
    text = text.replace(
        "   split = ",
        "   split_x = Reshape (x, heads)\n   moved_x = Transpose <perm: ints = [0, 2, 1, 3]> (split_x)\n   split = ",
    )
    text = text.replace("(float[batch, 2, 4, 3] y)", "(float[batch, 2, 4, 4] y)")
    x = generator.standard_normal((2, 4, 6)).astype(np.float32)
    before, model = run(parse(text, **arrays), x=x), parse(text, **arrays)
    assert fold_attention_scale(model).changed == 1
    assert not {"Div", "Mul"} & set(op_types(model))
    np.testing.assert_allclose(run(model, x=x), before, rtol=2e-6, atol=2e-6 * np.ptp(before))


def test_a_division_by_the_scores_is_no_scale() -> None:
    text = SCALED.replace("q = Mul (moved, scale)", "q = Div (scale, moved)")
    model = parse(text, w=np.eye(6, dtype=np.float32), b=np.ones(6, dtype=np.float32))
    assert fold_attention_scale(model).changed == 0 and "Div" in op_types(model)


def test_the_scale_stays_where_the_projection_is_read_twice() -> None:
    text = SCALED.replace("(float[batch, 2, 4, 3] y)", "(float[batch, 2, 4, 3] y, float[batch, 4, 6] xwb)")
    model = parse(text, w=np.eye(6, dtype=np.float32), b=np.zeros(6, dtype=np.float32))
    result = fold_attention_scale(model)
    assert result.changed == 0 and result.declined


FRONT = """
<ir_version: 10, opset_import: ["" : 20]>
front (uint8[batch, height, width, 3] image) => (float[batch, 3, 2, 2] pixels)
<int64[4] starts = {0, 0, 0, 0}, int64[4] ends = {1000, 3, 2, 2}>
{
   single = Cast <to: int = 1> (image)
   moved = Transpose <perm: ints = [0, 3, 1, 2]> (single)
   pixels = Slice (moved, starts, ends)
}
"""

BODY = """
<ir_version: 10, opset_import: ["" : 20]>
body (float[batch, 3, 2, 2] pixel_values) => (float[batch, 3, 2, 2] logits)
<float factor = {0.125}>
{
   scaled = Mul (pixel_values, factor)
   logits = Softmax <axis: int = -1> (scaled)
}
"""


def test_preprocessing_is_put_in_front() -> None:
    whole = prepend_preprocessing(parse(FRONT), parse(BODY))
    assert [value.name for value in whole.graph.inputs] == ["image"]
    assert [node.op_type for node in model_nodes(whole)] == ["Mul", "Softmax"]
    image = np.random.default_rng(2).integers(0, 256, (1, 2, 2, 3), dtype=np.uint8)
    pixels = run(parse(FRONT), image=image)
    np.testing.assert_array_equal(run(whole, image=image), run(parse(BODY), pixel_values=pixels))


def test_preprocessing_of_another_size_is_refused() -> None:
    with pytest.raises(ModelError, match="makes 2x2 pixels, the model takes 4x4"):
        prepend_preprocessing(parse(FRONT), parse(BODY.replace("3, 2, 2]", "3, 4, 4]")))


def test_half_precision_keeps_inputs_outputs_and_preprocessing() -> None:
    whole = prepend_preprocessing(parse(FRONT), parse(BODY))
    image = np.random.default_rng(2).integers(0, 256, (1, 2, 2, 3), dtype=np.uint8)
    single = run(whole, image=image)
    to_half(whole)
    assert whole.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert next(value for node in whole.graph for value in node.outputs if value.name == PIXEL_VALUES).dtype == (
        ir.DataType.FLOAT
    )
    softmax = next(node for node in whole.graph if node.op_type == "Softmax")
    assert softmax.inputs[0] is not None and softmax.inputs[0].dtype == ir.DataType.FLOAT16
    half = run(whole, image=image)
    assert half.dtype == np.float32
    # Softmax of values up to 32 with 11 bits: 32 * 2**-11 in the exponent.
    np.testing.assert_allclose(half, single, atol=0.02)
    assert np.abs(half - single).max() > 0  # it did run in half precision


def test_a_weight_outside_float16_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"factor holds 1e\+05, outside float16"):
        to_half(parse(BODY.replace("0.125", "100000.0")))


def test_minus_infinity_is_a_mask_not_an_overflow() -> None:
    model = parse(BODY.replace("0.125", "0.5"))
    model.graph.initializers["factor"].const_value = ir.tensor(np.array(-np.inf, dtype=np.float32), name="factor")
    to_half(model)
    factor = model.graph.initializers["factor"].const_value
    assert factor is not None and factor.numpy() == -np.inf


def test_a_layer_of_the_exported_vit_holds_nothing_superfluous(tiny_bundle: Path) -> None:
    model = ir.load(tiny_bundle / "model.onnx")
    layer = sorted(node.op_type for node in model.graph if (node.name or "").startswith("vit.layers.1"))
    assert layer == sorted(
        ["LayerNormalization"] * 2
        + ["MatMul"] * 8  # q, k, v, o, fc1, fc2 and the two of attention
        + ["Softmax", "Gelu"]
        + ["Add"] * 8  # six biases, two residuals
        + ["Reshape"] * 4
        + ["Transpose"] * 4
    )
    assert not {"Where", "IsNaN", "Expand", "Identity", "Cast"} & {node.op_type for node in model_nodes(model)}


def test_layers_are_grouped_by_what_they_read(tiny_bundle: Path) -> None:
    groups = find_groups(ir.load(tiny_bundle / "model.onnx"))
    assert len(groups) == 3 * 4
    first = {group.name: group for group in groups[:4]}
    assert list(first) == [
        "vit.layers.0.attention.q_proj+k_proj+v_proj",
        "vit.layers.0.attention.o_proj",
        "vit.layers.0.mlp.fc1",
        "vit.layers.0.mlp.fc2",
    ]
    sources = [None if group.source is None else group.source.node.name for group in first.values()]
    assert sources == [
        "vit.layers.0.layernorm_before/LayerNormalization",
        "vit.layers.0.attention.v_proj/MatMul",
        "vit.layers.0.layernorm_after/LayerNormalization",
        None,  # nothing can be moved through GELU
    ]


def test_an_exported_graph_names_no_path_of_the_exporting_machine(tiny_bundle: Path) -> None:
    for file in tiny_bundle.glob("*.onnx"):
        content = file.read_bytes()
        assert b".py" not in content and str(Path.cwd()).encode() not in content
