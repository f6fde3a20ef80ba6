"""A TensorRT engine in memory: what goes in and out of it, in which profiles, and contexts to run it.

An engine without its weights takes them from the graph that it was built from; nothing is compiled for that.
"""

from __future__ import annotations

import math
import re
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.backends.tensorrt.cuda import OutOfMemory
from vitdeploy.core.errors import EngineError, InputError
from vitdeploy.core.specs import ShapeRange, TensorSpec

__all__ = ["LoadedEngine", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]  # {input: its shape in this call}

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
_NO_MEMORY = re.compile("out ?of ?memory|insufficient memory|failed to allocate", re.IGNORECASE)
_REBUILD = (
    "an engine fits the TensorRT version and the GPU it was built for: build it again here with vitdeploy build-engine"
)


class LoadedEngine:
    """A deserialised engine. `profiles` says for each optimization profile what each input may be, `needs_scratch`
    whether contexts have to be lent memory.

    Args:
        trt: the module tensorrt or tensorrt_rtx.
        name: what messages call it.
        data: the engine's bytes, of which the caller knows where they come from: an engine is code.
        weights: the graph to take the weights from, for an engine without them.
        graphs: whether TensorRT-RTX shall run as CUDA graphs, which it captures by itself.
        kernels: what `compiled` gave of TensorRT-RTX in an earlier run: those kernels are not compiled again.

    Raises:
        OutOfMemory: the GPU has no memory for it.
        EngineError: TensorRT can't load it, or its weights do not fit.
    """

    def __init__(
        self,
        trt: Any,
        name: str,
        data: bytes,
        weights: Path | None = None,
        *,
        graphs: bool = True,
        kernels: bytes | None = None,
    ) -> None:
        self._trt, self.name, self._graphs = trt, name, graphs
        logger, self._heard = _logger(trt)
        self._heard.forget()
        try:
            self._runtime = runtime = trt.Runtime(logger)
            # A version-compatible engine brings its own lean runtime; the file's hash was checked, or it is trusted.
            runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(data)
        except (RuntimeError, TypeError):  # what a null pointer becomes in Python
            engine = None
        if engine is None:
            raise self.failure(f"TensorRT {trt.__version__} can't load {name}", "free memory of the GPU", _REBUILD)
        self._engine = engine
        if weights is not None:
            self._refit(logger, weights)
        self._settings: Any = None
        self._kernels: Any = None
        if _is_rtx(trt):
            self._settings, self._kernels = self._rtx_settings(kernels)
        specs = [(self._spec(name), self._is_input(name)) for name in self._names()]
        self.inputs = tuple(spec for spec, is_input in specs if is_input)
        self.outputs = tuple(spec for spec, is_input in specs if not is_input)
        self.profiles = tuple(
            {spec.name: self._ranges(spec, index) for spec in self.inputs}
            for index in range(engine.num_optimization_profiles)
        )
        self.needs_scratch = any(self._scratch_bytes())

    @property
    def captures_itself(self) -> bool:
        """Whether contexts run as CUDA graphs without the caller capturing them: TensorRT-RTX does."""
        return self._graphs and _is_rtx(self._trt)

    @property
    def compiled(self) -> bytes:
        """The kernels that TensorRT-RTX has compiled for this GPU so far; b"" of TensorRT: its engines hold theirs."""
        return b"" if self._kernels is None else bytes(self._kernels.serialize())

    @property
    def ranges(self) -> dict[str, tuple[ShapeRange, ...]]:
        """What each dimension of an input may be in one profile or another; fastest where the first profile is."""
        return {
            spec.name: tuple(_hull([profile[spec.name][axis] for profile in self.profiles]) for axis in range(rank))
            for spec in self.inputs
            for rank in [len(spec.shape)]
        }

    def profile_for(self, shapes: Shapes) -> int | None:
        """The profile that takes the inputs and is tuned closest to them; None if none takes them."""
        fitting = [index for index, profile in enumerate(self.profiles) if _fits(profile, shapes)]
        return min(fitting, key=lambda index: _distance(self.profiles[index], shapes), default=None)

    def context(self, profile: int, stream: int) -> Any:
        """An execution context in a profile, without memory of its own: whoever runs it lends it some.

        Raises:
            OutOfMemory: the GPU has no memory for one.
            EngineError: TensorRT can't make one for another reason.
        """
        self._heard.forget()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy if self._settings is None else self._settings)
        if context is None or not context.set_optimization_profile_async(profile, stream):
            raise self.failure(
                f"TensorRT can't prepare {self.name} to run",
                "free memory of the GPU, or build the engine for smaller batches and images",
            )
        return context

    def layers(self) -> str:
        """TensorRT's own JSON about the engine's layers; `vitdeploy.backends.tensorrt.layers` reads it."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def memory(self) -> dict[str, Any]:
        """Bytes that running takes on the GPU beside inputs, outputs and the engine itself, for each profile."""
        return {"scratch_bytes": self._scratch_bytes(), "aux_streams": int(self._engine.num_aux_streams)}

    def _scratch_bytes(self) -> list[int]:
        return [int(self._engine.get_device_memory_size_for_profile_v2(index)) for index in range(len(self.profiles))]

    def reason(self) -> str:
        """The first error that TensorRT reported since this thread last tried something."""
        return self._heard.reason()

    def failure(self, what: str, free: str, otherwise: str | None = None) -> OutOfMemory | EngineError:
        """The error for what TensorRT did not do, with the reason that it gave. Where that is want of memory the next
        step is `free`, else `otherwise` (None: the same)."""
        reason = self.reason()
        if _NO_MEMORY.search(reason):
            return OutOfMemory(f"{what}: {reason}", hint=free)
        return EngineError(f"{what}: {reason}", hint=otherwise or free)

    def forget_errors(self) -> None:
        """Begin to listen anew, before something is tried."""
        self._heard.forget()

    def output_allocator(self, reserve: Any) -> Any:
        """An allocator for an output whose size only the run itself knows; `reserve(size_bytes)` gives an address."""
        return _allocator(self._trt, reserve)

    def _rtx_settings(self, kernels: bytes | None) -> tuple[Any, Any]:
        """How TensorRT-RTX runs its contexts, and the kernels that they share.

        Eager: the first call of a shape waits until the kernels for it are compiled. Left alone, TensorRT-RTX would run
        slower ones until a thread in the background is done, at a moment that nobody is told of.
        """
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        graphs, kinds = self._trt.CudaGraphStrategy, self._trt.DynamicShapesKernelSpecializationStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if self._graphs else graphs.DISABLED
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        cache = config.create_runtime_cache()
        if kernels is not None:
            cache.deserialize(kernels)  # False: they are of another machine, and it is as if there were none
        return config, cache if config.set_runtime_cache(cache) else None

    def _refit(self, logger: Any, weights: Path) -> None:
        refitter = self._trt.Refitter(self._engine, logger)
        parser = self._trt.OnnxParserRefitter(refitter, logger)
        if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            missing = list(refitter.get_missing_weights())
            lacks = f"; it lacks {len(missing)} weights, the first is {missing[0]}" if missing else ""
            raise EngineError(
                f"{self.name} was built without its weights, and {weights.name} does not give them:"
                f" {self.reason()}{lacks}",
                hint="build the engine again, without --strip-weights if it stays",
            )

    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT)

    def _spec(self, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        axes = [*_AXES, *(f"dim_{axis}" for axis in range(3, 16))]
        sizes = enumerate(self._engine.get_tensor_shape(name))
        shape = tuple(axes[axis] if size < 0 else int(size) for axis, size in sizes)
        return TensorSpec(name, _DTYPES.get(kind, kind.lower()), shape)

    def _ranges(self, spec: TensorSpec, profile: int) -> tuple[ShapeRange, ...]:
        fixed = [size for size in spec.shape if isinstance(size, int)]
        if len(fixed) == len(spec.shape):
            return tuple(ShapeRange(size, size, size) for size in fixed)
        limits = (map(int, shape) for shape in self._engine.get_tensor_profile_shape(spec.name, profile))
        return tuple(ShapeRange(*sizes) for sizes in zip(*limits, strict=True))


def _is_rtx(trt: Any) -> bool:
    return hasattr(trt, "CudaGraphStrategy")


def _fits(profile: dict[str, tuple[ShapeRange, ...]], shapes: Shapes) -> bool:
    return all(
        extent.minimum <= size <= extent.maximum
        for name, shape in shapes.items()
        for size, extent in zip(shape, profile[name], strict=True)
    )


def _distance(profile: dict[str, tuple[ShapeRange, ...]], shapes: Shapes) -> float:
    """How far the inputs are from what a profile is tuned for: the sum of the logarithms of the sizes' ratios."""
    return sum(
        abs(math.log(size / extent.optimum))
        for name, shape in shapes.items()
        for size, extent in zip(shape, profile[name], strict=True)
    )


