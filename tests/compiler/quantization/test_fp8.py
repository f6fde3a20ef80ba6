"""FP8: the same placement and search as INT8 with other numbers, and engines that compute in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests.tools.command_line import invoke
from tests.tools.quantization import PLAIN, error, images, logits, with_outlier_channels
from vitdeploy import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.engine import EngineOptions, Profile
from vitdeploy.compiler.lint.structure import check_structure
from vitdeploy.compiler.quantization.arithmetic import E4M3, INT8, fake_quantize, weight_scales
from vitdeploy.compiler.quantization.calibration import Calibration, calibrate
from vitdeploy.compiler.quantization.check import check_calibration
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.schemes import FP8
from vitdeploy.core import machine
from vitdeploy.core.errors import EngineError
from vitdeploy.core.machine import Gpu
from vitdeploy.core.precisions import engine_order, load_order
from vitdeploy.core.specs import ShapeRange
from vitdeploy.inspection.bundle import inspect
from vitdeploy.inspection.plan import read_plan

FILE = "model.fp8.onnx"


@pytest.fixture(scope="module")
def fp8_bundle(tiny_bundle: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with an FP8 form, attention too. Read-only."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("fp8") / "bundle"))
    recipe = Recipe(dataset=str(tiny_images), count=24, attention=True)
    build(path, ["fp8"], target="onnx", recipe=recipe)
    return path


def fp8_logits(bundle: Path, recipe: Recipe, folder: Path, graph: str = "model.onnx") -> np.ndarray:
    pictures = images()
    found = calibrate(bundle / graph, "hash", pictures, len(pictures), recipe, {}, numbers=E4M3)
    model = ir.load(bundle / graph)
    quantize(model, found, scheme=FP8)
    return logits(model, folder, images(8, seed=1))


def test_numbers_are_rounded_as_e4m3_is_defined() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(size=20_000) * size for size in (1e-4, 0.004, 0.02, 1, 40, 300)])
    values = np.concatenate([values, [0.0, 448, 464, -1e6, 2.0**-9, 2.0**-10, 1.5 * 2.0**-9]]).astype(np.float32)
    wanted = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(fake_quantize(values, 1.0, numbers=E4M3), wanted)
    np.testing.assert_array_equal(fake_quantize(values * 0.25, 0.25, numbers=E4M3), wanted * 0.25)
    weight = generator.normal(size=(64, 5)).astype(np.float32)
    scales = weight_scales(weight, E4M3)
    np.testing.assert_allclose(np.abs(weight).max(axis=0) / scales, 448, rtol=1e-3)


def test_every_linear_of_the_encoder_is_fp8_and_nothing_else(fp8_bundle: Path) -> None:
    model = ir.load(fp8_bundle / FILE)
    structure = check_structure(model, numbers=E4M3)
    structure.require_sound()
    assert structure.title == "FP8" and len(structure.int8_products) == 3 * (6 + 2)  # Linears, attention's products
    assert check_structure(model, numbers=INT8).unfusable  # its zero points are not int8
    graph = onnx.load(fp8_bundle / FILE).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    weights = 0
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert types[node.input[2]] == onnx.TensorProto.FLOAT8E4M3FN
            assert types[node.input[1]] == onnx.TensorProto.FLOAT16
        if node.op_type == "DequantizeLinear" and node.input[0] in types:
            weights += 1
            stored = numpy_helper.to_array(arrays[node.input[0]]).astype(np.float32)
            assert numpy_helper.to_array(arrays[node.input[1]]).shape == (stored.shape[1],)  # one an output channel
            assert np.abs(stored).max() == 448 and np.isfinite(stored).all()
    assert weights == 18


def test_attention_is_as_the_fused_kernel_wants_it(fp8_bundle: Path) -> None:
    model = onnx.load(fp8_bundle / FILE)
    makers = {name: node for node in model.graph.node for name in node.output}
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 3
    for softmax in softmaxes:
        scores = makers[softmax.input[0]]  # no scale between the product and its softmax
        assert scores.op_type == "MatMul"
        for name in scores.input:  # and neither a scale nor K's transpose between DequantizeLinear and the product
            assert (
                makers[name].op_type == "DequantizeLinear" and makers[makers[name].input[0]].op_type == "QuantizeLinear"
            )
        (quantizer,) = (node for node in model.graph.node if softmax.output[0] in node.input)
        assert quantizer.op_type == "QuantizeLinear"
        assert numpy_helper.to_array(arrays[quantizer.input[1]]) == np.float16(1 / 448)


def test_it_is_rebuilt_without_images_and_leaves_int8_alone(fp8_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(fp8_bundle, tmp_path / "bundle"))
    bundle = Bundle.open(copy)
    assert not bundle.out_of_date() and {file.state for file in inspect(copy).files} == {"ok"}
    calibration = Calibration.load(copy / "calibration.fp8.json", bundle.select(kind="onnx")[0].sha256)
    assert calibration.numbers is E4M3 and all(group.shift == 0 for group in calibration.groups)
    before = {path.name: path.read_bytes() for path in copy.glob("*.*")}
    (copy / FILE).unlink()
    build(copy, ["fp8"], target="onnx")
    after = {path.name: path.read_bytes() for path in copy.glob("*.*")}
    assert {name for name in after if after[name] != before[name]} <= {"manifest.json"}
    done = invoke("inspect", copy / FILE)
    assert "24 of 28 (MatMul, Gemm, Conv) are on FP8 factors" in " ".join(done.stdout.split())


def test_a_search_is_no_worse_than_the_largest_values_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    exact = logits(tiny_bundle / "model.onnx", tmp_path, images(8, seed=1))
    found = error(fp8_logits(tiny_bundle, Recipe(), tmp_path), exact)
    plain = error(fp8_logits(tiny_bundle, PLAIN, tmp_path), exact)
    assert found < 0.2 and found <= plain
    with_outlier_channels(tiny_bundle / "model.onnx", tmp_path / "hard.onnx")
    hard = error(fp8_logits(tmp_path, Recipe(), tmp_path, "hard.onnx"), exact)
    assert hard < 1.5 * found


def test_a_budget_and_an_analysis_know_it(tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    recipe = Recipe(dataset=str(tiny_images), count=16)
    build(copy, ["fp8"], target="onnx", recipe=recipe, max_drop=100, validation_images=8)
    stored = json.loads((copy / "calibration.fp8.json").read_text())
    assert stored["numbers"] == "e4m3" and stored["budget"]["max_drop"] == 100
    bundle = Bundle.open(copy)
    with bundle.edit() as editor:
        kept = tuple(a for a in editor.manifest.artifacts if a.kind != "calibration")
        editor._artifacts = {artifact.path: artifact for artifact in kept}
    done = invoke("analyze", copy, "--dataset", tiny_images, "--count", 8, "--json")
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 12


def test_where_both_are_there_either_is_analysed_and_inspect_shows_both(fp8_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(fp8_bundle, tmp_path / "bundle"))
    for wish, title in ((), "INT8"), (("--precision", "fp8"), "FP8"):
        done = invoke("analyze", copy, "--dataset", "digits", "--count", 8, *wish)
        assert done.exit_code == 0 and f"alone in {title}, the others" in " ".join(done.stdout.split()), done.stderr
        assert json.loads((copy / "analysis.json").read_text())["precision"] == title.lower()
    assert len(json.loads((copy / "analysis.json").read_text())["rows"]) == 12 + 3  # attention's products too
    calibrations = inspect(copy).to_json()["calibrations"]
    assert calibrations["fp8"]["recipe"]["attention"] and not calibrations["int8"]["recipe"]["attention"]
    shown = invoke("inspect", copy).stdout
    assert "INT8: 24 images" in shown and "FP8: 24 images" in shown


def test_its_calibration_is_checked_against_its_own_range(tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    """E4M3 cuts off what is beyond 464 steps, not what is beyond 127."""
    found, shares = [], []
    for numbers in (INT8, E4M3):
        pictures = images()
        recipe = replace(PLAIN, dataset=str(tiny_images))
        made = calibrate(tiny_bundle / "model.onnx", "hash", pictures, len(pictures), recipe, {}, numbers=numbers)
        layers = QuantLayers.find_in_file(tiny_bundle / "model.onnx", recipe)
        found.append(check_calibration(tiny_bundle / "model.onnx", made, layers, (40, 40)))
        shares.append(found[-1].clipped)
    assert "INT8 cuts off" in str(found[0]) and "FP8 cuts off" in str(found[1])
    assert shares[1] <= shares[0] <= shares[1] + 0.01  # both have the largest value that was seen at their end


def test_it_is_for_engines_alone() -> None:
    assert "fp8" in engine_order() and "fp8" not in load_order("cpu") and "fp8" not in load_order("cuda")


def test_a_gpu_without_it_is_refused_before_work(tiny_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_bundle_copy.rglob("*") if path.is_file()}
    pytest.importorskip("tensorrt_rtx")
    nowhere = ("--calibration-data", "no-such-dataset")
    done = invoke(
        *("build-engine", tiny_bundle_copy, "--fp8", "--target", "tensorrt-rtx", "--compute-capability", "8.6,8.9"),
        *nowhere,
    )
    assert done.exit_code == 1 and "compute capability 8.6 have no FP8" in done.stderr
    old = Gpu("NVIDIA Orin", "8.7", 1 << 24, "580.1", "13.0", True)
    monkeypatch.setattr(machine, "gpus", lambda: (old,))
    monkeypatch.setattr("vitdeploy.compiler.engine.target.why_not", lambda flavour: None)
    with pytest.raises(EngineError, match=r"NVIDIA Orin \(compute capability 8\.7\) has no FP8"):
        build(tiny_bundle_copy, ["fp8"], target="tensorrt", recipe=Recipe(dataset="no-such-dataset"))
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("capability", ["8.9", "12.0"])
def test_every_linear_of_an_engine_is_fp8(fp8_bundle: Path, tmp_path: Path, capability: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    copy = Path(shutil.copytree(fp8_bundle, tmp_path / "bundle"))
    one = ShapeRange(1, 1, 1)
    size = ShapeRange(32, 32, 32)
    options = EngineOptions(profiles=(Profile(one, size, size),), compute_capabilities=(capability,))
    build(copy, ["fp8"], target="tensorrt-rtx", engine_options=options)
    engine = copy / "engines" / "tensorrt-rtx-fp8.engine"
    plan = read_plan(engine)
    assert plan is not None and plan.capturable and not plan.host_copies
    names = [node.name for node in onnx.load(copy / FILE).graph.node]
    linears = [name for name in names if name.endswith(("_proj/MatMul", ".fc1/MatMul", ".fc2/MatMul"))]
    found = {name: product.precision for product in plan.products for name in product.nodes}
    assert len(linears) == 18 and {found[name] for name in linears} == {"fp8"}
    built = next(a for a in Bundle.open(copy).manifest.artifacts if a.kind == "engine").built_with
    assert built["precision"] == "fp8" and built["compute_capabilities"] == [capability]
    assert "24 of 28 products on FP8 factors" in invoke("inspect", engine).stdout


def test_engines_are_for_gpus_that_have_it_where_none_was_named(fp8_bundle: Path) -> None:
    from vitdeploy.compiler.engine import for_gpus

    assert for_gpus(EngineOptions(), "fp8").compute_capabilities == ("8.9", "12.0")
    assert for_gpus(EngineOptions(), "int8").compute_capabilities == ()
