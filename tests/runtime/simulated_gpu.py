"""The parts of TensorRT and cuda-python that the runner uses, on a simulated GPU, for machines that have none.

What it is strict about is what a GPU is strict about: nothing that was started is done before the stream is waited
for, memory has to be there and big enough, and what is not freed is seen. Engines are JSON; the model is the mean
colour times a matrix. That the real modules have all these names, `test_tensorrt.py` checks against them.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable
from enum import Enum, IntEnum
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2


class Kind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class SimulatedCuda(ModuleType):
    """cuda.bindings.runtime: every function returns a tuple that starts with a status."""

    cudaMemcpyKind = Kind
    cudaStreamNonBlocking = 1

    def __init__(self, memory_bytes: int = 1 << 24) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory_bytes = memory_bytes
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.events: list[list[float]] = []
        self.pending: list[Callable[[], None]] = []
        self.allocations = 0

    def used_bytes(self) -> int:
        return sum(ctypes.sizeof(block) for block in self.device.values())

    def cudaSetDevice(self, number: int) -> tuple[Any, ...]:
        return (Status.cudaSuccess if number == 0 else Status.cudaErrorInvalidValue,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        number = 7 + len(self.streams)
        self.streams.add(number)
        return Status.cudaSuccess, _stream(number)

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]:
        self.streams.remove(int(stream))
        return (Status.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        self.events.append([])
        return Status.cudaSuccess, self.events[-1]

    def cudaEventRecord(self, event: list[float], stream: Any) -> tuple[Any, ...]:
        assert int(stream) in self.streams
        event.clear()
        self.pending.append(lambda: event.append(time.perf_counter()))
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start: list[float], end: list[float]) -> tuple[Any, ...]:
        return Status.cudaSuccess, 1000 * (end[0] - start[0])  # IndexError: the stream is not there yet

    def cudaEventDestroy(self, event: list[float]) -> tuple[Any, ...]:
        self.events = [other for other in self.events if other is not event]
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        assert int(stream) in self.streams
        pending, self.pending = self.pending, []
        for work in pending:
            work()
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self.used_bytes() + size > self.memory_bytes:
            return Status.cudaErrorMemoryAllocation, None
        return self._allocate(self.device, size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate(self.host, size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        self.cudaStreamSynchronize(next(iter(self.streams)))  # as cudaFree does
        del self.device[address]
        return (Status.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        del self.host[address]
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: Any) -> tuple[Any, ...]:
        assert int(stream) in self.streams
        up = kind is Kind.cudaMemcpyHostToDevice
        target, origin = (self.device, self.host) if up else (self.host, self.device)
        assert 0 < size <= min(ctypes.sizeof(target[to]), ctypes.sizeof(origin[source]))
        self.pending.append(lambda: ctypes.memmove(to, source, size) and None)
        return (Status.cudaSuccess,)

    def cudaGetErrorString(self, status: Status) -> tuple[Any, ...]:
        return Status.cudaSuccess, status.name.encode()

    def _allocate(self, where: dict[int, Any], size: int) -> tuple[Any, ...]:
        block = (ctypes.c_uint8 * size)(*b"\xaa" * min(size, 64))
        where[ctypes.addressof(block)] = block
        self.allocations += 1
        return Status.cudaSuccess, ctypes.addressof(block)


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


class ILogger:
    ERROR = 1
    INTERNAL_ERROR = 0

    def log(self, severity: int, message: str) -> None: ...


class SimulatedTensorRT(ModuleType):
    """tensorrt: engines of one input `image` and one output `logits`."""

    DataType, TensorIOMode, ILogger = DataType, TensorIOMode, ILogger

    def __init__(self, cuda: SimulatedCuda, version: str = "11.4.1.6") -> None:
        super().__init__(f"tensorrt of {id(self)}")  # a name of its own: one logger per module
        self.__version__ = version
        self.cuda = cuda
        self.fail_next: str | None = None

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)


class Runtime:
    def __init__(self, trt: SimulatedTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        try:
            return Engine(self, json.loads(data))
        except ValueError:
            self.logger.log(ILogger.ERROR, "Magic tag does not match\n")
            return None


class Engine:
    num_io_tensors = 2

    def __init__(self, runtime: Runtime, plan: dict[str, Any]) -> None:
        self.runtime, self.plan = runtime, plan

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8 if name == "image" else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1, -1, -1, 3] if name == "image" else [-1, self.plan["classes"]]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert (name, profile) == ("image", 0)
        return [self.plan[key] for key in ("min", "opt", "max")]

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        return (self.shape[0], self.engine.plan["classes"])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt = self.engine.runtime.trt
        cuda = trt.cuda
        assert stream in cuda.streams
        if trt.fail_next is not None:
            self.engine.runtime.logger.log(ILogger.ERROR, trt.fail_next)
            trt.fail_next = None
            return False
        shape, classes = self.shape, self.engine.plan["classes"]
        source, target = cuda.device[self.addresses["image"]], cuda.device[self.addresses["logits"]]

        def work() -> None:
            assert shape is not None
            pixels = np.frombuffer(source, np.uint8, count=int(np.prod(shape))).reshape(shape)
            answer = np.frombuffer(target, np.float32, count=shape[0] * classes)
            answer[:] = model(pixels, classes).ravel()

        cuda.pending.append(work)
        return True


def model(pixels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.float32]:
    """What a simulated engine computes: (batch, height, width, 3) -> (batch, classes)."""
    weights = np.random.default_rng(0).normal(size=(3, classes))
    return (pixels.mean(axis=(1, 2)) @ weights / 50).astype(np.float32)


def plan(classes: int = 4, largest: tuple[int, int, int] = (8, 64, 64)) -> bytes:
    """An engine's file."""
    sizes = {"min": [1, 1, 1, 3], "opt": [1, 32, 32, 3], "max": [*largest, 3]}
    return json.dumps({"classes": classes, **sizes}).encode()
