"""FP16 where it holds, FP32 where it would not, with few casts; judged by what a device would compute."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from tests.tools.families import write_family
from tests.tools.massive import decompose_layer_norm, louder
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.float16.cast import count_casts, fewer_casts, model_nodes, to_half
from vitdeploy.compiler.float16.plan import HalfPlan, plan_half
from vitdeploy.compiler.float16.simulation import simulate
from vitdeploy.compiler.samples import check_batches

IMAGES = [image for batch in check_batches() for image in batch]
BATCH = check_batches()[2]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("vit", tmp_path_factory.mktemp("half") / "checkpoint")


@pytest.fixture(scope="module")
def massive(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """The graph of the model whose residual stream is `factor` times as large."""
    root, made = tmp_path_factory.mktemp("massive"), {}

    def make(factor: float) -> Path:
        if factor not in made:
            checkpoint = louder(vit, factor, root / f"checkpoint{factor:g}")
            made[factor] = export(checkpoint, root / f"bundle{factor:g}").path
        return made[factor]

    return make


def logits(path: Path) -> np.ndarray:
    with OnnxRuntimeRunner(path) as runner:
        return runner.infer({"image": BATCH})["logits"]


def as_on_a_device(model: ir.Model, scratch: Path) -> np.ndarray:
    ir.save(simulate(model), scratch / "rounded.onnx")
    return logits(scratch / "rounded.onnx")


def test_a_sound_model_is_half_throughout(massive: Callable[[float], Path], tmp_path: Path) -> None:
    path = massive(1) / "model.onnx"
    plan = plan_half(path, "x", IMAGES, {})
    assert plan.kept == () and plan.casts == 0 and 0 < plan.largest < 100
    model = ir.load(path)
    to_half(model, plan.names)
    exact = logits(path)
    assert 0 < np.abs(as_on_a_device(model, tmp_path) - exact).max() < 0.005 * np.ptp(exact)


def test_a_residual_stream_of_thousands_needs_the_fused_layer_norm(
    massive: Callable[[float], Path], tmp_path: Path
) -> None:
    path = massive(1000) / "model.onnx"
    exact = logits(path)
    np.testing.assert_allclose(exact, logits(massive(1) / "model.onnx"), atol=1e-4)  # LayerNorm cancels the factor
    plan = plan_half(path, "x", IMAGES, {})
    assert plan.largest > 2000 and plan.kept == ()
    model = ir.load(path)
    to_half(model, plan.names)
    assert np.abs(as_on_a_device(model, tmp_path) - exact).max() < 0.005 * np.ptp(exact)
    naive = decompose_layer_norm(path, tmp_path / "decomposed.onnx")
    to_half(naive)
    wrong = as_on_a_device(naive, tmp_path)
    assert not np.isfinite(wrong).all() or np.abs(wrong - exact).max() > 0.2 * np.ptp(exact)


def test_the_plan_mends_a_decomposed_layer_norm(massive: Callable[[float], Path], tmp_path: Path) -> None:
    path = massive(1000) / "model.onnx"
    decompose_layer_norm(path, tmp_path / "decomposed.onnx")
    plan = plan_half(tmp_path / "decomposed.onnx", "x", IMAGES, {})
    assert any("square" in entry.node for entry in plan.kept)
    assert not any("q_proj" in entry.node or "fc1" in entry.node for entry in plan.kept)  # just what needs it
    model = ir.load(tmp_path / "decomposed.onnx")
    to_half(model, plan.names)
    exact = logits(path)
    assert np.abs(as_on_a_device(model, tmp_path) - exact).max() < 0.005 * np.ptp(exact)


def test_a_residual_stream_beyond_float16_stays_in_single(massive: Callable[[float], Path], tmp_path: Path) -> None:
    path = massive(100_000) / "model.onnx"
    exact = logits(path)
    plan = plan_half(path, "x", IMAGES, {})
    kept = {entry.node: entry.why for entry in plan.kept}
    assert "vit.layers.1/Add_1" in kept and "float16 ends at 65,504" in kept["vit.layers.1/Add_1"]
    assert not any("q_proj" in name or "fc1" in name or "Softmax" in name for name in kept)
    naive, ours = ir.load(path), ir.load(path)
    to_half(naive)
    to_half(ours, plan.names)
    assert np.isnan(as_on_a_device(naive, tmp_path)).any()
    assert np.abs(as_on_a_device(ours, tmp_path) - exact).max() < 0.005 * np.ptp(exact)
    # One cast behind each LayerNorm and one in front of each product of the residual stream; two at the ends.
    assert plan.casts <= 2 * (2 * 2 + 1)
    assert HalfPlan.load(_written(plan, tmp_path)) == plan


def _written(plan: HalfPlan, folder: Path) -> Path:
    (folder / "half.json").write_text(plan.dumps())
    return folder / "half.json"


def test_bfloat16_has_the_range_and_fewer_digits(massive: Callable[[float], Path], tmp_path: Path) -> None:
    path = massive(100_000) / "model.onnx"
    exact = logits(path)
    model = ir.load(path)
    to_half(model, dtype="bfloat16")
    types = {value.dtype for node in model_nodes(model) for value in node.outputs}
    assert ir.DataType.BFLOAT16 in types and ir.DataType.FLOAT16 not in types
    conv = next(node for node in model.graph if node.op_type == "Conv")
    assert conv.outputs[0].dtype == ir.DataType.FLOAT  # Conv has no bfloat16 before opset 22
    ir.save(model, tmp_path / "bf16.onnx")
    onnx.checker.check_model(tmp_path / "bf16.onnx", full_check=True)
    error = np.abs(as_on_a_device(model, tmp_path) - exact).max() / np.ptp(exact)
    assert 1e-4 < error < 0.05


CHAIN = """
<ir_version: 10, opset_import: ["" : 20]>
chain (float[batch, 4] image) => (float[batch, 4] logits)
<float big = {300.0}, float small = {0.001}, float one = {1.5}>
{
   a = Mul (image, one)
   b = Mul (a, big)
   c = Add (b, one)
   d = Mul (c, small)
   e = Tanh (d)
   f = Mul (e, one)
   logits = Add (f, one)
}
"""


def named(text: str) -> ir.Model:
    from onnx_ir.passes import common

    model = ir.from_onnx_text(text)
    common.ShapeInferencePass()(model)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def test_the_simulation_is_what_the_standard_says(tmp_path: Path) -> None:
    """Against ONNX's reference evaluator, which computes each float16 operation in float16."""
    model = named(CHAIN)
    to_half(model)
    ir.save(model, tmp_path / "half.onnx")
    values = np.random.default_rng(0).normal(0, 40, (8, 4)).astype(np.float32)
    standard = ReferenceEvaluator(str(tmp_path / "half.onnx")).run(None, {"image": values})[0]
    ir.save(simulate(ir.load(tmp_path / "half.onnx")), tmp_path / "rounded.onnx")
    with OnnxRuntimeRunner(tmp_path / "rounded.onnx") as runner:
        ours = runner.infer({"image": values})["logits"]
    np.testing.assert_allclose(ours, standard, atol=2e-3)  # tanh of two libraries may round apart by one step
    with OnnxRuntimeRunner(tmp_path / "half.onnx") as runner:
        direct = runner.infer({"image": np.full((1, 4), 500, np.float32)})["logits"]
    with OnnxRuntimeRunner(tmp_path / "rounded.onnx") as runner:
        rounded = runner.infer({"image": np.full((1, 4), 500, np.float32)})["logits"]
    assert np.isfinite(direct).all() and np.isfinite(rounded).all()  # tanh(inf) is 1: overflow hides from the output