def _hull(ranges: list[ShapeRange]) -> ShapeRange:
    return ShapeRange(min(r.minimum for r in ranges), ranges[0].optimum, max(r.maximum for r in ranges))


def _allocator(trt: Any, reserve: Any) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.forget()

        def forget(self) -> None:
            """Before a run."""
            self.shape: tuple[int, ...] | None = None
            self.error: InputError | None = None

        def reallocate_output_async(self, _name: str, _memory: int, size: int, _alignment: int, _stream: int) -> Any:
            try:
                return reserve(size)
            except InputError as error:  # it must not fly through TensorRT
                self.error = error
                return 0  # a null pointer

        def reallocate_output(self, _name: str, _memory: int, size: int, _alignment: int) -> Any:  # TensorRT 10 may
            return self.reallocate_output_async(_name, _memory, size, _alignment, 0)

        def notify_shape(self, _name: str, shape: Any) -> None:
            self.shape = tuple(map(int, shape))

    return Allocator()


class _Heard:
    """The last errors that TensorRT reported, by the thread that it reported them on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: deque[tuple[int, str]] = deque(maxlen=40)

    def add(self, message: str) -> None:
        with self._lock:
            self._errors.append((threading.get_ident(), message.strip()))

    def forget(self) -> None:
        """Drop what this thread heard."""
        with self._lock:
            kept = [error for error in self._errors if error[0] != threading.get_ident()]
            self._errors.clear()
            self._errors.extend(kept)

    def reason(self) -> str:
        """The first error on this thread, or on one of TensorRT's own."""
        with self._lock:
            own = [message for thread, message in self._errors if thread == threading.get_ident()]
            return next(iter(own or [message for _, message in self._errors]), "it gives no reason")


_LOGGERS: dict[str, tuple[Any, _Heard]] = {}


def _logger(trt: Any) -> tuple[Any, _Heard]:
    """A logger that prints nothing, and the errors that it heard.

    TensorRT keeps the first one that it is given for the whole process, so there is one, and it is never dropped.
    """
    if trt.__name__ not in _LOGGERS:
        heard = _Heard()

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    heard.add(message)

        _LOGGERS[trt.__name__] = Logger(), heard
    return _LOGGERS[trt.__name__]
