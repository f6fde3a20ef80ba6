"""The runner of our own INT8 kernels: which graphs it takes, what it says of the others, and where it has its place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.compiler.families import write_family
from vitdeploy import load, machine
from vitdeploy.bench import bench
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.calibration import Calibration
from vitdeploy.compiler.export import export
from vitdeploy.compiler.graph.cut import cut
from vitdeploy.compiler.graph.integer_products import fuse_integer_products
from vitdeploy.compiler.graph.read_rows import compute_read_rows
from vitdeploy.compiler.quantize import quantize
from vitdeploy.compiler.recipe import Recipe
from vitdeploy.datasets import load_dataset
from vitdeploy.errors import DependencyError, ModelError
from vitdeploy.machine import kernels_obstacle
from vitdeploy.runtime import selection
from vitdeploy.runtime.native import NativeRunner, check_plain_vit
from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from vitdeploy.runtime.plain_vit import read_plain_vit
from vitdeploy.runtime.selection import candidates

OBSTACLE = kernels_obstacle()
needs_kernels = pytest.mark.skipif(OBSTACLE is not None, reason=": ".join(OBSTACLE or ()))
FORM = "model.int8-cpu.onnx"


def images(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@needs_kernels
@pytest.mark.parametrize("size", [(32, 32), (90, 50)])
def test_it_answers_as_onnxruntime_does(tiny_bundle: Path, size: tuple[int, int]) -> None:
    """Values between two steps are rounded to one or the other, so both are as far from FP32, and not the same."""
    pixels = images(32, *size)
    logits = []
    for runner in (
        OnnxRuntimeRunner(tiny_bundle / "model.onnx", 1),
        OnnxRuntimeRunner(tiny_bundle / FORM, 1),
        NativeRunner(tiny_bundle / FORM, 1),
    ):
        with runner:
            logits.append(runner.infer({"image": pixels})["logits"])
    exact, theirs, ours = logits
    error = np.sqrt(np.mean((theirs - exact) ** 2))
    assert np.sqrt(np.mean((ours - exact) ** 2)) < 1.2 * error
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < error
    assert np.sqrt(np.mean((ours - np.roll(theirs, 1, axis=0)) ** 2)) > 3 * error


def changed(bundle: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    model = onnx.load(bundle / FORM)
    change(model.graph)
    onnx.save(model, folder / FORM)
    return folder / FORM


def nodes(graph: Any, kind: str) -> list[Any]:
    return [node for node in graph.node if node.op_type == kind and "pixel" not in node.name]


def attribute(node: Any, name: str) -> Any:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def constant(graph: Any, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    from onnx import numpy_helper

    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def tanh(graph: Any) -> None:
    attribute(nodes(graph, "Gelu")[1], "approximate").s = b"tanh"


def relu(graph: Any) -> None:
    node = nodes(graph, "Gelu")[0]
    node.op_type = "Relu"
    del node.attribute[:]


def other_token(graph: Any) -> None:
    for node in (node for node in nodes(graph, "Slice") if "/Rows" in node.output[0]):
        constant(graph, node.input[1], lambda _: np.array([1]))
        constant(graph, node.input[2], lambda _: np.array([2]))


def swapped(graph: Any) -> None:
    first = nodes(graph, "Softmax")[0].input[0]
    node = next(node for node in graph.node if first in node.output)
    node.input[:] = node.input[::-1]


def other_residual(graph: Any) -> None:
    adds = [node for node in nodes(graph, "Add") if "layers.1/" in node.output[0]]
    adds[0].input[1] = adds[0].input[0]


def short_bias(graph: Any) -> None:
    constant(graph, nodes(graph, "MatMulIntegerToFloat")[4].input[6], lambda bias: bias[:-1])


def long_weight(graph: Any) -> None:
    constant(graph, nodes(graph, "MatMulIntegerToFloat")[5].input[1], lambda weight: np.concatenate([weight, weight]))


def short_norm(graph: Any) -> None:
    constant(graph, nodes(graph, "LayerNormalization")[1].input[1], lambda weight: weight[:16])


def other_step(graph: Any) -> None:
    products = nodes(graph, "MatMulIntegerToFloat")
    products[4].input[2] = products[5].input[2]


def second_reader(graph: Any) -> None:
    from onnx import helper

    graph.node.append(helper.make_node("Identity", [nodes(graph, "Gemm")[0].input[0]], ["features"], name="more"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(tanh, r"mlp.*Gelu.*approximate", id="another GELU"),
        pytest.param(relu, r"Relu.*Gelu was expected", id="no GELU"),
        pytest.param(other_token, r"Slice.*first token", id="another token"),
        pytest.param(swapped, r"MatMul.*queries with keys", id="keys times queries"),
        pytest.param(other_residual, r"node .*layers\.1", id="another residual"),
        pytest.param(second_reader, r"more", id="one more output"),
        pytest.param(short_bias, r"fc1 of layer 0", id="a bias that is too short"),
        pytest.param(long_weight, r"fc2 of layer 0", id="a weight that is too long"),
        pytest.param(short_norm, r"LayerNorm", id="a LayerNorm that is too short"),
        pytest.param(other_step, r"fc1.*another scale", id="another scale"),
    ],
)
def test_a_graph_that_is_no_plain_vit(
    tiny_bundle: Path, tmp_path: Path, change: Callable[[Any], None], says: str
) -> None:
    check_plain_vit(tiny_bundle / FORM)
    path = changed(tiny_bundle, tmp_path, change)
    with pytest.raises(ModelError, match=says) as caught:
        check_plain_vit(path)
    assert "onnxruntime" in (caught.value.hint or "")


def test_the_form_for_engines_is_not_for_it(tiny_bundle: Path) -> None:
    with pytest.raises(ModelError, match=r"node .*Cast.*Conv was expected"):
        check_plain_vit(tiny_bundle / "model.int8.onnx")


@needs_kernels
def test_products_that_were_left_out_of_int8(tiny_bundle: Path, tmp_path: Path) -> None:
    """What `--max-drop` makes: the first layer's QKV and FC2, the second one's FC1, the last one's QKV in float32."""
    single = Bundle.open(tiny_bundle).find(kind="onnx", precision="fp32")
    assert single is not None
    calibration = Calibration.load(tiny_bundle / "calibration.json", single.sha256)
    left_out = tuple(calibration.names[place] for place in (0, 3, 6, len(calibration.names) - 4))
    model = ir.load(tiny_bundle / "model.onnx")
    quantize(model, replace(calibration, left_out=left_out), target="cpu")
    fuse_integer_products(model)
    compute_read_rows(model)
    ir.save(model, tmp_path / FORM)
    form = read_plain_vit(onnx.load(tmp_path / FORM))
    exact = [[name for name in vars(layer) if getattr(getattr(layer, name), "exact", False)] for layer in form.layers]
    assert exact == [["query", "key", "value", "fc2"], ["fc1"], ["query", "key", "value"]]
    logits = []
    for path in (tiny_bundle / "model.onnx", tmp_path / FORM):
        with OnnxRuntimeRunner(path, 1) as runner:
            logits.append(runner.infer({"image": images(16)})["logits"])
    with NativeRunner(tmp_path / FORM, 2) as runner:
        ours = runner.infer({"image": images(16)})["logits"]
    error = np.sqrt(np.mean((logits[1] - logits[0]) ** 2))
    assert np.sqrt(np.mean((ours - logits[0]) ** 2)) < 1.2 * error
    assert np.sqrt(np.mean((ours - logits[1]) ** 2)) < error


