"""Each further pass keeps the numbers, and says why it declines."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.tools.graphs import drop_unused, op_types, parse, run
from vitdeploy.compiler.frontend.tracing import trace
from vitdeploy.compiler.passes.class_token import fold_class_token
from vitdeploy.compiler.passes.clean import clean
from vitdeploy.compiler.passes.constants import fold_constants
from vitdeploy.compiler.passes.layer_scale import fold_layer_scale
from vitdeploy.compiler.passes.layout import lay_out
from vitdeploy.compiler.passes.no_ops import remove_no_ops
from vitdeploy.compiler.passes.qkv import merge_qkv
from vitdeploy.compiler.passes.save import save
from vitdeploy.compiler.passes.split_qkv import split_qkv
from vitdeploy.compiler.passes.window_mask import fold_window_mask
from vitdeploy.models.checkpoints import load_checkpoint

SCALED = """
<ir_version: 10, opset_import: ["" : 20]>
block (float[batch, 4, 6] x) => (float[batch, 4, 6] y)
<float[6, 6] w = {W}, float[6] b = {B}, float[6] lambda = {L}>
{
   xw = MatMul (x, w)
   xwb = Add (xw, b)
   scaled = Mul (lambda, xwb)
   y = Add (scaled, x)
}
"""
GENERATOR = np.random.default_rng(5)
ARRAYS = {
    name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in (("w", (6, 6)), ("b", 6), ("l", 6))
}
X = GENERATOR.standard_normal((2, 4, 6)).astype(np.float32)


def test_layer_scale_goes_into_the_projection() -> None:
    before, model = run(parse(SCALED, **ARRAYS), x=X), parse(SCALED, **ARRAYS)
    assert fold_layer_scale(model).changed == 1
    assert op_types(model) == ["MatMul", "Add", "Add"]
    np.testing.assert_allclose(run(model, x=X), before, rtol=0, atol=2e-6)
    assert np.abs(run(model, x=X * 1.01) - before).max() > 1e-3


@pytest.mark.parametrize(
    "text",
    [
        SCALED.replace("=> (float[batch, 4, 6] y)", "=> (float[batch, 4, 6] y, float[batch, 4, 6] xwb)"),  # read twice
        SCALED.replace("Mul (lambda, xwb)", "Mul (x, xwb)"),  # not a constant
    ],
)
def test_layer_scale_stays_where_it_must(text: str) -> None:
    model = parse(text, **ARRAYS)
    result = fold_layer_scale(model)
    assert result.changed == 0 and result.declined == "no product is followed by a learned vector"


GUARDED = """
<ir_version: 10, opset_import: ["" : 20]>
guarded (float[batch, 4] x) => (float[batch, 4] y)
<float[4] mask = {MASK}, float zero = {0.0}, float one = {1.0}, int64[4] pads = {0, 0, 0, 0}>
{
   same = Identity (x)
   padded = Pad (same, pads, zero)
   times = Mul (padded, one)
   masked = Add (times, mask)
   soft = Softmax <axis: int = -1> (masked)
   bad = IsNaN (soft)
   y0 = Where (bad, zero, soft)
   y = Neg (y0)
}
"""


def typed(model: ir.Model) -> ir.Model:
    from onnx_ir.passes import common

    common.ShapeInferencePass()(model)
    return model


def test_what_does_nothing_goes() -> None:
    x = GENERATOR.standard_normal((3, 4)).astype(np.float32)
    model = typed(parse(GUARDED, mask=np.zeros(4, np.float32)))
    before = run(model, x=x)
    assert remove_no_ops(model).changed == 5
    drop_unused(model)
    assert op_types(model) == ["Softmax", "Neg"]
    np.testing.assert_array_equal(run(model, x=x), before)


def test_a_guard_that_is_needed_stays() -> None:
    model = typed(parse(GUARDED, mask=np.ones(4, np.float32)))
    model.graph.initializers["mask"].const_value = ir.tensor(np.full(4, -np.inf, np.float32), name="mask")
    remove_no_ops(model)
    assert {"Where", "IsNaN", "Add"} <= set(op_types(model))
    nothing = remove_no_ops(typed(parse(SCALED, **ARRAYS)))
    assert nothing.changed == 0 and nothing.declined == "every operation changes something"


NORMALISED = """
<ir_version: 10, opset_import: ["" : 20]>
normalised (float[batch, 4, 6] x) => (float[batch, 4, 6] y)
<int64[1] last = {-1}>
{
   length = ReduceL2 (x, last)
   shape = Shape (x)
   everywhere = Expand (length, shape)
   y0 = Div (x, everywhere)
   y = Neg (y0)
}
"""


def test_what_broadcasting_repeats_is_not_expanded() -> None:
    model = ir.from_onnx_text(NORMALISED)
    before = run(model, x=X)
    shapes = {"length": ["batch", 4, 1], "everywhere": ["batch", 4, 6]}
    for node in model.graph:
        for value in node.outputs:
            if value.name in shapes:
                value.shape = ir.Shape(shapes[value.name])
    assert remove_no_ops(model).changed == 1
    drop_unused(model)
    assert op_types(model) == ["ReduceL2", "Div", "Neg"]
    np.testing.assert_array_equal(run(model, x=X), before)
    alone = ir.from_onnx_text(NORMALISED.replace("Div (x, everywhere)", "Identity (everywhere)"))  # nothing repeats it
    remove_no_ops(alone)
    assert "Expand" in op_types(alone)


def test_the_bias_of_a_product_stays_where_it_is_zero() -> None:
    model = typed(parse(SCALED, **{**ARRAYS, "b": np.zeros(6, np.float32)}))
    assert remove_no_ops(model).changed == 0


TABLE = """
<ir_version: 10, opset_import: ["" : 20]>
table (float[batch, 2, 2] x) => (float[batch, 2, 2] y)
<float[3, 2] rows = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, int64[2] index = {2, 0}>
{
   picked = Gather <axis: int = 0> (rows, index)
   turned = Transpose <perm: ints = [1, 0]> (picked)
   y = Add (x, turned)
}
"""


def test_constants_are_computed_once() -> None:
    x = GENERATOR.standard_normal((3, 2, 2)).astype(np.float32)
    model = typed(ir.from_onnx_text(TABLE))
    before = run(model, x=x)
    assert fold_constants(model).changed == 2
    assert op_types(model) == ["Add"]
    np.testing.assert_array_equal(run(model, x=x), before)
    again = fold_constants(model)
    assert again.changed == 0 and again.declined == "every node depends on the image"


REGISTERS = """
<ir_version: 10, opset_import: ["" : 20]>
tokens (float[batch, 4, 3] patches) => (float[batch, 7, 3] y)
<float[1, 1, 3] cls = {1.0, 2.0, 3.0}, float[1, 2, 3] reg = {9.0, 8.0, 7.0, 6.0, 5.0, 4.0},
 float[1, 5, 3] positions = {0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0,1.1,1.2,1.3,1.4,1.5},
 int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] end = {9223372036854775807}>
{
   shape = Shape (patches)
   batch = Gather <axis: int = 0> (shape, zero)
   target = Concat <axis: int = 0> (batch, one, one)
   expanded = Expand (cls, target)
   joined = Concat <axis: int = 1> (expanded, patches)
   placed = Add (joined, positions)
   head = Slice (placed, zero, one, one)
   tail = Slice (placed, one, end, one)
   many = Concat <axis: int = 0> (batch, two, one)
   registers = Expand (reg, many)
   y = Concat <axis: int = 1> (head, registers, tail)
}
"""


def test_registers_are_rows_of_the_table() -> None:
    patches = GENERATOR.standard_normal((3, 4, 3)).astype(np.float32)
    model = typed(ir.from_onnx_text(REGISTERS))
    before = run(model, patches=patches)
    assert fold_class_token(model).changed == 2
    drop_unused(model)
    assert op_types(model) == ["Pad", "Add"]
    np.testing.assert_array_equal(run(model, patches=patches), before)
    assert model.graph.outputs[0].name == "y"


def test_a_token_without_positions_gets_a_table_of_its_own() -> None:
    text = REGISTERS.replace("placed = Add (joined, positions)", "placed = Identity (joined)")
    model = typed(ir.from_onnx_text(text))
    patches = GENERATOR.standard_normal((3, 4, 3)).astype(np.float32)
    before = run(model, patches=patches)
    remove_no_ops(model)
    assert fold_class_token(model).changed == 2
    np.testing.assert_array_equal(run(model, patches=patches), before)


QKV = """
<ir_version: 10, opset_import: ["" : 20]>
heads (float[batch, 4, 6] x) => (float[batch, 4, 2, 3] q, float[batch, 4, 2, 3] k, float[batch, 4, 2, 3] v)
<float[6, 6] w = {W}, float[6] b = {B}, float[6, 6] wk = {W}, float[6, 6] wv = {W}, float[6] bv = {L},
 int64[4] shape = {0, 4, 2, 3}>
{
   xq = MatMul (x, w)
   xqb = Add (xq, b)
   q = Reshape (xqb, shape)
   xk = MatMul (x, wk)
   k = Reshape (xk, shape)
   xv = MatMul (x, wv)
   xvb = Add (xv, bv)
   v = Reshape (xvb, shape)
}
"""


def outputs_of(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def test_queries_keys_and_values_by_one_product() -> None:
    """Keys without a bias, as in BEiT."""
    model = typed(parse(QKV, **ARRAYS))
    before = outputs_of(model, X)
    assert merge_qkv(model).changed == 1
    assert sorted(op_types(model)) == sorted(["MatMul", "Add", "Split", "Reshape", "Reshape", "Reshape"])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for ours, theirs in zip(outputs_of(model, X), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
    none = merge_qkv(model)
    assert none.changed == 0 and none.declined == "no three projections of one size read the same tensor"


TIMM = """
<ir_version: 10, opset_import: ["" : 20]>
heads (float[batch, 4, 6] x) => (float[batch, 2, 4, 3] q, float[batch, 2, 4, 3] k, float[batch, 2, 4, 3] v)
<float[6, 18] w = {W}, float[18] b = {B}, int64[5] shape = {-1, 4, 3, 2, 3},
 int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}>
{
   xw = MatMul (x, w)
   xwb = Add (xw, b)
   parts = Reshape (xwb, shape)
   moved = Transpose <perm: ints = [2, 0, 3, 1, 4]> (parts)
   sq = Slice (moved, zero, one, zero)
   q0 = Squeeze (sq, zero)
   sk = Slice (moved, one, two, zero)
   k0 = Squeeze (sk, zero)
   sv = Slice (moved, two, three, zero)
   v0 = Squeeze (sv, zero)
   q = Neg (q0)
   k = Neg (k0)
   v = Neg (v0)
}
"""


def test_a_merged_projection_is_split_and_merged_again() -> None:
    arrays = {"w": GENERATOR.standard_normal((6, 18)).astype(np.float32), "b": GENERATOR.standard_normal(18)}
    model = typed(parse(TIMM, **arrays))
    before = outputs_of(model, X)
    assert split_qkv(model).changed == 1
    drop_unused(model)
    assert sorted(op_types(model)) == sorted(["MatMul", "Add", "Reshape", "Transpose", "Neg"] * 3)
    for ours, theirs in zip(outputs_of(model, X), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
    assert split_qkv(model).declined == "no projection gives queries, keys and values at once"
    assert merge_qkv(model).changed == 1


WINDOWS = """
<ir_version: 10, opset_import: ["" : 20]>
windows (float[windows, 2, 3, 3] scores, float[batch, 1] image) => (float[windows, 2, 3, 3] y)
<float[1, 2, 3, 3] bias = {BIAS}, float[1, 4, 1, 3, 3] mask = {MASK}, int64[1] one = {1}, int64[4] flat = {-1, 1, 3, 3}>
{
   shape = Shape <start: int = 0, end: int = 1> (image)
   target = Concat <axis: int = 0> (shape, one, one, one, one)
   expanded = Expand (mask, target)
   masks = Reshape (expanded, flat)
   table = Add (bias, masks)
   y0 = Add (scores, table)
   y = Softmax <axis: int = -1> (y0)
}
"""


def windows_model(**changed: np.ndarray) -> ir.Model:
    generator = np.random.default_rng(4)
    mask = np.where(generator.random((1, 4, 1, 3, 3)) < 0.4, -100, 0).astype(np.float32)
    arrays = {"bias": generator.standard_normal((1, 2, 3, 3)).astype(np.float32), "mask": mask, **changed}
    model = typed(parse(WINDOWS, **arrays))
    for node in model.graph:  # what the exporter knows and shape inference does not
        for value in node.outputs:
            shapes = {"expanded": ["batch", 4, 1, 3, 3], "masks": ["4*batch", 1, 3, 3]}
            if value.name in shapes:
                value.shape = ir.Shape(shapes[value.name])
    return model


def test_the_mask_of_shifted_windows_is_not_repeated() -> None:
    scores = GENERATOR.standard_normal((12, 2, 3, 3)).astype(np.float32)
    feeds = {"scores": scores, "image": np.zeros((3, 1), np.float32)}
    model = windows_model()
    before = run(model, **feeds)
    assert fold_window_mask(model).changed == 1
    drop_unused(model)
    assert op_types(model) == ["Reshape", "Add", "Reshape", "Softmax"]
    np.testing.assert_array_equal(run(model, **feeds), before)
    other = run(windows_model(mask=np.zeros((1, 4, 1, 3, 3), np.float32)), **feeds)
    assert np.abs(other - before).max() > 0.1  # the mask shows
    again = fold_window_mask(model)
    assert again.changed == 0 and again.declined == "no mask is repeated for every image"


def test_a_table_of_all_windows_must_not_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdeploy.compiler.passes import window_mask

    monkeypatch.setattr(window_mask, "_LARGEST", 71)
    result = fold_window_mask(windows_model())
    assert result.changed == 0 and result.declined == "bias and mask of all windows would be 72 numbers"


def test_a_file_is_what_onnx_itself_would_write(tmp_path: Path) -> None:
    weight = GENERATOR.standard_normal((40, 50)).astype(np.float32)  # above a kilobyte: written on its own
    text = SCALED.replace("{W}", "{0.0}").replace("float[6, 6] w = {0.0}", "float[1, 1] w = {0.0}")
    model = parse(text, b=ARRAYS["b"], l=ARRAYS["l"])
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    model.graph.initializers["w"].shape = ir.Shape(weight.shape)
    assert save(model, tmp_path / "ours.onnx") is None
    written = onnx.load(tmp_path / "ours.onnx")
    expected = ir.to_proto(model)
    assert {t.name: t.SerializeToString() for t in written.graph.initializer} == {
        t.name: t.SerializeToString() for t in expected.graph.initializer
    }
    for proto in (written, expected):
        del proto.graph.initializer[:], proto.graph.value_info[:]
    assert written == expected
    data = save(model, tmp_path / "big.onnx", limit_bytes=1000)
    assert data == tmp_path / "big.onnx.data" and data.stat().st_size >= weight.nbytes
    np.testing.assert_array_equal(ir.load(tmp_path / "big.onnx").graph.initializers["w"].const_value.numpy(), weight)
    assert model.graph.initializers["w"].const_value.numpy() is not None  # the argument still has its own


def test_weights_are_laid_out_in_memory_of_their_own() -> None:
    """One that lies in columns, as a folded transposition leaves it, larger than a tile; and one of more axes."""
    model = parse(SCALED, **ARRAYS)
    column_wise = GENERATOR.standard_normal((300, 200)).astype(np.float32).T
    filters = GENERATOR.standard_normal((4, 3, 2, 2)).astype(np.float32).transpose(0, 2, 3, 1)
    for name, array in (("w", column_wise), ("b", filters)):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    lay_out(model)
    for name, array in (("w", column_wise), ("b", filters)):
        found = model.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(found, array)
        assert found.flags.c_contiguous and not np.shares_memory(found, array)


def test_the_checkpoints_weights_are_let_go(tiny_checkpoint: Path) -> None:
    """With the module gone and the graph laid out, nothing holds the memory that the weights were mapped to."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    parameters = [weakref.ref(parameter) for parameter in checkpoint.module.parameters()]
    graph = trace(checkpoint, (32, 32), ("logits",), {})
    clean(graph)
    del checkpoint
    lay_out(graph)
    assert len(parameters) > 20 and not [reference for reference in parameters if reference() is not None]


