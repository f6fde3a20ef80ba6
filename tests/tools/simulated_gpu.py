"""The parts of TensorRT and cuda-python that the runner uses, on a simulated GPU, for machines that have none.

What it is strict about is what a GPU is strict about: nothing that was started is done before its stream is waited
for, and a stream waits for no other one, the default stream included; each thread has a current device, and work for
another one is refused; memory has to be there and big enough, for contexts and streams as well; scratch memory is
written to; a CUDA graph is bad once its context was touched or its memory is gone, and none comes of a call that waits
in its middle; what is not freed is seen. TensorRT-RTX has its runtime configuration, and compiles once for each shape.
Engines are JSON; the model is the mean colour times a matrix. That the real modules have all these names,
tests/backends/tensorrt checks against them.
"""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Callable
from enum import Enum, IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.core import machine
from vitdeploy.core.specs import PreprocessSpec, TensorSpec

ALIGNMENT = 256  # bytes


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Kind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class SimulatedCuda(ModuleType):
    """cuda.bindings.runtime: every function returns a tuple that starts with a status."""

    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = CaptureMode
    cudaStreamNonBlocking = 1

    def __init__(self, memory_bytes: int = 1 << 24, devices: int = 2) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory_bytes = memory_bytes
        self.devices = devices
        self.current = threading.local()  # `device` of each thread
        self.most_streams: int | None = None  # more than so many find no memory
        self.no_memory_for_launches = False
        self.device_of: dict[int, int] = {}  # of streams, by number, and of events, by id
        self.default: list[Callable[[], None]] = []  # what other libraries started on the default stream
        self.lent: set[int] = set()  # addresses of tensors of other libraries
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}  # what was started and is not done
        self.capturing: dict[int, tuple[int, list[Callable[[], None]]]] = {}  # stream: (thread, work)
        self.invalid: set[int] = set()  # streams whose capture was broken
        self.graphs: list[list[Callable[[], None]]] = []  # executable ones that were not destroyed
        self.captured: list[list[Callable[[], None]]] = []  # graphs that were not destroyed
        self.launches = 0
        self.allocations = 0
        self.events: list[list[float]] = []
        self.lock = threading.RLock()

    @property
    def pending(self) -> list[Callable[[], None]]:
        return [work for queue in self.streams.values() for work in queue]

    def start(self, stream: int, work: Callable[[], None]) -> None:
        """Put work on a stream, or into the graph that is captured there."""
        with self.lock:
            (self.capturing[stream][1] if stream in self.capturing else self.streams[stream]).append(work)

    def lend(self, pixels: npt.NDArray[np.uint8], *, past_alignment: int = 0) -> tuple[int, Any]:
        """A tensor of another library as (address, owner): the default stream has still to write the pixels to it.

        Args:
            past_alignment: how many bytes it lies behind an address such as TensorRT asks for.
        """
        memory = _aligned(pixels.nbytes, past_alignment)
        address = ctypes.addressof(memory)
        self.device[address] = memory
        self.lent.add(address)
        self.default.append(lambda: ctypes.memmove(address, pixels.tobytes(), pixels.nbytes) and None)
        return address, memory

    def take_back(self, address: int) -> None:
        """End the life of a lent tensor."""
        del self.device[address]
        self.lent.remove(address)

    def reads(self, address: int) -> None:
        """A stream is told to read there: what the default stream has to write must be there already."""
        assert address not in self.lent or not self.default, "a lent tensor is read while it is still written"

    def used_bytes(self) -> int:
        return sum(ctypes.sizeof(block) for block in self.device.values())

    def on(self) -> int:
        """The calling thread's device; 0 where it never chose one."""
        return int(getattr(self.current, "device", 0))

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return Status.cudaSuccess, self.on()

    def cudaSetDevice(self, number: int) -> tuple[Any, ...]:
        if not 0 <= number < self.devices:
            return (Status.cudaErrorInvalidValue,)
        self.current.device = number
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        with self.lock:
            if len(self.streams) == self.most_streams:
                return Status.cudaErrorMemoryAllocation, None
            number = 7 + max(self.streams, default=0)
            self.streams[number], self.device_of[number] = [], self.on()
        return Status.cudaSuccess, _stream(number)

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]:
        del self.streams[int(stream)]
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        if int(stream) in self.capturing:
            self.invalid.add(int(stream))
            return (Status.cudaErrorStreamCaptureUnsupported,)
        with self.lock:
            queue = self.streams[int(stream)] if int(stream) else self.default
            while queue:
                queue.pop(0)()
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Any, mode: CaptureMode) -> tuple[Any, ...]:
        assert mode is CaptureMode.cudaStreamCaptureModeThreadLocal  # another one forbids other threads to allocate
        self.capturing[int(stream)] = threading.get_ident(), []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Any) -> tuple[Any, ...]:
        _, work = self.capturing.pop(int(stream))
        if int(stream) in self.invalid:
            self.invalid.remove(int(stream))
            return Status.cudaErrorStreamCaptureInvalidated, None
        self.captured.append(work)
        return Status.cudaSuccess, work

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess,)

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[Any, ...]:
        self.graphs.append(graph)
        return Status.cudaSuccess, graph

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        self.captured = [other for other in self.captured if other is not graph]
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: list[Callable[[], None]], stream: Any) -> tuple[Any, ...]:
        assert any(graph is other for other in self.graphs)
        if self.no_memory_for_launches:
            return (Status.cudaErrorMemoryAllocation,)
        self.launches += 1
        for work in graph:
            self.start(int(stream), work)
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any, ...]:
        self.graphs = [other for other in self.graphs if other is not graph]
        return (Status.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        self.events.append([])
        self.device_of[id(self.events[-1])] = self.on()
        return Status.cudaSuccess, self.events[-1]

    def cudaEventRecord(self, event: list[float], stream: Any) -> tuple[Any, ...]:
        assert int(stream) in self.streams
        assert self.device_of[id(event)] == self.device_of[int(stream)], "an event of one device, a stream of another"
        event.clear()
        self.start(int(stream), lambda: event.append(time.perf_counter()))
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start: list[float], end: list[float]) -> tuple[Any, ...]:
        return Status.cudaSuccess, 1000 * (end[0] - start[0])  # IndexError: the stream is not there yet

    def cudaEventDestroy(self, event: list[float]) -> tuple[Any, ...]:
        self.events = [other for other in self.events if other is not event]
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        for stream, (thread, _) in self.capturing.items():
            if thread == threading.get_ident():
                self.invalid.add(stream)
                return Status.cudaErrorStreamCaptureUnsupported, None
        if self.used_bytes() + size > self.memory_bytes:
            return Status.cudaErrorMemoryAllocation, None
        return self._allocate(self.device, size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate(self.host, size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        with self.lock:
            for stream in self.streams.keys() - self.capturing.keys():
                self.cudaStreamSynchronize(stream)  # as cudaFree does, captures of other threads aside
            del self.device[address]
        return (Status.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        del self.host[address]
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: Any) -> tuple[Any, ...]:
        targets = self.host if kind is Kind.cudaMemcpyDeviceToHost else self.device
        origins = self.host if kind is Kind.cudaMemcpyHostToDevice else self.device
        self.reads(source)

        def work() -> None:
            assert 0 < size <= min(ctypes.sizeof(targets[to]), ctypes.sizeof(origins[source]))
            ctypes.memmove(to, source, size)

        self.start(int(stream), work)
        return (Status.cudaSuccess,)

    def cudaGetErrorString(self, status: Status) -> tuple[Any, ...]:
        return Status.cudaSuccess, status.name.encode()

    def _allocate(self, where: dict[int, Any], size: int) -> tuple[Any, ...]:
        with self.lock:
            block = _aligned(size)
            where[ctypes.addressof(block)] = block
            self.allocations += 1
            return Status.cudaSuccess, ctypes.addressof(block)


def _aligned(size: int, past: int = 0) -> Any:
    """Memory that begins `past` bytes behind an address that ALIGNMENT divides, as cudaMalloc gives it; not zero."""
    room = bytearray(b"\xaa" * (size + ALIGNMENT + past))
    start = -ctypes.addressof(ctypes.c_uint8.from_buffer(room)) % ALIGNMENT + past
    return (ctypes.c_uint8 * size).from_buffer(room, start)


def _stream(number: int) -> Any:
    try:
        from cuda.bindings.runtime import cudaStream_t
    except ImportError:
        return number
    return cudaStream_t(number)


class DataType(Enum):
    FLOAT = 0
    UINT8 = 1


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class LayerInformationFormat(Enum):
    JSON = 1


class ILogger:
    ERROR = 1
    INTERNAL_ERROR = 0

    def log(self, severity: int, message: str) -> None: ...


class IOutputAllocator:
    pass


class SimulatedTensorRT(ModuleType):
    """tensorrt: engines of one input `image` and one output `logits`."""

    DataType, TensorIOMode, ILogger, IOutputAllocator = DataType, TensorIOMode, ILogger, IOutputAllocator
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    LayerInformationFormat = LayerInformationFormat

    def __init__(self, cuda: SimulatedCuda, version: str = "11.4.1.6") -> None:
        super().__init__(f"tensorrt of {id(self)}")  # a name of its own: one logger per module
        self.__version__ = version
        self.cuda = cuda
        self.fail_next: str | None = None
        self.contexts = 0
        self.most_contexts: int | None = None  # more than so many find no memory

        self.compiled = 0  # kernels, one for each shape that was new

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)

    def Refitter(self, engine: Engine, logger: Any) -> Refitter:
        return Refitter(engine, logger)

    def OnnxParserRefitter(self, refitter: Refitter, logger: Any) -> ParserRefitter:
        return ParserRefitter(refitter)


class SimulatedTensorRTRtx(SimulatedTensorRT):
    """tensorrt_rtx."""

    CudaGraphStrategy = CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def __init__(self, cuda: SimulatedCuda, version: str = "1.7.1.116") -> None:
        super().__init__(cuda, version)


class RuntimeCache:
    """The shapes that kernels were compiled for, and the machine that they are of."""

    def __init__(self, trt: SimulatedTensorRT) -> None:
        self.machine = [trt.__version__, trt.cuda.on()]
        self.shapes: list[list[int]] = []

    def deserialize(self, blob: bytes) -> bool:
        try:
            found = json.loads(blob)
        except ValueError:
            return False
        if found["machine"] == self.machine:
            self.shapes = found["shapes"]
        return bool(found["machine"] == self.machine)

    def serialize(self) -> bytes:
        return json.dumps({"machine": self.machine, "shapes": self.shapes}).encode()


class RuntimeConfig:
    def __init__(self, trt: SimulatedTensorRT) -> None:
        self.trt = trt
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.trt)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Refitter:
    """Takes the weights of an engine: any file whose first bytes are the engine's `weights`."""

    def __init__(self, engine: Engine, logger: Any) -> None:
        self.engine, self.logger = engine, logger
        self.found = False

    def refit_cuda_engine(self) -> bool:
        self.engine.has_weights = self.found
        return self.found

    def get_missing_weights(self) -> list[str]:
        return [] if self.found else ["layers.0.weight", "layers.1.weight"]


