"""The parts of cuda-python that the TensorRT runner uses, on a simulated GPU.

What it is strict about is what a GPU is strict about: nothing that was started is done before its stream is waited
for, and a stream waits for no other one, the default stream included; each thread has a current device, and work for
another one is refused; memory has to be there and big enough, for streams as well; a CUDA graph is bad once its memory
is gone, and none comes of a call that waits in its middle; what is not freed is seen.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

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