def test_fewer_casts_is_the_best_there_is() -> None:
    """Against all choices of cheap nodes beside the kept ones, on a chain with a branch."""
    model = named(CHAIN.replace("logits = Add (f, one)", "logits = Add (f, a)"))
    nodes = model_nodes(model)
    by_name = {node.name: node for node in nodes}
    for needed in (["b", "d"], ["b", "f"], ["a"], ["c"], ["b", "d", "f"]):
        kept = {by_name[name] for name in needed}
        free = [node for node in nodes if node not in kept and node.op_type in ("Mul", "Add")]
        best = min(
            count_casts(nodes, kept | set(extra))
            for size in range(len(free) + 1)
            for extra in itertools.combinations(free, size)
        )
        assert kept <= fewer_casts(nodes, kept)
        assert count_casts(nodes, fewer_casts(nodes, kept)) <= best + 1


CANCEL = """
<ir_version: 10, opset_import: ["" : 20]>
cancel (uint8[batch, height, width, 3] image) => (float[batch, height, width, 3] logits)
<float offset = {1000.0}, float tiny = {0.001}>
{
   pixels = Cast <to: int = 1> (image)
   small = Mul (pixels, tiny)
   near = Add (small, offset)
   logits = Sub (near, offset)
}
"""


def test_cancellation_is_found(tmp_path: Path) -> None:
    ir.save(named(CANCEL), tmp_path / "cancel.onnx")
    plan = plan_half(tmp_path / "cancel.onnx", "x", IMAGES[:2], {})
    kept = {entry.node: entry.why for entry in plan.kept}
    assert {"near", "logits"} <= set(kept)
    assert "dB in float16" in kept["logits"]