class ParserRefitter:
    def __init__(self, refitter: Refitter) -> None:
        self.refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        assert isinstance(path, str)
        with open(path, "rb") as file:
            self.refitter.found = file.read().startswith(self.refitter.engine.plan["weights"].encode())
        if not self.refitter.found:
            self.refitter.logger.log(ILogger.ERROR, "weights are of another model")
        return self.refitter.found


class Runtime:
    def __init__(self, trt: SimulatedTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        try:
            return Engine(self, json.loads(data))
        except ValueError:
            self.logger.log(ILogger.ERROR, "Magic tag does not match\n")
            return None


class Inspector:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON
        return json.dumps({"Layers": self.engine.plan.get("layers", []), "Bindings": ["image", "logits"]})


class Engine:
    num_io_tensors = 2
    num_aux_streams = 0

    def __init__(self, runtime: Runtime, plan: dict[str, Any]) -> None:
        self.runtime, self.plan = runtime, plan
        self.has_weights = "weights" not in plan

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan["profiles"])

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self)

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return scratch_bytes(tuple(self.plan["profiles"][profile]["max"]))

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8 if name == "image" else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1, -1, -1, 3] if name == "image" else [-1, self.plan["classes"]]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert name == "image"
        return [self.plan["profiles"][profile][key] for key in ("min", "opt", "max")]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.runtime.trt)

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy | RuntimeConfig) -> Context | None:
        config = strategy if isinstance(strategy, RuntimeConfig) else None
        assert (strategy if config is None else config.strategy) is ExecutionContextAllocationStrategy.USER_MANAGED
        assert (config is not None) == isinstance(self.runtime.trt, SimulatedTensorRTRtx)
        if not self.has_weights:
            return None
        if self.runtime.trt.contexts == self.runtime.trt.most_contexts:
            self.runtime.logger.log(ILogger.ERROR, "CUDA error 2: out of memory")
            return None
        self.runtime.trt.contexts += 1
        return Context(self, config)


