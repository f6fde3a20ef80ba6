"""A bundle's self-test: it passes where a form is sound, and catches each kind of wrong answer that was met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.tools import simulated_gpu
from tests.tools.backends import needs_torch
from tests.tools.command_line import invoke
from tests.tools.simulated_cuda import SimulatedCuda
from tests.tools.tiny import copy_frozen_bundle, write_checkpoint
from vitdeploy import Bundle, load, verify
from vitdeploy.backends import registry
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.backends.registry import RunnerSpec
from vitdeploy.backends.tensorrt import runner as tensorrt_runner
from vitdeploy.bundle.selftest import Selftest
from vitdeploy.compiler.build import build
from vitdeploy.compiler.selftest import bounds_of, draw, write
from vitdeploy.core.errors import InputError, ModelError
from vitdeploy.core.specs import ShapeRange
from vitdeploy.runtime import selection
from vitdeploy.runtime.verification import answers

pytestmark = pytest.mark.usefixtures("exact_products")

Change = Callable[[onnx.ModelProto], None]


def replace_form(bundle: Path, name: str, change: Change) -> None:
    """Put another graph in the place of a form, its hash in the manifest: what no hash can tell."""
    opened = Bundle.open(bundle)
    old = next(artifact for artifact in opened.manifest.artifacts if artifact.path == name)
    model = onnx.load(bundle / name)
    change(model)
    with opened.edit() as editor:
        onnx.save(model, editor.path_for(name))
        editor.add(name, kind="onnx", precision=old.precision, target=old.target, built_from=old.built_from)


def answered_by(monkeypatch: pytest.MonkeyPatch, backend: str, change: Change) -> None:
    """A backend that computes another graph than the one it is given, as one with a bug does."""

    def wrong(spec: RunnerSpec) -> OnnxRuntimeRunner:
        model = onnx.load(spec.path)
        change(model)
        made = OnnxRuntimeRunner(spec.path, threads=1, graph=model.SerializeToString())
        made.backend = backend
        return made

    monkeypatch.setitem(registry._specs, backend, replace(registry.find(backend), open=wrong))


def forget_zero_points(model: onnx.ModelProto) -> None:
    """Products of 8-bit integers as if the left one's zero point were 0."""
    for node in model.graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            node.input[4] = ""


def swap_channels(model: onnx.ModelProto) -> None:
    """The graph reads BGR where it was made for RGB."""
    last = np.array([2, 1, 0], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(last, "bgr"))

    def read_it(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["swapped" if name == "image" else name for name in node.input]
            for attribute in node.attribute:
                read_it(attribute.g)

    read_it(model.graph)
    model.graph.node.insert(0, onnx.helper.make_node("Gather", ["image", "bgr"], ["swapped"], axis=3))


def flip_bit(bit: int) -> Change:
    """One bit of one weight of the first product of float weights."""

    def flip(model: onnx.ModelProto) -> None:
        products = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
        tensor = next(
            t for t in model.graph.initializer if t.name in products and t.data_type == 1 and len(t.dims) == 2
        )
        weights = numpy_helper.to_array(tensor).copy()
        weights.view(np.uint32)[3, 5] ^= 1 << bit
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))

    return flip


def statuses(bundle: Path, **wish: Any) -> dict[str, str]:
    rows = verify(bundle, device="cpu", threads=1, **wish).rows
    return {f"{row.form}/{row.backend}": row.status for row in rows}


def test_every_form_passes_on_every_backend(tiny_bundle: Path) -> None:
    certificate = verify(tiny_bundle, device="cpu")
    assert certificate.passed and certificate.reference.startswith(("PyTorch", "ONNX Runtime"))
    ran = {(row.form, row.backend) for row in certificate.rows if row.status == "passed"}
    assert ran >= {(form, backend) for form in ("fp32", "fp16", "int8") for backend in ("onnxruntime", "openvino")}
    for row in certificate.rows:
        if row.status == "passed":
            assert row.images == 32 and row.same_class >= 28 and row.largest_difference is not None
            assert row.bound is not None and row.largest_difference <= row.bound
            assert row.versions and row.versions["python"]


