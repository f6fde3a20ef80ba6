"""The simulated GPU against the real modules: every name that the runner uses is there, and is called as it asks."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from tests.tools import simulated_gpu
from tests.tools.signatures import of_module, of_stub
from tests.tools.simulated_cuda import SimulatedCuda
from tests.tools.simulated_gpu import (
    DataType,
    ExecutionContextAllocationStrategy,
    LayerInformationFormat,
    TensorIOMode,
)
from vitdeploy.backends.tensorrt import runner
from vitdeploy.backends.tensorrt.cuda import on_device
from vitdeploy.core.errors import DependencyError, EngineError

SIMULATED = {
    simulated_gpu.RuntimeCache: "IRuntimeCache",
    simulated_gpu.RuntimeConfig: "IRuntimeConfig",
    simulated_gpu.Runtime: "Runtime",
    simulated_gpu.Engine: "ICudaEngine",
    simulated_gpu.Context: "IExecutionContext",
    simulated_gpu.Refitter: "Refitter",
    simulated_gpu.ParserRefitter: "OnnxParserRefitter",
    simulated_gpu.Inspector: "EngineInspector",
}


def used_names(source: str, receivers: dict[str, str]) -> dict[str, set[str]]:
    """The attributes that code takes of some variables: {receiver's role: names}."""
    found: dict[str, set[str]] = {role: set() for role in receivers.values()}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            holder = node.value
            name = getattr(holder, "id", None) or getattr(holder, "attr", None)
            if name in receivers:
                found[receivers[name]].add(node.attr)
    return found


def source(name: str) -> str:
    return Path(runner.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")


def missing(used: dict[str, set[str]], real: dict[str, Any]) -> dict[str, set[str]]:
    return {role: {n for n in names if not hasattr(real[role], n)} for role, names in used.items() if names}


def test_the_real_cuda_python_has_every_name() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed: no names to compare with")
    used = used_names(
        source("cuda"), {"_cuda": "cuda", "cuda": "cuda", "cudaMemcpyKind": "kind", "cudaStreamCaptureMode": "mode"}
    )
    used["cuda"] -= {"bindings"}
    assert len(used["cuda"]) >= 20
    assert not any(
        missing(used, {"cuda": cuda, "kind": cuda.cudaMemcpyKind, "mode": cuda.cudaStreamCaptureMode}).values()
    )
    assert int(cuda.cudaError_t.cudaErrorMemoryAllocation) == 2
    stream = cuda.cudaStream_t(1234)
    assert importlib.import_module("vitdeploy.backends.tensorrt.cuda")._address(stream) == 1234


def test_the_simulation_has_no_name_that_the_real_cuda_lacks() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed: no names to compare with")
    for name in vars(SimulatedCuda):
        assert not name.startswith("cuda") or hasattr(cuda, name)


@pytest.mark.parametrize("release", ["10_3", "10_13", "11_4", "rtx"])
def test_the_simulation_is_called_as_the_real_tensorrt(release: str) -> None:
    """Each method is one of the release's class, and takes as many arguments; the runtime's settings are of RTX."""
    if release == "rtx":
        api = of_module(pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed"))
    else:
        api = of_stub(Path(__file__).parents[2] / "stubs" / f"tensorrt_{release}.pyi")
    checked = 0
    for simulated, kind in SIMULATED.items():
        if release != "rtx" and kind in ("IRuntimeCache", "IRuntimeConfig"):
            continue
        for name, method in vars(simulated).items():
            if name.startswith("_") or not isinstance(method, FunctionType):
                continue
            if release != "rtx" and name == "create_runtime_config":
                continue
            count = method.__code__.co_argcount - 1
            assert api[kind][name].takes([None] * count, {}), f"{kind}.{name}"
            checked += 1
    assert checked >= 20
    shared = [DataType, TensorIOMode, ExecutionContextAllocationStrategy, LayerInformationFormat]
    own = [simulated_gpu.CudaGraphStrategy, simulated_gpu.DynamicShapesKernelSpecializationStrategy]
    for enumeration in [*shared, *(own if release == "rtx" else [])]:
        assert set(enumeration.__members__) <= api[enumeration.__name__].keys()


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match="cuda-python") as caught:
        runner._cuda_runtime("gpu")
    assert caught.value.hint == "pip install cuda-python"


def test_a_driver_that_is_too_old_or_not_there_is_said_with_the_next_step() -> None:
    """The real cuda-python, where CUDA finds no driver: it calls that too old."""
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    if int(cuda.cudaGetDevice()[0]) != int(cuda.cudaError_t.cudaErrorInsufficientDriver):
        pytest.skip("there is a driver here that this cuda-python knows")
    with pytest.raises(EngineError, match="cudaErrorInsufficientDriver") as caught, on_device(cuda, 0):
        pass
    assert "vitdeploy doctor" in str(caught.value.hint)