class Context:
    def __init__(self, engine: Engine, config: RuntimeConfig | None) -> None:
        self.engine, self.config = engine, config
        self.profile: int | None = None
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.allocator: Any = None
        self.changes = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self.engine.runtime.trt.cuda.streams
        self.changes += 1
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        self.changes += 1
        limits = self.engine.plan["profiles"][self.profile]
        self.shape = shape
        return all(low <= size <= high for low, size, high in zip(limits["min"], shape, limits["max"], strict=True))

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shape is not None
        return 0 if self.engine.plan.get("no_scratch") else scratch_bytes(self.shape)

    def set_device_memory(self, address: int, size: int) -> None:
        assert size > 0, "no memory is no memory to set"
        self.changes += 1
        self.scratch = address, size

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        return (-1 if self.engine.plan.get("data_dependent") else self.shape[0], self.engine.plan["classes"])

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % ALIGNMENT == 0, f"TensorRT asks that {ALIGNMENT} divides an address"
        self.changes += 1
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: IOutputAllocator) -> bool:
        assert name == "logits" and isinstance(allocator, IOutputAllocator) and self.allocator is None
        self.allocator = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt = self.engine.runtime.trt
        cuda = trt.cuda
        assert stream in cuda.streams
        assert cuda.device_of[stream] == cuda.on(), "the thread's device is not the stream's"
        if trt.fail_next is not None:
            self.engine.runtime.logger.log(ILogger.ERROR, trt.fail_next)
            trt.fail_next = None
            return False
        shape, classes, changes = self.shape, self.engine.plan["classes"], self.changes
        assert shape is not None
        if self.allocator is not None:
            address = self.allocator.reallocate_output_async("logits", 0, shape[0] * classes * 4, 256, stream)
            assert isinstance(address, int), "a pointer is a number"
            if address == 0:
                return False
            self.addresses["logits"] = address
            self.allocator.notify_shape("logits", (shape[0], classes))
        cuda.reads(self.addresses["image"])
        needed, (scratch, size) = self.update_device_memory_size_for_shapes(), self.scratch
        assert size >= needed
        if self.engine.plan.get("synchronises") and cuda.cudaStreamSynchronize(stream)[0] is not Status.cudaSuccess:
            self.engine.runtime.logger.log(ILogger.ERROR, "operation not permitted when stream is capturing")
            return False
        if self.config is not None:
            assert self.config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER" and self.config.cache
            if [*shape] not in self.config.cache.shapes:
                self.config.cache.shapes.append([*shape])
                trt.compiled += 1

        def work() -> None:
            assert self.changes == changes, "a context was changed between its capture and the launch"
            if needed:
                ctypes.memset(ctypes.addressof(cuda.device[scratch]), stream % 251, needed)
            source, target = cuda.device[self.addresses["image"]], cuda.device[self.addresses["logits"]]
            pixels = np.frombuffer(source, np.uint8, count=int(np.prod(shape))).reshape(shape)
            answer = np.frombuffer(target, np.float32, count=shape[0] * classes)
            answer[:] = model(pixels, classes).ravel()
            if needed:
                own = set(bytes(cuda.device[scratch])[:needed]) == {stream % 251}
                assert own, "two streams used one scratch memory"

        cuda.start(stream, work)
        return True


