"""Run a TensorRT engine on an NVIDIA GPU: TensorRT 10.3 and later, 11.x and TensorRT-RTX by one code path.

Memory is kept from call to call and grows when a larger input comes: a piece of GPU memory, with pinned memory beside
it, for each input and output. A call copies in, runs and copies out on one stream, and waits for it.
PyTorch takes no part; CUDA is reached through cuda-python (`cuda.bindings.runtime`, in old ones `cuda.cudart`).
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import DependencyError, EngineError, InputError, RunnerClosedError, require
from vitdeploy.machine import Gpu, gpus, problem_with_gpu
from vitdeploy.runtime.base import RunnerBase
from vitdeploy.runtime.cuda import Memory, Stream
from vitdeploy.runtime.engine_fit import check_fit, check_version, described, read_engine
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
    """An engine of a bundle on an NVIDIA GPU. One call runs at a time; callers from several threads wait in turn.

    An engine is compiled code, so only a file that a bundle's manifest describes is loaded, after the TensorRT version
    and the GPU that it was built for, and its hash, were compared with what is here.

    Args:
        path: the engine file, inside its bundle.
        flavour: what built it, "tensorrt" or "tensorrt-rtx".
        device: number of the GPU.
        trusted: load the file though no bundle describes it; only for an engine that you built yourself.

    `device_ms` is what the last call took on the GPU by CUDA events, copies included.

    Example:
        with TensorRTRunner("bundles/vit/engines/tensorrt-int8.engine") as runner:
            logits = runner.infer({"image": pixels})["logits"]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        flavour: str = "tensorrt",
        *,
        device: int = 0,
        trusted: bool = False,
    ) -> None:
        super().__init__()
        if flavour not in _FLAVOURS:
            raise InputError(f"there is no TensorRT flavour {flavour!r}", hint=f"one of {', '.join(_FLAVOURS)}")
        self.backend = flavour
        self._path = Path(path)
        self._number = device
        self._trusted = trusted
        self._lock = threading.Lock()
        self._device: _Device | None = None
        self._engine: _Engine | None = None
        self.device_ms: float | None = None

    def _open(self, stack: ExitStack) -> None:
        if not self._path.is_file():
            raise EngineError(f"there is no engine at {self._path}", hint="vitdeploy build-engine makes it")
        artifact = None if self._trusted else described(self._path)
        gpu = self._gpu()
        module, extra = _FLAVOURS[self.backend]
        trt = require(module, extra=extra)
        if artifact is not None:
            check_version(artifact, self.backend, str(trt.__version__))
            check_fit(artifact, gpu)
        cudart = _cuda_runtime(extra)
        data = read_engine(self._path, artifact)
        stack.callback(self._release)
        self._device = _Device(cudart, self._number)
        self._engine = _Engine(trt, self._path.name, data)
        self._inputs, self._outputs = self._engine.inputs, self._engine.outputs
        self._ranges = self._engine.ranges

    def _gpu(self) -> Gpu:
        found = gpus()
        if not found:
            raise EngineError(
                f"{self._path.name} needs an NVIDIA GPU, and there is none here",
                hint=problem_with_gpu() or "run an ONNX form of the bundle on the CPU: load(..., device='cpu')",
            )
        if not 0 <= self._number < len(found):
            raise InputError(f"there is no GPU {self._number}", hint=f"this machine has 0 to {len(found) - 1}")
        return found[self._number]

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
            results = self._engine.run(feeds, self._device)
            self.device_ms = self._device.stream.marked_ms()
            return results


class _Engine:
    """An engine with its context, and what goes in and out of it."""

    def __init__(self, trt: Any, name: str, data: bytes) -> None:
        self._name = name
        logger, self._heard = _logger(trt)
        self._heard.clear()
        try:
            self._runtime = runtime = trt.Runtime(logger)
            # A version-compatible engine brings its own lean runtime; the file's hash was checked, or it is trusted.
            runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(data)
        except (RuntimeError, TypeError):  # what a null pointer becomes in Python
            engine = None
        if engine is None:
            raise EngineError(
                f"TensorRT {trt.__version__} can't load {name}: {self._reason()}",
                hint="an engine fits the TensorRT version and the GPU it was built for: build it again here with"
                " vitdeploy build-engine",
            )
        context = engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"TensorRT can't prepare {name} to run: {self._reason()}",
                hint="free memory of the GPU, or build the engine for smaller batches and images",
            )
        self._engine, self._context = engine, context
        inputs, outputs, self.ranges = [], [], {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            spec = _spec(engine, name)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                inputs.append(spec)
                self.ranges[name] = _ranges(engine, spec)
            else:
                outputs.append(spec)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def run(self, feeds: dict[str, npt.NDArray[Any]], device: _Device) -> dict[str, npt.NDArray[Any]]:
        """Copy in, run, copy out, wait; the results are the caller's."""
        device.stream.select_device()
        self._heard.clear()
        try:
            return self._run(feeds, device)
        except BaseException:
            device.stream.drain()  # the next call writes to memory that a copy under way may still read
            raise

    def _run(self, feeds: dict[str, npt.NDArray[Any]], device: _Device) -> dict[str, npt.NDArray[Any]]:
        context, stream = self._context, device.stream
        stream.mark()
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
            raise self._failure(feeds)
        for memory, shape, dtype in results.values():
            stream.download(memory, math.prod(shape) * dtype.itemsize)
        stream.mark(end=True)
        stream.synchronize()
        return {name: memory.view(shape, dtype).copy() for name, (memory, shape, dtype) in results.items()}

    def _failure(self, feeds: dict[str, npt.NDArray[Any]]) -> EngineError:
        shapes = ", ".join(str(array.shape) for array in feeds.values())
        return EngineError(
            f"{self._name} failed on an input of shape {shapes}: {self._reason()}",
            hint="try a smaller batch; if it stays, build the engine again or use another form of the bundle",
        )

    def _reason(self) -> str:
        return self._heard[0] if self._heard else "it gives no reason"


class _Device:
    """A stream on a GPU, and memory by name of input or output."""

    def __init__(self, cudart: ModuleType, number: int) -> None:
        self._cudart = cudart
        self.stream = Stream(cudart, number)
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


def _ranges(engine: Any, spec: TensorSpec) -> tuple[ShapeRange, ...]:
    """What each dimension of an input may be in the engine's (first and only) optimization profile."""
    fixed = [size for size in spec.shape if isinstance(size, int)]
    if len(fixed) == len(spec.shape):
        return tuple(ShapeRange(size, size, size) for size in fixed)
    limits = (map(int, shape) for shape in engine.get_tensor_profile_shape(spec.name, 0))
    return tuple(ShapeRange(*sizes) for sizes in zip(*limits, strict=True))


_LOGGERS: dict[str, tuple[Any, deque[str]]] = {}


def _logger(trt: Any) -> tuple[Any, deque[str]]:
    """A logger that prints nothing, and the errors that it heard.

    TensorRT keeps the first one that it is given for the whole process, so there is one, and it is never dropped.
    """
    if trt.__name__ not in _LOGGERS:
        heard: deque[str] = deque(maxlen=20)

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    heard.append(message.strip())

        _LOGGERS[trt.__name__] = Logger(), heard
    return _LOGGERS[trt.__name__]
