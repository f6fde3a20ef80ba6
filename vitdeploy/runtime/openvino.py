"""Run an ONNX graph with OpenVINO on the CPU."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import InputError, ModelError, OutOfMemoryError, RunnerClosedError, require
from vitdeploy.runtime.admission import Places
from vitdeploy.runtime.base import RunnerBase
from vitdeploy.specs import TensorSpec

__all__ = ["OpenVinoRunner", "shared_core"]

_DTYPES = {"f16": "float16", "f32": "float32", "f64": "float64", "u8": "uint8", "i8": "int8", "i32": "int32"}
_DTYPES |= {"i64": "int64", "boolean": "bool"}
_NO_MEMORY = ("alloc", "memory")
_cores: dict[int, Any] = {}  # by process: one that was made before a fork is of no use in the child
_cores_lock = threading.Lock()


def shared_core() -> Any:
    """The one `openvino.Core` of this process, which is kept until the process ends.

    Each Core of OpenVINO 2026.4 gives its thread a stack for signal handlers, on processors with AVX-512, and on its
    end puts back the one it found. When a second Core ends after the first, that is a stack that the first has freed,
    and the next signal that Python handles (Ctrl-C, a child's end) kills the process.
    """
    openvino = require("openvino", extra="cpu")
    with _cores_lock:
        process = os.getpid()
        if process not in _cores:
            _cores[process] = openvino.Core()
        return _cores[process]


class OpenVinoRunner(RunnerBase):
    """An ONNX file in OpenVINO, compiled for low latency or for throughput.

    Left alone, OpenVINO computes in bfloat16 on processors that have it, so what is called FP32 would not be.
    Here it is told which precision to use for everything that the graph does not quantise.

    Args:
        path: the file.
        threads: CPU threads of all calls together; None: OpenVINO's choice.
        performance: "latency": one call at a time has all threads. "throughput": OpenVINO shares them among as many
            streams as it finds best, and so many calls run side by side.
        inference_precision: "f32" (exact), "bf16" or "f16" (faster where the processor has it, less exact).

    Example:
        with OpenVinoRunner("bundles/vit/model.int8-cpu.onnx", threads=2) as runner:
            logits = runner.infer({"image": pixels})["logits"]
    """

    backend = "openvino"

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        *,
        performance: str = "latency",
        inference_precision: str = "f32",
    ) -> None:
        super().__init__()
        if performance not in ("latency", "throughput"):
            raise InputError(f"performance is {performance!r}", hint="use latency or throughput")
        if inference_precision not in ("f32", "bf16", "f16"):
            raise InputError(f"inference_precision is {inference_precision!r}", hint="use f32, bf16 or f16")
        self._path = Path(path)
        self._threads = threads
        self._performance = performance
        self._inference_precision = inference_precision
        self._lock = threading.Lock()
        self._loaded = False
        self._compiled: Any = None  # None while loaded: to be compiled again
        self._file = (0, 0, 0)
        self._idle: deque[Any] = deque()  # infer requests that no call uses
        self._turns = Places(1, refuse=False)  # in turn: a call that repeats itself must not keep others out
        self._names: list[str] = []
        self._tensor: Any = None  # openvino's class

    def _open(self, stack: ExitStack) -> None:
        self._tensor = require("openvino", extra="cpu").Tensor
        if not self._path.is_file():
            raise ModelError(f"there is no ONNX file at {self._path}", hint="check the path")
        self._file = self._identity()
        stack.callback(self._release)
        compiled, self._inputs, self._outputs = self._compile()
        self._compiled, self._loaded = compiled, True
        self._names = [spec.name for spec in self._outputs]
        # So many calls run at a time: more would not be faster, and each takes memory of its own.
        self._turns = Places(max(1, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))), refuse=False)

    def _compile(self) -> tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The compiled graph, its inputs and its outputs."""
        import openvino

        options: dict[str, Any] = {
            "PERFORMANCE_HINT": self._performance.upper(),
            "INFERENCE_PRECISION_HINT": self._inference_precision,
        }
        if self._threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._threads
        try:
            core = shared_core()
            model = core.read_model(self._path)
            inputs, outputs = tuple(map(_spec, model.inputs)), tuple(map(_spec, model.outputs))
            _keep_branch_results(model)
            return core.compile_model(model, "CPU", options), inputs, outputs
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO {openvino.__version__} can't load {self._path}: {_reason(error)}",
                hint="the file may be damaged or need a newer openvino; export it again, or upgrade",
            ) from error

    def _identity(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _release(self) -> None:
        with self._lock:
            self._loaded = False
            self._compiled = None
            self._idle.clear()

    def _request(self) -> tuple[Any, Any]:
        """The compiled graph and an infer request that no other call uses."""
        with self._lock:
            if not self._loaded:  # closed by another thread since it was checked
                raise RunnerClosedError("this OpenVinoRunner is closed", hint="load the bundle again")
            if self._compiled is None:
                if not self._path.is_file() or self._identity() != self._file:
                    raise ModelError(
                        f"{self._path} has changed since it was loaded; memory ran out, and it has to be read again",
                        hint="load the bundle again",
                    )
                self._compiled, _, _ = self._compile()
            if self._idle:
                return self._compiled, self._idle.pop()
            return self._compiled, self._compiled.create_infer_request()

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        self._turns.take(None)
        try:
            return self._run_now(feeds)
        finally:
            self._turns.give()

    def _run_now(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        compiled, request = self._request()
        try:
            result = self._infer(request, feeds)
        except OutOfMemoryError:
            # OpenVINO 2026.4 keeps asking for what it did not get, whatever the next input: begin anew then.
            with self._lock:
                if self._compiled is compiled:
                    self._compiled = None
                    self._idle.clear()
            raise
        with self._lock:
            if self._compiled is compiled:
                self._idle.append(request)
        return result

    def _infer(self, request: Any, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        try:
            # `start_async(feeds)` would do the same through many more functions of Python; the feeds have been checked.
            # A tensor does not keep its array, so `arrays` lives until the end. It takes none that is not writeable.
            arrays = [array if array.flags.writeable else array.copy() for array in feeds.values()]
            for index, array in enumerate(arrays):
                request.set_input_tensor(index, self._tensor(array, shared_memory=True))
            # Not `infer`: when memory runs out that one returns as if all were well, with the answer of the last call.
            request.start_async()
            request.wait()
            return {name: np.array(request.get_output_tensor(index).data) for index, name in enumerate(self._names)}
        except (RuntimeError, MemoryError) as error:
            shapes = ", ".join(str(array.shape) for array in feeds.values())
            if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY):
                raise OutOfMemoryError(
                    f"not enough memory for an input of shape {shapes}", hint="use a smaller batch or image"
                ) from error
            raise ModelError(
                f"OpenVINO failed on an input of shape {shapes}: {_reason(error)}",
                hint="try another backend; if it works there, report this one",
            ) from error


def _keep_branch_results(model: Any) -> None:
    """Make what each If gives an output of the model as well; nobody reads these outputs.

    OpenVINO 2026.4 plans memory as if it knew the shape of an If's result beforehand: at the first run of a shape
    later layers overwrite it, and the answer is wrong. The memory of outputs is not reused.
    """
    for operation in model.get_ops():
        if operation.get_type_name() == "If":
            model.add_outputs(operation.outputs())


def _spec(port: Any) -> TensorSpec:
    kind = port.element_type.get_type_name()
    shape = tuple(f"dim_{axis}" if dim.is_dynamic else dim.get_length() for axis, dim in enumerate(port.partial_shape))
    return TensorSpec(port.any_name, _DTYPES.get(kind, kind), shape)


def _reason(error: Exception) -> str:
    """The last line says what went wrong; those before it where in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]
