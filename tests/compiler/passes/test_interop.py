"""Our ONNX files in other people's tools: checked, loaded, compared and optimised, and still the same model."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vitdeploy.compiler.build import build

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FORMS = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "bf16": "model.bf16.onnx",
    "int8": "model.int8.onnx",
    "int8-cpu": "model.int8-cpu.onnx",
}
# As a share of the logits' range. A fused or reordered float32 sum differs in its last bits; float16 and INT8 round the
# difference up to a step of theirs, and a fusion may skip a rounding.
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.03, "int8-cpu": 0.03}
RUNS = [pytest.param(form, id=form) for form in TOLERANCES]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with every form. Read-only."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("interop") / "bundle"))
    build(path, ["bf16"], target="onnx")
    return path


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    """Pictures with edges and gradients: uint8 (24, 40, 48, 3)."""
    generator = np.random.default_rng(7)
    ramps = np.linspace(0, 255, 48)[None, None, :, None] * generator.random((24, 1, 1, 3))
    return np.clip(ramps + generator.normal(0, 40, (24, 40, 48, 3)), 0, 255).astype(np.uint8)


def logits(model: Path | bytes, images: npt.NDArray[np.uint8], **options: Any) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"], **options
    )
    return np.asarray(session.run(["logits"], {"image": images})[0])


def assert_same(found: npt.NDArray[Any], expected: npt.NDArray[Any], form: str) -> None:
    limit = TOLERANCES[form] * float(np.ptp(expected))
    assert float(np.abs(found - expected).max()) <= limit
    assert float(np.abs(np.roll(found, 1, axis=0) - expected).max()) > limit  # another image's answer is no match
    clear = np.sort(expected)[:, -1] - np.sort(expected)[:, -2] > 2 * limit
    assert clear.sum() >= 6
    np.testing.assert_array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])


@pytest.mark.parametrize("form", FORMS)
def test_onnx_checker(bundle: Path, form: str) -> None:
    """Every node against its operator's schema, and the types and shapes that follow from one another."""
    path = bundle / FORMS[form]
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    del model.graph.node[-1]
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("form", FORMS)
def test_no_tool_warns(bundle: Path, form: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Not a line from ONNX Runtime and OpenVINO as they are out of the box, nor from the checker; one constant that
    nothing reads is told of."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino")
    path = bundle / FORMS[form]

    def said(path: Path) -> list[str]:
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if form != "bf16":  # ONNX Runtime has no CPU kernels for it
                onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            openvino.Core().read_model(str(path))
            onnx.checker.check_model(str(path), full_check=True)
        printed = capfd.readouterr()
        return [*printed.out.splitlines(), *printed.err.splitlines(), *(str(warning.message) for warning in caught)]

    assert said(path) == []
    if form != "bf16":
        model = onnx.load(path)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "unread"))
        onnx.save(model, tmp_path / "unread.onnx")
        assert any("unread" in line for line in said(tmp_path / "unread.onnx"))


@pytest.mark.parametrize("form", RUNS)
def test_onnx_runtimes_optimizer_changes_nothing(
    bundle: Path, images: npt.NDArray[np.uint8], form: str, tmp_path: Path
) -> None:
    """Answers with every optimisation on against none, and of the optimised graph saved and loaded again."""
    path = bundle / FORMS[form]
    plain, full = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    full.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    full.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    for options in (plain, full):
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
    expected = logits(path, images, sess_options=plain)
    assert_same(logits(path, images, sess_options=full), expected, form)
    assert_same(logits(tmp_path / "optimised.onnx", images, sess_options=plain), expected, form)
    before, after = (
        [node.op_type for node in onnx.load(file).graph.node] for file in (path, full.optimized_model_filepath)
    )
    assert sorted(before) != sorted(after)  # it did something


@pytest.mark.parametrize("form", RUNS)
def test_onnxslim_changes_nothing(bundle: Path, images: npt.NDArray[np.uint8], form: str) -> None:
    onnxslim = pytest.importorskip("onnxslim", reason="onnxslim is not installed: pip install onnxslim")
    path = bundle / FORMS[form]
    slim = onnxslim.slim(str(path))
    onnx.checker.check_model(slim, full_check=True)
    assert_same(logits(slim.SerializeToString(), images), logits(path, images), form)
    kinds = {node.op_type for node in slim.graph.node}
    assert ("QuantizeLinear" in kinds) == form.startswith("int8")


def test_polygraphy_compares_the_forms(bundle: Path, images: npt.NDArray[np.uint8]) -> None:
    """As `polygraphy run` does: each form loaded by Polygraphy, run in ONNX Runtime and compared with FP32."""
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install polygraphy")
    from polygraphy.backend.onnx import BytesFromOnnx, OnnxFromPath
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, CompareFunc
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.ERROR
    forms = ("fp32", "fp16", "int8")
    runners = [
        OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(OnnxFromPath(str(bundle / FORMS[form])))), name=form)
        for form in forms
    ]
    results = Comparator.run(runners, data_loader=[{"image": images}])
    assert [name for name, _ in results.items()] == list(forms)
    expected = logits(bundle / FORMS["fp32"], images)
    span = float(np.ptp(expected))
    np.testing.assert_allclose(results["fp32"][0]["logits"], expected, atol=1e-4 * span)

    def agree(tolerance: float, pair: tuple[int, int], statistic: str = "max") -> bool:
        compare = CompareFunc.simple(atol=tolerance * span, rtol=0, check_error_stat=statistic)
        return bool(Comparator.compare_accuracy(results, compare_func=compare, comparisons=[pair]))

    assert agree(0.03, (0, 1)) and not agree(1e-6, (0, 1))  # FP16 against FP32: close, and not the same
    # INT8 of a random model, on images unlike those of its calibration: one of them may go astray
    assert agree(0.05, (0, 2), "mean") and not agree(1e-6, (0, 2))


@pytest.mark.full
def test_accuracy_on_a_real_model_is_unchanged(test_data: Path, tmp_path: Path) -> None:
    """Top-1 on 100 test images, after onnxslim and after ONNX Runtime's optimiser against neither."""
    onnxslim = pytest.importorskip("onnxslim", reason="onnxslim is not installed: pip install onnxslim")
    from vitdeploy.compiler.export import export
    from vitdeploy.compiler.quantization.recipe import Recipe
    from vitdeploy.data import load_dataset

    made = export(test_data / "models" / "vit-small-patch14-112-cifar10", tmp_path / "bundle")
    recipe = Recipe(dataset=str(test_data / "cifar10"), count=32)
    folder = build(made, ["fp16", "int8"], target="onnx", recipe=recipe).bundle.path
    data = load_dataset(str(test_data / "cifar10"), "test", limit=100, seed=1)
    pixels = np.stack([data.image(index) for index in range(len(data))])
    labels = np.asarray(data.label_ids)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def top1(model: Path | bytes, **options: Any) -> float:
        parts = [logits(model, pixels[start : start + 50], **options) for start in range(0, len(pixels), 50)]
        return float((np.concatenate(parts).argmax(1) == labels).mean())

    for form in TOLERANCES:
        slim = onnxslim.slim(str(folder / FORMS[form])).SerializeToString()
        found = top1(folder / FORMS[form], sess_options=plain), top1(folder / FORMS[form]), top1(slim)
        assert min(found) > 0.8 and max(found) - min(found) <= 0.011, (
            form,
            found,
        )  # one image: a tie that rounding decides
