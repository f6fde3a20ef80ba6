"""Run a TensorRT engine on an NVIDIA GPU: TensorRT 10.3 and later, 11.x and TensorRT-RTX by one code path.

Memory is kept from call to call and grows when a larger input comes: a piece of GPU memory, with pinned memory beside
it, for each input and output. A call copies in, runs and copies out on one stream, and waits for it.
PyTorch takes no part; CUDA is reached through cuda-python (`cuda.bindings.runtime`, in old ones `cuda.cudart`).
"""

from __future__ import annotations

import math
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import DependencyError, EngineError, InputError, RunnerClosedError, require
from vitdeploy.machine import gpus
from vitdeploy.runtime.base import RunnerBase
from vitdeploy.runtime.cuda import Memory, Stream, checked
from vitdeploy.specs import ShapeRange, TensorSpec

__all__ = ["TensorRTRunner"]

_FLAVOURS = {"tensorrt": ("tensorrt", "gpu"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}
_DTYPES = {  # by the name of trt.DataType's member
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_AXES = ("batch", "height", "width")


class TensorRTRunner(RunnerBase):
    """A serialized engine on the current GPU. One call runs at a time; callers from several threads wait in turn.

    Args:
        path: the engine file.
        flavour: what built it, "tensorrt" or "tensorrt-rtx".

    Example:
        with TensorRTRunner("bundles/vit/engines/tensorrt-int8.engine") as runner:
            logits = runner.infer({"image": pixels})["logits"]
    """

    def __init__(self, path: str | os.PathLike[str], flavour: str = "tensorrt") -> None:
        super().__init__()
        if flavour not in _FLAVOURS:
            raise InputError(f"there is no TensorRT flavour {flavour!r}", hint=f"one of {', '.join(_FLAVOURS)}")
        self.backend = flavour
        self._path = Path(path)
        self._lock = threading.Lock()
        self._device: _Device | None = None
        self._engine: _Engine | None = None

    def _open(self, stack: ExitStack) -> None:
        if not self._path.is_file():
            raise EngineError(f"there is no engine at {self._path}", hint="vitdeploy build-engine makes it")
        if not gpus():
            raise EngineError(
                f"{self._path.name} needs an NVIDIA GPU, and its driver offers none here",
                hint="check nvidia-smi, or run the ONNX forms on the CPU: device='cpu'",
            )
        module, extra = _FLAVOURS[self.backend]
        trt = require(module, extra=extra)
        cudart = _cuda_runtime(extra)
        stack.callback(self._release)
        self._device = _Device(cudart)
        self._engine = _Engine(trt, self._path)
        self._inputs, self._outputs = self._engine.inputs, self._engine.outputs
        self._ranges = self._engine.ranges

    def _release(self) -> None:
        with self._lock:  # a call of another thread ends first
            self._engine = None
            device, self._device = self._device, None
            if device is not None:
                device.release()

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        with self._lock:
            if self._engine is None or self._device is None:  # closed by another thread since it was checked
                raise RunnerClosedError("this TensorRTRunner is closed", hint="load the bundle again")
            return self._engine.run(feeds, self._device)


class _Engine:
    """An engine with its context, and what goes in and out of it."""

    def __init__(self, trt: Any, path: Path) -> None:
        self._name = path.name
        self._logger = _logger(trt)
        self._runtime = runtime = trt.Runtime(self._logger)
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise EngineError(
                f"TensorRT {trt.__version__} can't load {path.name}: {self._reason()}",
                hint="an engine fits the TensorRT version and the GPU it was built for: build it again here with"
                " vitdeploy build-engine",
            )
        context = engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"TensorRT can't prepare {path.name} to run: {self._reason()}",
                hint="free memory of the GPU, or build the engine for smaller batches and images",
            )
        self._engine, self._context = engine, context
        inputs, outputs, self.ranges = [], [], {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            spec = _spec(engine, name)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                inputs.append(spec)
                bounds = zip(*(tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0)), strict=True)
                self.ranges[name] = tuple(ShapeRange(*map(int, bound)) for bound in bounds)
            else:
                outputs.append(spec)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def run(self, feeds: dict[str, npt.NDArray[Any]], device: _Device) -> dict[str, npt.NDArray[Any]]:
        """Copy in, run, copy out, wait; the results are the caller's."""
        context, stream = self._context, device.stream
        stream.select_device()
        for name, array in feeds.items():
            if not context.set_input_shape(name, array.shape):
                raise self._failure(feeds)
            memory = device.memory(name, array.nbytes)
            memory.view(array.shape, array.dtype)[...] = array
            stream.upload(memory, array.nbytes)
            context.set_tensor_address(name, memory.device)
        results: dict[str, tuple[Memory, tuple[int, ...], np.dtype[Any]]] = {}
        for spec in self.outputs:
            shape = tuple(map(int, context.get_tensor_shape(spec.name)))
            dtype = np.dtype(spec.dtype)
            memory = device.memory(spec.name, math.prod(shape) * dtype.itemsize)
            context.set_tensor_address(spec.name, memory.device)
            results[spec.name] = memory, shape, dtype
        if not context.execute_async_v3(stream.handle):
            stream.drain()
            raise self._failure(feeds)
        for memory, shape, dtype in results.values():
            stream.download(memory, math.prod(shape) * dtype.itemsize)
        stream.synchronize()
        return {name: memory.view(shape, dtype).copy() for name, (memory, shape, dtype) in results.items()}

    def _failure(self, feeds: dict[str, npt.NDArray[Any]]) -> EngineError:
        shapes = ", ".join(str(array.shape) for array in feeds.values())
        return EngineError(
            f"{self._name} failed on an input of shape {shapes}: {self._reason()}",
            hint="try a smaller batch; if it stays, build the engine again or use another form of the bundle",
        )

    def _reason(self) -> str:
        return self._logger.last or "it gives no reason"


class _Device:
    """A stream on the GPU that is current when it is made, and memory by name of input or output."""

    def __init__(self, cudart: ModuleType) -> None:
        self._cudart = cudart
        self.stream = Stream(cudart, int(checked(cudart, cudart.cudaGetDevice())))
        self._memory: dict[str, Memory] = {}

    def memory(self, name: str, size_bytes: int) -> Memory:
        """The memory of that name, with room for `size_bytes`."""
        memory = self._memory.setdefault(name, Memory(self._cudart))
        memory.reserve(size_bytes)
        return memory

    def release(self) -> None:
        """Give everything back."""
        self.stream.drain()
        while self._memory:
            self._memory.popitem()[1].free()
        self.stream.close()


def _cuda_runtime(extra: str) -> ModuleType:
    """cuda-python's module of the CUDA runtime, by its name of today or its old one."""
    try:
        return require("cuda.bindings.runtime", extra=extra)
    except DependencyError as error:
        try:
            return require("cuda.cudart", extra=extra)
        except DependencyError:
            raise DependencyError(
                f"running an engine needs the package cuda-python: {error.message}", hint="pip install cuda-python"
            ) from error


def _spec(engine: Any, name: str) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    axes = [*_AXES, *(f"dim_{axis}" for axis in range(3, 16))]
    shape = tuple(axes[axis] if size < 0 else int(size) for axis, size in enumerate(engine.get_tensor_shape(name)))
    return TensorSpec(name, _DTYPES.get(kind, kind.lower()), shape)


def _logger(trt: Any) -> Any:
    """A logger that says nothing and keeps TensorRT's last error."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last: str | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message.strip()

    return Logger()
