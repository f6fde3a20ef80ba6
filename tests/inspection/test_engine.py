"""Engines looked into on a simulated GPU: what their graphs asked for against what they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.command_line import invoke
from tests.tools.engine_layers import LAYERS
from tests.tools.simulated_cuda import SimulatedCuda
from tests.tools.simulated_gpu import GPU, SimulatedTensorRT, plan, write_engine_bundle
from vitdeploy.backends.tensorrt import runner
from vitdeploy.inspection import engine

ASKED = {"products": 9, "int8_products": ["q", "k", "v", "fc1", "fc2"], "layers": {"all": 30, "quantize": 5}}
FOUND = {"precision": "int8", **ASKED}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> SimulatedTensorRT:
    """A simulated GPU with TensorRT and cuda-python."""
    cuda = SimulatedCuda()
    trt = SimulatedTensorRT(cuda)
    modules = {"tensorrt": trt, "tensorrt_rtx": trt, "cuda.bindings.runtime": cuda}
    monkeypatch.setattr(runner, "require", lambda module, extra: modules[module])
    monkeypatch.setattr(runner, "gpus", lambda: (GPU,))
    monkeypatch.setattr(engine, "gpus", lambda: (GPU,))
    monkeypatch.setattr(engine, "has_module", lambda name: name == "tensorrt")
    return trt


def data_of(*arguments: Any) -> Any:
    done = invoke("inspect", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["engine"]


def test_layers_precisions_memory_and_the_share_in_int8(here: SimulatedTensorRT, tmp_path: Path) -> None:
    path = write_engine_bundle(tmp_path / "b", plan(layers=LAYERS), **ASKED)
    data = data_of(path)
    assert data["asked"] == FOUND and data["reason"] is None
    assert data["found"]["by_precision"]["int8"] == 2 and len(data["found"]["layers"]) == len(LAYERS)
    assert data["int8"] == {
        "asked": 5,
        "running": 4,
        "elsewhere": [{"node": "fc1", "layer": "fc1_myl0_3", "precision": "fp16"}],
        "unknown": [],
    }
    assert data["memory"]["scratch_bytes"] == [8 * 64 * 64 * 3 // 8 + 16]
    assert not here.cuda.device and not here.cuda.streams  # nothing stays on the GPU
    done = invoke("inspect", path, "--layers")
    text = " ".join(done.stdout.split())
    assert "4 of the 5 products that the graph asks for run in INT8" in text
    assert "fc1 runs in fp16, in fc1_myl0_3" in text
    assert "5 layers do the work of several nodes, the largest of 3" in text
    assert "int8 gemm qkv_myl0_1 <- q, k, v" in text
    assert "qkv_myl0_1" not in invoke("inspect", path).stdout


def test_an_engine_that_tells_names_only(here: SimulatedTensorRT, tmp_path: Path) -> None:
    path = write_engine_bundle(tmp_path / "b", plan(layers=["a", "b + c"]), **ASKED)
    assert data_of(path)["int8"] is None
    assert "tells its layers' names only" in " ".join(invoke("inspect", path).stdout.split())


def test_what_does_not_fit_or_was_changed_is_not_loaded(here: SimulatedTensorRT, tmp_path: Path) -> None:
    other = write_engine_bundle(tmp_path / "b", plan(layers=LAYERS), compute_capability="9.0", **ASKED)
    data = data_of(other)
    assert data["found"] is None and "compute capability 9.0" in data["reason"] and data["asked"] == FOUND
    changed = write_engine_bundle(tmp_path / "c", plan(layers=LAYERS), **ASKED)
    changed.write_bytes(plan(classes=5))
    done = invoke("inspect", changed)
    assert done.exit_code == 1 and "is not loaded" in " ".join(done.stdout.split())
    assert here.contexts == 0


def test_an_engine_of_unknown_origin_is_loaded_with_the_flag_alone(here: SimulatedTensorRT, tmp_path: Path) -> None:
    alone = tmp_path / "found.engine"
    alone.write_bytes(plan(layers=LAYERS))
    done = invoke("inspect", alone)
    assert done.exit_code == 1 and "--trusted" in done.stderr and "runs the code in it" in done.stderr
    data = data_of(alone, "--trusted")
    assert data["asked"] is None and data["int8"] is None and len(data["found"]["layers"]) == len(LAYERS)
    assert invoke("inspect", tmp_path / "found.engine", "--trusted").exit_code == 0


def test_without_a_gpu_the_manifest_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "gpus", lambda: ())
    data = data_of(write_engine_bundle(tmp_path / "b", plan(layers=LAYERS), **ASKED))
    assert data["asked"] == FOUND and data["found"] is None and data["reason"]