MOVED = CANCEL.replace("logits = Sub (near, offset)", "turned = Transpose (near)\n   logits = Sub (turned, offset)")


def test_what_was_moved_before_it_cancels_is_kept_where_it_was_made(tmp_path: Path) -> None:
    ir.save(named(MOVED), tmp_path / "moved.onnx")
    plan = plan_half(tmp_path / "moved.onnx", "x", IMAGES[:2], {})
    assert {"near", "turned", "logits"} <= plan.names


VANISH = """
<ir_version: 10, opset_import: ["" : 20]>
vanish (uint8[batch, height, width, 3] image) => (float[batch, height, width, 3] logits)
<float factor = {1e-11}>
{
   pixels = Cast <to: int = 1> (image)
   logits = Mul (pixels, factor)
}
"""


def test_what_vanishes_in_half_is_kept(tmp_path: Path) -> None:
    ir.save(named(VANISH), tmp_path / "vanish.onnx")
    plan = plan_half(tmp_path / "vanish.onnx", "x", IMAGES[:2], {})
    assert "logits" in plan.names and "dB in float16" in plan.kept[0].why


@pytest.mark.parametrize(("factor", "kept"), [(184, set()), (185, {"logits"})])
def test_a_quarter_of_float16_is_the_most_that_a_value_may_reach(factor: int, kept: set[str], tmp_path: Path) -> None:
    """184 * 89 is 16376, a quarter of 65504: other images may reach four times as far."""
    ir.save(named(VANISH.replace("1e-11", f"{factor}.0")), tmp_path / "quarter.onnx")
    plan = plan_half(tmp_path / "quarter.onnx", "x", [np.full((4, 4, 3), 89, np.uint8)], {})
    assert plan.largest == factor * 89 and plan.names == kept


BRANCHES = """
<ir_version: 10, opset_import: ["" : 20]>
branches (uint8[batch, 3, 8, 8] image) => (float[batch, 3, 16, 16] logits, float[batch, 3, 16, 16] probabilities)
<float[1] least = {0.0}, float most = {1.0}, float third = {0.33333334}, float[4] scales = {1.0, 1.0, 2.0, 2.0}>
{
   pixels = Cast <to: int = 1> (image)
   scaled = Mul (pixels, third)
   count = Size (image)
   few = Constant <value = int64 {1000}> ()
   is_large = Greater (count, few)
   pixel_values = If (is_large) <
      then_branch = large () => (float[batch, 3, 8, 8] shifted) { shifted = Add (scaled, third) },
      else_branch = small () => (float[batch, 3, 8, 8] same) { same = Identity (scaled) }
   >
   clipped = Clip (pixel_values, , most)
   larger = Resize <mode = "nearest"> (clipped, , scales)
   logits = Mul (larger, third)
   again = Softmax (larger)
   probabilities = Softmax <axis: int = 1> (again)
}
"""


