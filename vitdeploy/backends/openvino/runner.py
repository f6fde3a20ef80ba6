"""Run an ONNX graph with OpenVINO on the CPU."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import isfunction
from math import nan
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt

from vitdeploy.backends.base import RunnerBase, never_free
from vitdeploy.bundle.graphs import GraphFile, load_graph
from vitdeploy.core.admission import Places
from vitdeploy.core.errors import DependencyError, InputError, ModelError, OutOfMemoryError, RunnerClosedError, require
from vitdeploy.core.machine import quota_threads, release
from vitdeploy.core.specs import TensorSpec
from vitdeploy.core.storage import disk_errors

__all__ = ["OpenVinoRunner", "shared_core"]

_DTYPES = {"f16": "float16", "f32": "float32", "f64": "float64", "u8": "uint8", "i8": "int8", "i32": "int32"}
_DTYPES |= {"i64": "int64", "boolean": "bool"}
_NO_MEMORY = ("alloc", "memory")
_NO_ALLOCATION = ("bad_alloc", "allocate", "out of memory")
_OLDEST = (2026, 3)
"""2025.2 to 2026.2 refuse `MatMulIntegerToFloat`, of which INT8 for CPUs is made, or silently compute it wrong."""
_core: Any = None
_core_lock = threading.Lock()
_forked = False


def shared_core() -> Any:
    """The one `openvino.Core` of this process, which is kept until the process ends.

    Each Core of OpenVINO 2026.4 gives its thread a stack for signal handlers, on processors with AVX-512, and on its
    end puts back the one it found. When a second Core ends after the first, that is a stack that the first has freed,
    and the next signal that Python handles (Ctrl-C, a child's end) kills the process.

    Raises:
        DependencyError: OpenVINO is not installed, or so old that its answers would be wrong.
        RunnerClosedError: it was used before this process was forked.
    """
    global _core
    if _forked:  # also what is loaded anew would wait for threads that are in the parent alone
        raise RunnerClosedError(
            "OpenVINO was used before this process was forked, and would hang in it",
            hint='start worker processes by spawn or forkserver (multiprocessing.get_context("spawn")), or load only'
            " after the fork",
        )
    openvino = require("openvino", extra="cpu")
    found = release(openvino.__version__)[:2]
    if found and found < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise DependencyError(
            f"OpenVINO {'.'.join(map(str, found))} gives wrong answers for INT8, {oldest} is the first that does not",
            hint=f"pip install --upgrade 'openvino>={oldest}'",
        )
    with _core_lock:
        if _core is None:
            _core = openvino.Core()
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_after_fork)
        return _core


def _after_fork() -> None:
    """In a forked process: the Core is never freed, which would wait for threads that are not there."""
    global _forked
    _forked = True
    never_free(_core)


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
        hashes: of the file and of those with its weights, as a bundle's manifest has them; None: it is trusted.

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
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if performance not in ("latency", "throughput"):
            raise InputError(f"performance is {performance!r}", hint="use latency or throughput")
        if inference_precision not in ("f32", "bf16", "f16"):
            raise InputError(f"inference_precision is {inference_precision!r}", hint="use f32, bf16 or f16")
        self._path = Path(path)
        self._hashes = hashes
        self._threads = threads
        self._performance = performance
        self._inference_precision = inference_precision
        self._lock = threading.Lock()
        self._loaded = False
        self._graph: _Graph | None = None  # None while loaded: to be compiled again
        self._quick = True  # see `_Request`
        self._file = (0, 0, 0)
        self._turns = Places(1, refuse=False)  # in turn: a call that repeats itself must not keep others out
        self._names: list[str] = []

    def _open(self, stack: ExitStack) -> None:
        require("openvino", extra="cpu")
        if not self._path.is_file():
            raise ModelError(f"there is no ONNX file at {self._path}", hint="check the path")
        self._file = self._identity()
        stack.callback(self._release)
        compiled, self._inputs, self._outputs = self._compile()
        self._names = [spec.name for spec in self._outputs]
        self._graph, self._loaded = _Graph(compiled, self._outputs), True
        # So many calls run at a time: more would not be faster, and each takes memory of its own.
        self._turns = Places(max(1, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))), refuse=False)

    def _compile(self) -> tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The compiled graph, its inputs and its outputs."""
        import openvino

        options: dict[str, Any] = {
            "PERFORMANCE_HINT": self._performance.upper(),
            "INFERENCE_PRECISION_HINT": self._inference_precision,
        }
        threads = self._threads or quota_threads()
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            core = shared_core()

            def compiled(file: GraphFile) -> tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
                with _with_weights(file) as source:
                    model = core.read_model(source)
                    inputs, outputs = tuple(map(_spec, model.inputs)), tuple(map(_spec, model.outputs))
                    _keep_branch_results(model)
                    return core.compile_model(model, "CPU", options), inputs, outputs

            return load_graph(self._path, self._hashes, compiled)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_ALLOCATION):
                raise OutOfMemoryError(
                    f"not enough memory to load {self._path}", hint="close other programs, or take a smaller form"
                ) from error
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
            self._graph = None

    def infer_checked(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`infer` for feeds that fit."""
        turns = self._turns
        place = turns.take(None)
        graph = self._graph
        try:
            # No array may be written to by OpenVINO; it takes none that is not writeable.
            arrays = [array if array.flags.writeable else array.copy() for array in feeds.values()]
            graph = graph or self._compiled_again()
            values = graph.infer(arrays, quick=self._quick)
            if values is None:
                self._drop(graph)  # OpenVINO 2026.4 may crash the process when it is run once more
                graph = None  # frees it before the next one needs memory
                graph = self._compiled_again()
                values = graph.infer(arrays, quick=False)
                assert values is not None
                self._quick = not any(map(_is_marked, values))  # else NaN is what this graph gives
            return dict(zip(self._names, values, strict=True))
        except (RuntimeError, MemoryError) as error:
            shapes = ", ".join(str(array.shape) for array in feeds.values())
            if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY):
                self._drop(graph)  # OpenVINO 2026.4 keeps asking for what it did not get, whatever the next input
                raise OutOfMemoryError(
                    f"not enough memory for an input of shape {shapes}", hint="use a smaller batch or image"
                ) from error
            raise ModelError(
                f"OpenVINO failed on an input of shape {shapes}: {_reason(error)}",
                hint="try another backend; if it works there, report this one",
            ) from error
        finally:
            turns.give(place)

    def _drop(self, graph: _Graph | None) -> None:
        """Let nobody use that graph any more: the next call compiles it anew."""
        with self._lock:
            if self._graph is graph:
                self._graph = None

    def _compiled_again(self) -> _Graph:
        """The graph, after memory ran out."""
        with self._lock:
            if not self._loaded:  # closed by another thread since it was checked
                raise self._closed()
            if self._graph is None:
                if not self._path.is_file() or self._identity() != self._file:
                    raise ModelError(
                        f"{self._path} has changed since it was loaded; memory ran out, and it has to be read again",
                        hint="load the bundle again",
                    )
                try:
                    compiled, _, _ = self._compile()
                except ModelError as error:  # the file is the one that was loaded
                    raise OutOfMemoryError(
                        f"not enough memory to load {self._path} again, after it ran out",
                        hint="free memory, or use smaller batches or images",
                    ) from error
                self._graph = _Graph(compiled, self._outputs)
            return self._graph


class _Graph:
    """A compiled graph and the infer requests that no call uses. It needs no lock."""

    def __init__(self, compiled: Any, outputs: tuple[TensorSpec, ...]) -> None:
        self._compiled = compiled
        self._outputs = outputs
        self._idle: deque[_Request] = deque()

    def infer(self, arrays: list[npt.NDArray[Any]], *, quick: bool) -> list[npt.NDArray[Any]] | None:
        """See `_Request.infer`; after None, or an error, this graph is of no use any more."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = _Request(self._compiled.create_infer_request(), self._outputs)
        values = request.infer(arrays, quick=quick)
        if values is not None:
            self._idle.append(request)
        return values


class _Request:
    """An infer request of OpenVINO.

    It has two ways to run. `start_async` hands the work to a thread of OpenVINO's and tells of errors. `infer` saves
    the way there and back, 0.2 to 0.3 ms, but when memory runs out it returns as if all were well (2026.4), and the
    outputs hold what they held before. So they are made to hold NaN before, and where one still does, nothing was
    computed. It is only taken for the shapes of the call before, since the outputs' memory is another one for others.
    """

    def __init__(self, request: Any, outputs: tuple[TensorSpec, ...]) -> None:
        from openvino import Tensor

        self._request = request
        self._tensor = Tensor
        self._infer = _own_infer(type(request))
        self._count = len(outputs)
        self._can_hold_nan = all(spec.dtype.startswith("float") for spec in outputs)
        self._shapes: list[tuple[int, ...]] | None = None  # of the last call's arrays
        self._made: list[npt.NDArray[Any]] = []  # the outputs' memory, where it lay at that call

    def infer(self, arrays: list[npt.NDArray[Any]], *, quick: bool) -> list[npt.NDArray[Any]] | None:
        """The outputs, copied; the arrays are read where they lie. None: nothing was computed, which `quick` allows."""
        request = self._request
        # A tensor does not keep its array: `arrays` does until the end.
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, self._tensor(array, shared_memory=True))
        shapes = [array.shape for array in arrays]
        if quick and shapes == self._shapes:
            self._infer(request, {}, True, False)
            values = self._taken()
            return None if any(map(_is_marked, values)) else values
        request.start_async()
        request.wait()
        self._shapes = shapes if self._can_hold_nan else None
        self._made = [request.get_output_tensor(index).data for index in range(self._count)]
        return self._taken()

    def _taken(self) -> list[npt.NDArray[Any]]:
        """Copies of the outputs, which are marked."""
        values = [data.copy() for data in self._made]
        if self._can_hold_nan:
            for data in self._made:
                data[(0,) * data.ndim] = nan
        return values


def _own_infer(kind: type) -> Callable[..., Any]:
    """`InferRequest.infer` beneath the layers of Python that prepare inputs, which are set already: 0.1 ms less.

    It takes inputs, whether its results may be views of the outputs, and whether to decode strings.
    """
    own: Callable[..., Any] = next(
        vars(part)["infer"] for part in kind.__mro__ if not isfunction(vars(part).get("infer", isfunction))
    )
    return own


def _is_marked(value: npt.NDArray[Any]) -> bool:
    first = value.item(0)
    return bool(first != first)


@contextmanager
def _with_weights(file: GraphFile) -> Iterator[str | bytes]:
    """What OpenVINO reads: weights outside the graph it takes from files alone, so they are copied to a folder that
    nobody else may write to."""
    if not file.weights:
        yield file.source
        return
    with TemporaryDirectory(prefix="vitdeploy-") as folder, disk_errors(folder):
        assert isinstance(file.source, bytes)
        graph = Path(folder, f"{token_hex(8)}.onnx")  # a name that no weights have
        for place, content in {
            graph: file.source,
            **{Path(folder, name): c for name, c in file.weights.items()},
        }.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        yield str(graph)


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