def scratch_bytes(shape: tuple[int, ...]) -> int:
    """Scratch memory that a run on images of a shape needs."""
    return int(np.prod(shape)) // 8 + 16


def model(pixels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.float32]:
    """What a simulated engine computes: (batch, height, width, 3) -> (batch, classes)."""
    weights = np.random.default_rng(0).normal(size=(3, classes))
    return (pixels.mean(axis=(1, 2)) @ weights / 50).astype(np.float32)


def plan(
    classes: int = 4,
    largest: tuple[int, int, int] = (8, 64, 64),
    *,
    more: tuple[tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]], ...] = (),
    **special: Any,
) -> bytes:
    """An engine's file; `more` are further profiles as (min, opt, max) of (batch, height, width)."""
    profiles = [((1, 1, 1), (1, 32, 32), largest), *more]
    sizes = [
        {key: [*size, 3] for key, size in zip(("min", "opt", "max"), profile, strict=True)} for profile in profiles
    ]
    return json.dumps({"classes": classes, "profiles": sizes, **special}).encode()


ENGINE = "engines/tensorrt-fp16.engine"

GPU = machine.Gpu("NVIDIA Simulated", "8.6", 1 << 24, "580.1", "13.0", False)

BUILT = {"tensorrt": {"flavour": "tensorrt", "version": "11.4.1.6"}, "compute_capability": "8.6", "flags": {}}


def write_engine_bundle(path: Path, content: bytes | None = None, graph: bytes | None = None, **built: Any) -> Path:
    """A bundle with one simulated engine, and a file in the place of the graph it was built from; the engine's path."""
    manifest = Manifest(
        model={"name": "mean-colour"},
        labels=("a", "b", "c", "d"),
        preprocess=PreprocessSpec(None, None, None, None, None),
        inputs=(TensorSpec("image", "uint8", ("batch", "height", "width", 3)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 4)),),
    )
    with Bundle.create(path, manifest) as editor:
        source = None
        if graph is not None:
            editor.path_for("model.fp16.onnx").write_bytes(graph)
            source = editor.add("model.fp16.onnx", kind="onnx", precision="fp16").sha256
        editor.path_for(ENGINE).write_bytes(plan() if content is None else content)
        editor.add(
            ENGINE, kind="engine", precision="fp16", target="tensorrt", built_from=source, built_with={**BUILT, **built}
        )
    return path / ENGINE
