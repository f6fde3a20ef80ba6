"""The little of CUDA that running an engine needs, through cuda-python: memory on both sides, streams and graphs."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.core.errors import EngineError, InputError, OutOfMemoryError

__all__ = ["Buffer", "Graph", "OutOfMemory", "Stream", "on_device"]

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_OLD_DRIVER = 35  # cudaErrorInsufficientDriver: also where there is none


class OutOfMemory(OutOfMemoryError):
    """The GPU, or the machine's pinned memory, has no room for what was asked."""


class Buffer:
    """GPU memory and, if `pinned`, page-locked memory of the same size beside it; grows when it must, never shrinks.

    `device` is the address on the GPU, 0 while there is none; `size_bytes` is how much there is.
    """

    def __init__(self, cuda: ModuleType, *, pinned: bool = True) -> None:
        self._cuda = cuda
        self._pinned = pinned
        self._host = 0
        self.size_bytes = 0
        self.device = 0

    def reserve(self, size_bytes: int) -> bool:
        """Have room for `size_bytes`; True if it had to grow: the address is another one and the content is lost.

        Raises:
            OutOfMemory: the GPU or the machine has no memory left.
        """
        if size_bytes <= self.size_bytes:
            return False
        self.free()
        try:
            self.device = int(checked(self._cuda, self._cuda.cudaMalloc(size_bytes), size_bytes))
            if self._pinned:
                self._host = int(checked(self._cuda, self._cuda.cudaMallocHost(size_bytes), size_bytes))
        except BaseException:
            self.free()
            raise
        self.size_bytes = size_bytes
        return True

    @property
    def host(self) -> int:
        """Address of the pinned memory."""
        return self._host

    def view(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The pinned memory as an array; it is only valid until the next `reserve` or `free`."""
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        content: Any = (ctypes.c_uint8 * size_bytes).from_address(self._host)
        return np.asarray(np.frombuffer(content, dtype=dtype).reshape(shape))

    def free(self) -> None:
        """Give all of it back."""
        device, host = self.device, self._host
        self.device = self._host = self.size_bytes = 0
        if device:
            self._cuda.cudaFree(device)
        if host:
            self._cuda.cudaFreeHost(host)


class Stream:
    """A CUDA stream on one GPU."""

    def __init__(self, cuda: ModuleType, device: int) -> None:
        self._cuda = cuda
        self._marks: list[Any] = []
        with on_device(cuda, device):
            self._stream = checked(cuda, cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
            try:
                for _ in range(2):
                    self._marks.append(checked(cuda, cuda.cudaEventCreate()))
            except BaseException:
                self.close()
                raise
        self.handle = _address(self._stream)

    def upload(self, memory: Buffer, size_bytes: int) -> None:
        """Start copying from pinned memory to the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(self._cuda, self._cuda.cudaMemcpyAsync(memory.device, memory.host, size_bytes, kind, self._stream))

    def download(self, memory: Buffer, size_bytes: int) -> None:
        """Start copying from the GPU to pinned memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(self._cuda, self._cuda.cudaMemcpyAsync(memory.host, memory.device, size_bytes, kind, self._stream))

    def copy(self, memory: Buffer, address: int, size_bytes: int) -> None:
        """Start copying from elsewhere on the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        checked(self._cuda, self._cuda.cudaMemcpyAsync(memory.device, address, size_bytes, kind, self._stream))

    def wait_for_default(self) -> None:
        """Wait for the legacy default stream, on which other libraries hand their tensors over."""
        checked(self._cuda, self._cuda.cudaStreamSynchronize(0))

    def synchronize(self) -> None:
        """Wait until all that was started is done."""
        checked(self._cuda, self._cuda.cudaStreamSynchronize(self._stream))

    def mark(self, end: bool = False) -> None:
        """Note the GPU's time when it gets here: the begin of a measurement, or its end."""
        checked(self._cuda, self._cuda.cudaEventRecord(self._marks[end], self._stream))

    def marked_ms(self) -> float:
        """Milliseconds on the GPU between the two marks; both have to be behind it (`synchronize`)."""
        return float(checked(self._cuda, self._cuda.cudaEventElapsedTime(*self._marks)))

    def drain(self) -> None:
        """Wait as `synchronize` does, whatever state the GPU is in."""
        with contextlib.suppress(EngineError, InputError):
            self.synchronize()

    def capture(self, work: Callable[[], None]) -> Graph | None:
        """What `work` starts on this stream, as a graph to launch later; nothing runs now. None: it can't be captured.

        Captures of other threads and their allocations do not disturb this one.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(self._cuda, self._cuda.cudaStreamBeginCapture(self._stream, mode))
        done = False
        try:
            work()
            done = True
        except (EngineError, InputError):
            pass
        finally:  # the stream takes no other work before the capture has ended
            status, graph = self._cuda.cudaStreamEndCapture(self._stream)
            if int(status) == 0 and not done:
                self._cuda.cudaGraphDestroy(graph)
        if int(status) != 0 or not done:
            self._cuda.cudaGetLastError()  # the next call would report what is dealt with here
            return None
        try:
            status, executable = self._cuda.cudaGraphInstantiate(graph, 0)
        finally:
            self._cuda.cudaGraphDestroy(graph)
        if int(status) != 0:
            self._cuda.cudaGetLastError()
            return None
        return Graph(self._cuda, executable, self._stream)

    def close(self) -> None:
        """Destroy the stream and its marks."""
        for mark in self._marks:
            self._cuda.cudaEventDestroy(mark)
        self._cuda.cudaStreamDestroy(self._stream)


class Graph:
    """Captured work of a stream; it holds the addresses that it was captured with."""

    def __init__(self, cuda: ModuleType, executable: Any, stream: Any) -> None:
        self._cuda, self._executable, self._stream = cuda, executable, stream

    def launch(self) -> None:
        """Start it on its stream."""
        checked(self._cuda, self._cuda.cudaGraphLaunch(self._executable, self._stream))

    def close(self) -> None:
        """Destroy it; it must not be running."""
        self._cuda.cudaGraphExecDestroy(self._executable)


@contextlib.contextmanager
def on_device(cuda: ModuleType, number: int) -> Iterator[None]:
    """Make a GPU the calling thread's inside the block; CUDA keeps one per thread, and its own comes back behind it."""
    before = int(checked(cuda, cuda.cudaGetDevice()))
    checked(cuda, cuda.cudaSetDevice(number))  # also where it is the same: this makes its context the thread's
    try:
        yield
    finally:
        if before != number:
            cuda.cudaSetDevice(before)


def checked(cuda: ModuleType, answer: tuple[Any, ...], size_bytes: int | None = None) -> Any:
    """What a call of the CUDA runtime gave, without its status.

    Raises:
        OutOfMemory: what it says.
        EngineError: any other status than success.
    """
    status, *values = answer
    if int(status) == 0:
        return values[0] if values else None
    if int(status) == _OUT_OF_MEMORY:
        size = "" if size_bytes is None else f" for {size_bytes / 2**20:.0f} MiB"
        raise OutOfMemory(f"the GPU is out of memory{size}", hint="use a smaller batch or image, or free GPU memory")
    text = cuda.cudaGetErrorString(status)[1]
    words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    hint = "check the driver with nvidia-smi; after a failed kernel the process has to be started again"
    if int(status) == _OLD_DRIVER:
        hint = "vitdeploy doctor says which packages are for a newer CUDA than the driver, and what to install"
    raise EngineError(f"CUDA failed: {words} ({getattr(status, 'name', int(status))})", hint=hint)


def _address(stream: Any) -> int:
    """The stream as the number that TensorRT takes."""
    try:
        from cuda.bindings.utils import get_cuda_native_handle  # from 12.9.1 on, where int() is deprecated
    except ImportError:
        return int(stream)
    return int(get_cuda_native_handle(stream))
