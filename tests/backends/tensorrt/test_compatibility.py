"""Which engines are opened: of this machine, this version, this graph, and as the bundle describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.simulated_gpu import GPU, Here, images, logits, model, plan, write_engine_bundle
from vitdeploy import load
from vitdeploy.backends.tensorrt import compatibility, engine, runner
from vitdeploy.backends.tensorrt.runner import TensorRTRunner
from vitdeploy.bundle import Bundle
from vitdeploy.core import machine
from vitdeploy.core.errors import BundleError, EngineError
from vitdeploy.runtime import selection


def test_an_engine_without_weights_takes_them_from_the_bundles_graph(here: Here, tmp_path: Path) -> None:
    path = write_engine_bundle(
        tmp_path / "b", plan(weights="these"), flags={"strip_weights": True}, graph=b"these weights"
    )
    with TensorRTRunner(path) as runner:
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    with TensorRTRunner(path, trusted=True, weights=tmp_path / "b" / "model.fp16.onnx") as runner:
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    (tmp_path / "b" / "model.fp16.onnx").write_bytes(b"those weights")
    with pytest.raises(BundleError, match="SHA-256"), TensorRTRunner(path):
        pass
    other = write_engine_bundle(
        tmp_path / "c", plan(weights="these"), flags={"strip_weights": True}, graph=b"other weights"
    )
    with pytest.raises(
        EngineError, match=r"model\.fp16\.onnx does not give them: weights are of another model; it lacks 2"
    ):
        TensorRTRunner(other).__enter__()
    alone = write_engine_bundle(tmp_path / "d", plan(weights="these"), flags={"strip_weights": True})
    with pytest.raises(EngineError, match="the graph that has them is not in the bundle") as caught:
        TensorRTRunner(alone).__enter__()
    assert "build-engine" in str(caught.value.hint)
    assert here.released()


def test_an_engine_that_can_not_be_read(here: Here, tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="Magic tag") as caught,
        TensorRTRunner(write_engine_bundle(tmp_path / "b", b"x")),
    ):
        pass
    assert "build-engine" in (caught.value.hint or "")
    assert here.released()


def test_an_engine_of_unknown_origin(here: Here, tmp_path: Path) -> None:
    alone = tmp_path / "found.engine"
    alone.write_bytes(plan())
    with pytest.raises(EngineError, match="described by no bundle"), TensorRTRunner(alone):
        pass
    stranger = write_engine_bundle(tmp_path / "b").with_name("stranger.engine")
    stranger.write_bytes(plan())
    with pytest.raises(EngineError, match="described by no bundle"), TensorRTRunner(stranger):
        pass
    with TensorRTRunner(alone, trusted=True) as runner:
        assert logits(runner, images(1)).shape == (1, 4)


def test_an_engine_that_was_exchanged(here: Here, tmp_path: Path) -> None:
    path = write_engine_bundle(tmp_path / "b")
    path.write_bytes(plan(classes=5))
    with pytest.raises(BundleError, match="SHA-256"), TensorRTRunner(path):
        pass
    assert here.released()


def test_an_engine_of_an_older_graph_is_refused(here: Here, tmp_path: Path) -> None:
    path = write_engine_bundle(tmp_path / "b", graph=b"a graph")
    with TensorRTRunner(path) as runner:
        assert logits(runner, images(1)).shape == (1, 4)
    with Bundle.open(tmp_path / "b").edit() as editor:
        editor.path_for("model.fp16.onnx").write_bytes(b"a newer graph")
        editor.add("model.fp16.onnx", kind="onnx", precision="fp16")
    with pytest.raises(EngineError, match="another graph than the model.fp16.onnx") as caught, TensorRTRunner(path):
        pass
    assert "--fp16 --target tensorrt" in str(caught.value.hint)
    with Bundle.open(tmp_path / "b").edit() as editor:  # the CPU's graph is no source of engines
        editor.path_for("model.fp16.onnx").write_bytes(b"a graph")
        editor.add("model.fp16.onnx", kind="onnx", precision="fp16")
        editor.path_for("model.cpu.onnx").write_bytes(b"for the CPU")
        editor.add("model.cpu.onnx", kind="onnx", precision="fp16", target="cpu")
    with TensorRTRunner(path) as runner:
        assert logits(runner, images(1)).shape == (1, 4)


def test_load_reads_an_engine_once_and_stops_at_an_exchanged_one(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (selection, runner, machine):
        monkeypatch.setattr(module, "gpus", lambda: (GPU,))
    monkeypatch.setattr(machine, "has_module", lambda name: True)
    monkeypatch.setattr(machine, "version", lambda name: None)
    path = write_engine_bundle(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(
            "vitdeploy.core.storage.sha256", None
        )  # the bytes that are loaded are hashed, and the file not again
        with load(tmp_path / "b") as classifier:
            assert classifier.backend == "tensorrt"
            np.testing.assert_array_equal(classifier.logits(images(3)), model(images(3), 4))
    path.write_bytes(plan(classes=5))
    with pytest.raises(BundleError, match="SHA-256"):
        load(tmp_path / "b")
    assert here.released()


@pytest.mark.parametrize(
    ("built", "says"),
    [
        ({"tensorrt": {"flavour": "tensorrt", "version": "10.13.3.9"}}, "10.13.3.9.* 11.4.1.6 is installed"),
        ({"tensorrt": {"flavour": "tensorrt", "version": "11.4.0.9"}}, "11.4.0.9.* 11.4.1.6 is installed"),
        ({"tensorrt": {"flavour": "tensorrt-rtx", "version": "1.7.1"}}, "built by tensorrt-rtx"),
        ({"compute_capability": "8.9"}, "compute capability 8.9.* NVIDIA Simulated here has 8.6"),
        ({"compute_capabilities": ["8.0", "8.9", "12.0+"]}, "8.0, 8.9, 12.0"),
        ({"compute_capability": "9.0", "flags": {"version_compatible": True}}, "compute capability 9.0"),
    ],
)
def test_an_engine_of_another_machine(here: Here, tmp_path: Path, built: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught, TensorRTRunner(write_engine_bundle(tmp_path / "b", **built)):
        pass
    assert f"vitdeploy build-engine {tmp_path / 'b'} --fp16 --target tensorrt" in str(caught.value.hint)
    assert here.released()


@pytest.mark.parametrize(
    "built",
    [
        {"tensorrt": {"flavour": "tensorrt", "version": "11.4.1.0"}},  # the fourth number is for TensorRT to judge
        {"tensorrt": {"flavour": "tensorrt", "version": "11.2.0.1"}, "flags": {"version_compatible": True}},
        {"compute_capability": "8.0", "flags": {"hardware_compatible": True}},
        {"compute_capability": None, "compute_capabilities": ["8.0", "8.6"]},
        {"compute_capability": None, "compute_capabilities": ["7.5+"]},
    ],
)
def test_an_engine_that_fits(here: Here, tmp_path: Path, built: dict[str, Any]) -> None:
    with TensorRTRunner(write_engine_bundle(tmp_path / "b", **built)) as runner:
        assert logits(runner, images(1)).shape == (1, 4)


def test_versions_compare_as_numbers(tmp_path: Path) -> None:
    artifact = Bundle.open(write_engine_bundle(tmp_path / "b").parents[1]).manifest.artifacts[0]
    with pytest.raises(EngineError):
        compatibility.check_version(artifact, "tensorrt", "11.40.0")
    compatibility.check_version(artifact, "tensorrt", "11.4.1")


@pytest.mark.skipif(bool(machine.gpus()), reason="there is a GPU here; tests/gpu runs engines on it")
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu(tmp_path: Path, flavour: str) -> None:
    path = write_engine_bundle(tmp_path / "b", tensorrt={"flavour": flavour, "version": "1.7"})
    runner = TensorRTRunner(path, flavour)
    with pytest.raises(EngineError, match="needs an NVIDIA GPU") as caught, runner:
        pass
    assert caught.value.hint
    with pytest.raises(EngineError, match="no NVIDIA GPU"):
        load(path.parents[1])


def test_the_real_tensorrt_with_no_engine_in_the_file(tmp_path: Path) -> None:
    """It gives None, without a GPU as with one: that becomes an error that says why."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    with pytest.raises(EngineError, match=r"can't load some\.engine: \S+") as caught:
        engine.LoadedEngine(trt, "some.engine", b"plan")
    assert "build-engine" in (caught.value.hint or "")