@needs_torch
def test_a_new_bundle_holds_the_answers_of_pytorch(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    selftest = Selftest.of(bundle)
    assert selftest.reference.startswith("PyTorch") and len(selftest.images) == 32
    assert {artifact.path for artifact in bundle.select(kind="onnx")} == set(selftest.bounds)
    assert len({image.shape for image in selftest.images}) == 4
    assert max(image.size for image in selftest.images) < 10_000
    with OnnxRuntimeRunner(tiny_bundle / "model.onnx") as runner:
        found = answers(runner, selftest)
    assert found is not None and found.differences.max() < 1e-4 * selftest.spread(None)
    assert (selftest.bounds["model.int8.onnx"] > selftest.bounds["model.onnx"]).all()


def test_a_wrong_product_of_integers_is_caught(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered_by(monkeypatch, "openvino", forget_zero_points)
    found = statuses(tiny_bundle)
    assert found["int8/openvino"] == "failed" and found["int8/onnxruntime"] == "passed"
    assert found["fp32/openvino"] == found["fp16/openvino"] == "passed"


def test_old_openvino_is_caught(tiny_bundle: Path) -> None:
    place = os.environ.get("VITDEPLOY_OLD_OPENVINO")
    if not place:
        pytest.skip(
            "VITDEPLOY_OLD_OPENVINO names no folder with an OpenVINO of 2026.2 or before (pip install --target)"
        )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import vitdeploy.backends.openvino.runner as runner; runner._OLDEST = (2025, 1)\n"
        "from vitdeploy import verify\n"
        "import json; print(json.dumps(verify(sys.argv[2], 'openvino').to_json()))"
    )
    done = subprocess.run([sys.executable, "-c", code, place, str(tiny_bundle)], capture_output=True, text=True)
    rows = {row["form"]: row for row in json.loads(done.stdout or "{}").get("rows", ())}
    assert rows and rows["fp32"]["status"] == rows["fp16"]["status"] == "passed", done.stderr
    # 2026.2 computes it wrong; those of 2025 refuse to load it
    said = ("skipped", "can't load") if rows["int8"]["versions"]["openvino"] < "2026" else ("failed", "is off by")
    assert rows["int8"]["status"] == said[0] and said[1] in rows["int8"]["reason"], rows["int8"]


@pytest.mark.parametrize("form", ["model.onnx", "model.fp16.onnx", "model.int8-cpu.onnx"])
def test_swapped_channels_are_caught(tiny_bundle_copy: Path, form: str) -> None:
    before = statuses(tiny_bundle_copy, backend="onnxruntime")
    assert set(before.values()) == {"passed"}
    if form == "model.onnx":  # its hash is what the self-test is of
        with OnnxRuntimeRunner(tiny_bundle_copy / form) as runner:
            selftest = Selftest.of(Bundle.open(tiny_bundle_copy))
            images = tuple(np.ascontiguousarray(image[..., ::-1]) for image in selftest.images)
            found = answers(runner, replace(selftest, images=images))
        assert found is not None and (found.differences > selftest.bounds[form]).sum() > 16
        return
    replace_form(tiny_bundle_copy, form, swap_channels)
    precision = "fp16" if "fp16" in form else "int8"
    after = statuses(tiny_bundle_copy, backend="onnxruntime")
    assert after == {**before, f"{precision}/onnxruntime": "failed"}


def test_a_flipped_bit_is_caught_if_it_is_above_the_bound(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered_by(monkeypatch, "onnxruntime", flip_bit(0))  # the last bit of a weight
    assert statuses(tiny_bundle, backend="onnxruntime", precision="fp32") == {"fp32/onnxruntime": "passed"}
    monkeypatch.undo()
    answered_by(monkeypatch, "onnxruntime", flip_bit(30))  # the exponent's first
    assert statuses(tiny_bundle, backend="onnxruntime", precision="fp32") == {"fp32/onnxruntime": "failed"}


@needs_torch
def test_a_form_of_another_model_is_caught(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    from vitdeploy.compiler.export import export

    other = export(write_checkpoint(tmp_path / "checkpoint", seed=1), tmp_path / "other")

    def exchange(model: onnx.ModelProto) -> None:
        model.CopyFrom(onnx.load(other.path / "model.onnx"))

    replace_form(tiny_bundle_copy, "model.fp16.onnx", exchange)
    assert statuses(tiny_bundle_copy, backend="onnxruntime", precision="fp16") == {"fp16/onnxruntime": "failed"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated machine with TensorRT."""
    cuda = SimulatedCuda()
    modules = {"tensorrt": simulated_gpu.SimulatedTensorRT(cuda), "cuda.bindings.runtime": cuda}
    monkeypatch.setattr(tensorrt_runner, "require", lambda module, extra: modules[module])
    spec = replace(registry.find("tensorrt"), obstacle=lambda: None)
    monkeypatch.setitem(registry._specs, "tensorrt", spec)
    monkeypatch.setattr(registry.machine, "has_module", lambda name: True)
    for module in (tensorrt_runner, selection):
        monkeypatch.setattr(module, "gpus", lambda: (simulated_gpu.GPU,))


def engine_bundle(path: Path, wrong: float) -> Bundle:
    """A bundle of a simulated engine, and the self-test of a model that is off by `wrong` from the engine's."""
    bundle = Bundle.open(simulated_gpu.write_engine_bundle(path).parents[1])
    images = draw()
    logits = np.concatenate([simulated_gpu.model(image[np.newaxis], 4) for image in images]).astype(np.float32)
    selftest = Selftest(tuple(images), {None: logits + np.float32(wrong)}, {}, "NumPy")
    selftest = selftest.with_bounds("model.fp16.onnx", bounds_of(selftest))
    with bundle.edit() as editor:
        write(editor, selftest, next(iter(bundle.manifest.artifacts)))
    return bundle.reopen()


@pytest.mark.usefixtures("gpu")
def test_an_engine_of_another_model_is_caught(tmp_path: Path) -> None:
    (row,) = verify(engine_bundle(tmp_path / "own", 0.0), "tensorrt").rows
    assert (row.status, row.images, row.backend, row.device) == ("passed", 32, "tensorrt", "cuda"), row
    (row,) = verify(engine_bundle(tmp_path / "other", 1.0), "tensorrt").rows
    assert row.status == "failed" and row.largest_difference == pytest.approx(1.0, abs=1e-3)
    with load(engine_bundle(tmp_path / "again", 0.0), "tensorrt", verify=True) as classifier:
        assert classifier.backend == "tensorrt"
    with pytest.raises(ModelError, match="fails the self-test on TensorRT"):
        load(engine_bundle(tmp_path / "wrong", 1.0), "tensorrt", verify=True)


def test_load_goes_on_to_the_next_form(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered_by(monkeypatch, "openvino", forget_zero_points)
    with load(tiny_bundle, precision="int8", device="cpu", threads=1) as classifier:
        passed = {candidate["backend"] for candidate in classifier.describe()["passed_over"]}
        if classifier.backend != "native":
            assert classifier.backend == "openvino" and "openvino" not in passed
    with load(tiny_bundle, precision="int8", device="cpu", threads=1, verify=True) as classifier:
        assert classifier.backend != "openvino"
    with pytest.raises(ModelError, match="fails the self-test on OpenVINO") as caught:
        load(tiny_bundle, "openvino", "int8", verify=True)
    assert "vitdeploy verify" in str(caught.value.hint)
    with pytest.raises(InputError, match="verify is 'always'"):
        load(tiny_bundle, verify="always")  # type: ignore[arg-type]


def test_once_remembers_what_passed_here(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "vitdeploy"))
    asked = []
    real = answers
    monkeypatch.setattr(
        "vitdeploy.runtime.verification.answers", lambda *given: asked.append(given[0].backend) or real(*given)
    )
    for _ in range(2):
        load(tiny_bundle, "onnxruntime", "fp32", verify="once").close()
    assert asked == ["onnxruntime"]
    load(tiny_bundle, "openvino", "fp32", verify="once").close()  # another backend
    load(tiny_bundle, "onnxruntime", "fp32", verify=True).close()
    assert asked == ["onnxruntime", "openvino", "onnxruntime"]
    monkeypatch.setattr("vitdeploy.runtime.verification.versions", lambda names: {"onnxruntime": "99"})
    load(tiny_bundle, "onnxruntime", "fp32", verify="once").close()  # another version
    assert len(asked) == 4
    memory = tmp_path / "vitdeploy" / "verified.json"
    assert len(json.loads(memory.read_text())) == 3
    memory.write_text("{")
    load(tiny_bundle, "onnxruntime", "fp32", verify="once").close()  # damaged: asked again, and kept anew
    assert len(asked) == 5 and len(json.loads(memory.read_text())) == 1


def test_what_fails_is_not_remembered(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "vitdeploy"))
    answered_by(monkeypatch, "onnxruntime", flip_bit(30))
    for _ in range(2):
        with pytest.raises(ModelError, match="self-test"):
            load(tiny_bundle, "onnxruntime", "fp32", verify="once")
    assert not (tmp_path / "vitdeploy").exists()


def test_the_command_prints_a_certificate_and_fails_where_a_form_does(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = invoke("verify", tiny_bundle, "--backend", "onnxruntime")
    assert done.exit_code == 0, done.stderr
    assert "32 of 32" in done.stdout and "passed" in done.stdout and "Machine" in done.stdout
    answered_by(monkeypatch, "onnxruntime", forget_zero_points)
    done = invoke("verify", tiny_bundle, "--backend", "onnxruntime", "--json")
    assert done.exit_code == 1 and "fails its self-test: int8 on onnxruntime" in done.stderr
    told = json.loads(done.stdout)
    assert not told["passed"] and {row["status"] for row in told["rows"]} == {"passed", "failed"}
    assert told["selftest_sha256"] == Bundle.open(tiny_bundle).select(kind="selftest")[0].sha256
    done = invoke("verify", tiny_bundle, "--device", "cuda")
    assert done.exit_code == 1 and ("no form" in done.stderr or "could be run here" in done.stderr)


def test_an_old_bundle_has_none_until_it_is_added(tmp_path: Path) -> None:
    bundle = copy_frozen_bundle(tmp_path / "bundle")
    done = invoke("verify", bundle)
    assert done.exit_code == 1 and "has no selftest.npz" in done.stderr
    with pytest.raises(InputError, match=r"has no selftest\.npz") as caught:
        load(bundle, verify="once")
    command = str(caught.value.hint).partition(" adds one")[0].split()
    assert command[0] == "vitdeploy"
    forms = {path.name: path.read_bytes() for path in bundle.glob("*.onnx")}
    assert invoke(*command[1:]).exit_code == 0  # the step that the hint names
    assert {path.name: path.read_bytes() for path in bundle.glob("*.onnx")} == forms
    certificate = verify(bundle, "onnxruntime")
    assert certificate.passed and certificate.reference.startswith("ONNX Runtime")
    assert {row.form for row in certificate.rows if row.status == "passed"} == {"fp32", "fp16", "int8"}
    content = (bundle / "selftest.npz").read_bytes()
    build(bundle, ["fp32"], target="onnx")
    assert (bundle / "selftest.npz").read_bytes() == content


def test_a_selftest_of_another_model_is_refused(tiny_bundle_copy: Path) -> None:
    replace_form(tiny_bundle_copy, "model.onnx", flip_bit(30))
    done = invoke("verify", tiny_bundle_copy)
    assert done.exit_code == 1 and "made for another model.onnx" in done.stderr and "makes it anew" in done.stderr


def test_a_changed_selftest_is_refused(tiny_bundle_copy: Path) -> None:
    build(tiny_bundle_copy, ["fp32"], target="onnx")
    with (tiny_bundle_copy / "selftest.npz").open("ab") as file:
        file.write(b"more")
    done = invoke("verify", tiny_bundle_copy)
    assert done.exit_code == 1 and "not the file that the manifest describes" in done.stderr


@needs_torch
def test_graphs_of_one_size_and_own_images(one_layer_checkpoint: Path, tmp_path: Path) -> None:
    from PIL import Image

    from vitdeploy.compiler.export import export

    for name in ("own", "none"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)).save(tmp_path / "own" / "a.png")
    with pytest.raises(InputError, match="holds 0 pictures"):
        export(one_layer_checkpoint, tmp_path / "bundle", selftest_images=tmp_path / "none")
    bundle = export(one_layer_checkpoint, tmp_path / "bundle", input_size=(50, 70), selftest_images=tmp_path / "own")
    selftest = Selftest.of(bundle)
    assert set(selftest.logits) == {(50, 70)} and len(selftest.images) == 33
    assert selftest.images[32].shape == (128, 85, 3)
    (row,) = (row for row in verify(bundle, "onnxruntime").rows)
    assert (row.status, row.images) == ("passed", 33)


def test_an_engine_of_few_sizes_gets_answers_of_its_own(tiny_bundle_copy: Path) -> None:
    from vitdeploy.compiler.selftest import SelftestStage

    bundle = Bundle.open(tiny_bundle_copy)
    if bundle.find(kind="selftest") is None:
        bundle = build(bundle, ["fp32"], target="onnx").bundle
    single = bundle.find(kind="onnx", precision="fp32")
    assert single is not None
    with bundle.edit() as editor:
        stage = SelftestStage(bundle, editor, single)
        stage.cover(ShapeRange(1, 32, 1080), ShapeRange(1, 32, 1920))
        assert set(stage.current.logits) == {None}
        stage.cover(ShapeRange(90, 96, 100), ShapeRange(90, 112, 120))
        stage.write()
    selftest = Selftest.of(bundle.reopen())
    assert set(selftest.logits) == {None, (96, 112)}
    assert np.abs(selftest.logits[96, 112] - selftest.logits[None]).max() > 0.001