@pytest.mark.full
def test_more_than_two_gigabytes_go_to_a_file_beside_it(tmp_path: Path) -> None:
    """For real: 2.2 GB of weights, written, read back by ONNX Runtime, and run."""
    import onnxruntime

    rows, columns, count = 8192, 8192, 9
    text = "".join(f"   x{i + 1} = MatMul (x{i}, w{i})\n" for i in range(count))
    head = (
        f'<ir_version: 10, opset_import: ["" : 20]>\nbig (float[batch, {rows}] x0) => (float[batch, {rows}] x{count})\n'
    )
    weights = ", ".join(f"float[1, 1] w{i} = {{0.0}}" for i in range(count))
    model = ir.from_onnx_text(f"{head}<{weights}>\n{{\n{text}}}\n")
    generator = np.random.default_rng(0)
    for index in range(count):
        weight = generator.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(rows))
        model.graph.initializers[f"w{index}"].const_value = ir.tensor(weight, name=f"w{index}")
        model.graph.initializers[f"w{index}"].shape = ir.Shape(weight.shape)
    data = save(model, tmp_path / "big.onnx")
    assert data is not None and data.stat().st_size > 1 << 31
    x = generator.standard_normal((1, rows), dtype=np.float32)
    expected = x
    for index in range(count):
        expected = expected @ model.graph.initializers[f"w{index}"].const_value.numpy()
    session = onnxruntime.InferenceSession(tmp_path / "big.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x0": x})[0], expected, atol=1e-3)


def test_the_check_images_are_photographs_and_noise_of_several_sizes() -> None:
    from vitdeploy.compiler.samples import check_batches

    batches = check_batches()
    assert [len(batch) for batch in batches] == [1, 2, 7] and len({batch.shape[1:] for batch in batches}) == 3
    assert all(batch.dtype == np.uint8 for batch in batches)
    photograph, noise = (np.abs(np.diff(batch.astype(int), axis=2)).mean() for batch in batches[:2])
    assert photograph < 20 < 70 < noise  # neighbours in a photograph are alike
    assert {batch.shape[1:3] for batch in check_batches((24, 40))} == {(24, 40)}