@needs_kernels
def test_in_float32_it_is_exact(tiny_bundle: Path) -> None:
    """Nothing is rounded in FP32, so that all the rest of the kernels shows: attention, GELU, LayerNorm, patches."""
    with (
        OnnxRuntimeRunner(tiny_bundle / "model.onnx", 1) as theirs,
        NativeRunner(tiny_bundle / "model.onnx", 2) as ours,
    ):
        expected, found = (runner.infer({"image": images(16)})["logits"] for runner in (theirs, ours))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("content", [b"not a graph", None], ids=["text", "truncated"])
def test_a_damaged_graph(content: bytes | None, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / FORM
    path.write_bytes((tiny_bundle / FORM).read_bytes()[:5000] if content is None else content)
    with pytest.raises(ModelError, match="int8-cpu"):
        check_plain_vit(path)


def family(name: str, folder: Path, pictures: Path, **recipe: Any) -> Path:
    checkpoint = write_family(name, folder / name)
    export(checkpoint, folder / "bundle")
    build(folder / "bundle", ["int8"], target="onnx", recipe=Recipe(dataset=str(pictures), count=24, **recipe))
    return folder / "bundle"


@needs_kernels
@pytest.mark.parametrize("name", ["deit"])
def test_other_plain_vits(name: str, tmp_path: Path, tiny_images: Path) -> None:
    bundle = family(name, tmp_path, tiny_images)
    pixels = images(16)
    with NativeRunner(bundle / FORM, 2) as ours, OnnxRuntimeRunner(bundle / FORM, 1) as theirs:
        found, expected = (runner.infer({"image": pixels})["logits"] for runner in (ours, theirs))
    assert np.abs(found - expected).max() < 0.05 * expected.std()
    assert np.abs(found - np.roll(expected, 1, axis=0)).max() > 0.05 * expected.std()


@needs_kernels
@pytest.mark.parametrize("name", ["dinov2", "beit"])
def test_a_model_that_is_none_runs_elsewhere(name: str, tmp_path: Path, tiny_images: Path) -> None:
    bundle = family(name, tmp_path, tiny_images)
    with pytest.raises(ModelError, match="node "):
        load(bundle, backend="native")
    with load(bundle, precision="int8", device="cpu") as classifier:
        assert classifier.backend == "openvino"
        passed = classifier.describe()["passed_over"]
    assert [(form["backend"], "plain ViT" in form["reason"]) for form in passed] == [("native", True)]


@needs_kernels
def test_attention_in_int8_is_not_its_own(tmp_path: Path, tiny_checkpoint: Path, tiny_images: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle")
    recipe = Recipe(dataset=str(tiny_images), count=24, attention=True)
    build(tmp_path / "bundle", ["int8"], target="onnx", recipe=recipe)
    with pytest.raises(ModelError, match="node .*attention"):
        load(tmp_path / "bundle", backend="native")


def order(bundle: Path) -> list[tuple[str, str, bool]]:
    found = candidates(Bundle.open(bundle), "auto", "int8", "cpu")
    return [(form.precision, form.backend, form.reason is None) for form in found]


def test_its_place(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "kernels_obstacle", lambda: None)
    monkeypatch.setattr(selection, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    assert [name for _, name, _ in order(tiny_bundle)] == ["native", "openvino", "onnxruntime"]
    monkeypatch.setattr(selection, "cpu_flags", lambda: frozenset({"avx512_vnni", "amx_int8"}))
    assert [name for _, name, _ in order(tiny_bundle)] == ["openvino", "onnxruntime", "native"]


@needs_kernels
def test_load_takes_it(tiny_bundle: Path) -> None:
    if "amx_int8" in machine.cpu_flags():
        pytest.skip("it is the last here")
    with load(tiny_bundle, threads=2) as classifier:
        assert (classifier.precision, classifier.backend) == ("int8", "native")
        assert classifier.predict(images(1)[0]).label


@pytest.mark.parametrize(
    ("flags", "module", "says"),
    [
        pytest.param({"avx2"}, True, "no avx512_vnni", id="an older processor"),
        pytest.param(set(machine._KERNELS_NEED), False, "without its kernels", id="installed without a compiler"),
    ],
)
def test_where_it_can_not_run(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, flags: set[str], module: bool, says: str
) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(machine, "has_module", lambda name: module)
    obstacle = kernels_obstacle()
    assert obstacle is not None and says in obstacle[0]
    with pytest.raises(DependencyError, match=says) as caught, NativeRunner(tiny_bundle / FORM):
        pass
    assert caught.value.hint
    (form,) = (form for form in candidates(Bundle.open(tiny_bundle), "native", "auto", None))
    assert says in (form.reason or "")
    with load(tiny_bundle, device="cpu") as classifier:
        assert (classifier.precision, classifier.backend) == ("int8", "openvino")


@needs_kernels
def test_without_onnx(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DependencyError, match="onnx") as caught, NativeRunner(tiny_bundle / FORM):
        pass
    assert caught.value.hint == "pip install 'vitdeploy[native]'"


@needs_kernels
def test_the_benchmark_has_its_row(tiny_bundle: Path, tiny_images: Path) -> None:
    report = bench(
        tiny_bundle,
        load_dataset(str(tiny_images), split="test"),
        precisions=["int8"],
        backends=["native", "onnxruntime"],
        rounds=10,
        threads=2,
    )
    rows = {row.key: row for row in report.rows}
    assert rows["int8/native"].status == "ok", rows["int8/native"].reason
    assert rows["int8/native"].memory is not None and rows["int8/native"].latency is not None
    assert rows["int8/native"].phases is not None


def test_the_reader_gives_the_constants_of_the_graph(tiny_bundle: Path) -> None:
    form = read_plain_vit(onnx.load(tiny_bundle / FORM))
    assert (form.heads, form.image, len(form.layers)) == (4, (3, 32, 32), 3)
    assert form.positions.shape == (17, 48)
    assert form.layers[0].fc1.weight.shape == (48, 96)
    assert all(layer.query.scale == layer.key.scale == layer.value.scale for layer in form.layers)


@needs_kernels
def test_a_graph_from_pixel_values_on(tiny_bundle: Path, tmp_path: Path) -> None:
    ir.save(cut(ir.load(tiny_bundle / FORM), "pixel_values", "logits"), tmp_path / FORM)
    with NativeRunner(tiny_bundle / FORM, 2) as whole, NativeRunner(tmp_path / FORM, 2) as part:
        assert (part.inputs[0].name, part.inputs[0].shape) == ("pixel_values", ("batch", 3, 32, 32))
        values = whole.preprocess(images(3, 40, 50))
        assert part.preprocess(values) is values
        found = part.infer({"pixel_values": values})["logits"]
        np.testing.assert_array_equal(found, whole.infer({"image": images(3, 40, 50)})["logits"])


@needs_kernels
def test_a_large_image_is_preprocessed_by_all_threads(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, used = images(1, 1000, 1100), []
    ran = OnnxRuntimeRunner.infer_checked

    def noted(self: OnnxRuntimeRunner, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        used.append(self._threads)
        return ran(self, feeds)

    with OnnxRuntimeRunner(tiny_bundle / FORM, 1) as theirs, NativeRunner(tiny_bundle / FORM, 2) as ours:
        expected = theirs.infer({"image": large})["logits"]
        monkeypatch.setattr(OnnxRuntimeRunner, "infer_checked", noted)
        found = ours.infer({"image": large})["logits"]
        ours.infer({"image": images(1)})
    assert used == [2, 1]
    np.testing.assert_allclose(found, expected, atol=0.05, rtol=0)


def test_a_session_whose_threads_do_not_spin(tiny_bundle: Path) -> None:
    graph = (tiny_bundle / "model.onnx").read_bytes()
    for spinning, entry in ((True, ""), (False, "1")):
        with OnnxRuntimeRunner("no/such/file", 1, graph=graph, spinning=spinning) as runner:
            options = runner._session.get_session_options()
            try:
                found = options.get_session_config_entry("session.force_spinning_stop")
            except RuntimeError:  # it was not set
                found = ""
            assert found == entry
            assert runner.infer({"image": images(1)})["logits"].shape == (1, 10)