def test_what_the_graph_asks_for_in_single_stays_and_all_else_is_half(tmp_path: Path) -> None:
    """What only a branch of the preprocessing reads, Resize's scales and the outputs; inputs may be left out."""
    model = named(BRANCHES)
    to_half(model)
    of = {node.name: node for node in model.graph}
    assert of["scaled"].outputs[0].dtype == ir.DataType.FLOAT
    scales = of["larger"].inputs[2]
    assert scales is not None and scales.dtype == ir.DataType.FLOAT
    # the last softmax reads no output: nothing keeps it in single
    halves = ("clipped", "larger", "logits", "again", "probabilities")
    assert {of[name].outputs[0].dtype for name in halves} == {ir.DataType.FLOAT16}
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [
        ("logits", ir.DataType.FLOAT), ("probabilities", ir.DataType.FLOAT)
    ]  # fmt: skip
    ir.save(model, tmp_path / "half.onnx")
    onnx.checker.check_model(tmp_path / "half.onnx", full_check=True)
    image = np.random.default_rng(0).integers(0, 4, (1, 3, 8, 8), np.uint8)
    with OnnxRuntimeRunner(tmp_path / "half.onnx") as runner:
        found = runner.infer({"image": image})["logits"]
    wanted = np.minimum(image / 3, 1).repeat(2, axis=2).repeat(2, axis=3) / 3
    np.testing.assert_allclose(found, wanted, rtol=2e-3)


def test_the_bundle_says_what_stays_in_single(
    massive: Callable[[float], Path], tmp_path: Path, tiny_images: Path, cli: Callable[..., object]
) -> None:
    import shutil

    from vitdeploy.compiler.quantization.recipe import Recipe

    folder = Path(shutil.copytree(massive(100_000), tmp_path / "bundle"))
    recipe = Recipe(dataset=str(tiny_images), count=8)
    result = build(folder, ["fp16", "bf16", "int8"], target="onnx", recipe=recipe)
    fp16 = result.bundle.find(kind="onnx", precision="fp16")
    bf16 = result.bundle.find(kind="onnx", precision="bf16")
    assert fp16 is not None and bf16 is not None
    assert len(fp16.built_with["kept_fp32"]) > 5
    assert [entry["node"] for entry in bf16.built_with["kept_fp32"]] == [
        "vit.embeddings.patch_embeddings.projection/Conv"
    ]
    assert fp16.built_with["check"]["passed"] and 0 < fp16.built_with["mean_logit_difference"] < 0.1
    plan = result.bundle.find(kind="half-plan")
    assert plan is not None and plan.built_with["images"]["looked_at"] == 8
    data = json.loads((folder / plan.path).read_text())
    assert data["images"]["looked_at"] == 8 and str(tiny_images.parent) not in json.dumps(data)
    shown = cli("inspect", str(folder))
    assert f"{len(fp16.built_with['kept_fp32'])} nodes in FP32" in shown.stdout  # type: ignore[attr-defined]
    again = build(folder, ["fp16", "bf16", "int8"], target="onnx")
    assert not again.built and len(again.kept) == 4
    assert Bundle.open(folder).find(kind="onnx", precision="int8", target="tensorrt") is not None


def test_tensorrt_rtx_builds_the_mixed_graph(massive: Callable[[float], Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    import shutil

    from vitdeploy.compiler.engine import EngineOptions

    folder = Path(shutil.copytree(massive(100_000), tmp_path / "bundle"))
    options = EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",))
    result = build(folder, ["fp16", "bf16"], target="tensorrt-rtx", engine_options=options)
    assert {a.precision for a in result.built if a.kind == "engine"} == {"fp16", "bf16"}
