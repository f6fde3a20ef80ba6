"""What one call at a time needs to run an engine on a GPU: a stream, memory, execution contexts, CUDA graphs.

Memory is kept from call to call and grows when a larger input comes: a piece of GPU memory with pinned memory beside
it for each input and output, and one piece of scratch memory that all contexts of the lane use in turn.

Inputs of a shape that comes back are run as a CUDA graph: copy in, every kernel, copy out, started by one call. The
first call of a shape runs plainly; the second one too, in a context of its own, which is then captured, since whatever
else were done with that context would change what the graph does (NVIDIA's best practice); from the third on the graph
is launched. A graph holds addresses, so all are dropped when memory grows.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import EngineError
from vitdeploy.runtime.cuda import Graph, Memory, OutOfMemory, Stream
from vitdeploy.runtime.dlpack import DeviceArray
from vitdeploy.runtime.engine import LoadedEngine

__all__ = ["GRAPHS", "Lane"]

GRAPHS = 8  # CUDA graphs, and so contexts, that a lane keeps; the one that was not used for longest goes
_KNOWN = 64  # shapes of which it is counted how often they came
_NEVER = -(10**9)
_SENT_BACK = -30  # a shape whose graph had to go has to come this often until it gets another

_ALIGNMENT = 256  # bytes: what TensorRT asks of an address
_Arrays = dict[str, npt.NDArray[Any]]
_Feeds = Mapping[str, npt.NDArray[Any] | DeviceArray]
_Key = tuple[Any, ...]  # profile and shapes


@dataclass(frozen=True)
class _Output:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None  # None: only the run says it, to `allocator`
    allocator: Any = None

    @property
    def size_bytes(self) -> int:
        assert self.shape is not None
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Prepared:
    """A context with the shapes and addresses of one call set."""

    context: Any
    feeds: tuple[tuple[str, tuple[int, ...], int], ...]  # (input, shape, bytes)
    outputs: tuple[_Output, ...]

    @property
    def capturable(self) -> bool:
        return all(output.shape is not None for output in self.outputs)


@dataclass(frozen=True)
class _Captured:
    graph: Graph
    prepared: _Prepared  # its context has to live as long as the graph


class Lane:
    """Runs an engine for one caller at a time.

    `device_ms` is what the last call took on the GPU by CUDA events, copies included; None before the first.

    Args:
        engine: the engine.
        cuda: cuda-python's runtime module.
        device: number of the GPU.
        graphs: how many CUDA graphs to keep; 0: none are made.
    """

    def __init__(self, engine: LoadedEngine, cuda: ModuleType, device: int, *, graphs: int = GRAPHS) -> None:
        self._engine, self._cuda = engine, cuda
        self._most_graphs = 0 if engine.captures_itself else graphs
        self._stream = Stream(cuda, device)
        self.device_ms: float | None = None
        self._memory: dict[str, Memory] = {}
        self._scratch = Memory(cuda, pinned=False)
        self._contexts: dict[int, Any] = {}  # by profile
        self._graphs: OrderedDict[_Key, _Captured] = OrderedDict()
        self._calls: OrderedDict[_Key, int] = OrderedDict()  # plain calls of a shape; it is captured in the second

    def run(self, feeds: _Feeds, profile: int) -> _Arrays:
        """Copy in, run, copy out, wait; the results are the caller's. What lies on this GPU is not copied in.

        Raises:
            OutOfMemory: the GPU has no room for inputs of these shapes.
            EngineError: TensorRT or CUDA failed.
        """
        self._stream.select_device()
        self._engine.forget_errors()
        try:
            return self._run(feeds, profile)
        except BaseException as error:
            self._stream.drain()  # the next call writes to memory that a copy under way may still read
            if isinstance(error, OutOfMemory):
                self._free_memory()  # a smaller call may do with less than this one has taken
            raise

    @property
    def graph_count(self) -> int:
        """How many CUDA graphs are kept now."""
        return len(self._graphs)

    def release(self) -> None:
        """Give everything back."""
        self._stream.drain()
        self._free_memory()
        self._contexts.clear()
        self._stream.close()

    def _free_memory(self) -> None:
        self._drop_graphs()
        self._scratch.free()
        while self._memory:
            self._memory.popitem()[1].free()

    def _run(self, feeds: _Feeds, profile: int) -> _Arrays:
        here = {name: array for name, array in feeds.items() if isinstance(array, np.ndarray)}
        if len(here) < len(feeds):
            return self._run_there(feeds, profile)
        return self._run_here(here, profile)

    def _run_there(self, feeds: _Feeds, profile: int) -> _Arrays:
        """On inputs that lie on this GPU. No CUDA graph: it would hold their addresses."""
        self._stream.wait_for_default()
        prepared = self._prepare(self._usual_context(profile), feeds)
        self._timed(lambda: self._start(prepared))
        return self._results(prepared)

    def _run_here(self, feeds: _Arrays, profile: int) -> _Arrays:
        key = (profile, *((name, array.shape) for name, array in feeds.items()))
        captured = self._graphs.get(key)
        if captured is not None:
            self._graphs.move_to_end(key)
            self._fill(feeds)
            self._timed(captured.graph.launch)
            return self._results(captured.prepared)
        calls = self._calls.pop(key, 0)
        capture = calls == 1 and self._most_graphs > 0
        context = self._engine.context(profile, self._stream.handle) if capture else self._usual_context(profile)
        prepared = self._prepare(context, feeds)
        self._fill(feeds)
        self._timed(lambda: self._start(prepared))
        results = self._results(prepared)
        self._calls[key] = calls + 1 if not capture or self._capture(key, prepared) else _NEVER
        while len(self._calls) > _KNOWN:
            self._calls.popitem(last=False)
        return results

    def _timed(self, start: Callable[[], None]) -> None:
        self._stream.mark()
        start()
        self._stream.mark(end=True)
        self._stream.synchronize()
        self.device_ms = self._stream.marked_ms()

    def _usual_context(self, profile: int) -> Any:
        if profile not in self._contexts:
            self._contexts[profile] = self._engine.context(profile, self._stream.handle)
        return self._contexts[profile]

    def _prepare(self, context: Any, feeds: _Feeds) -> _Prepared:
        """Set shapes and addresses; memory grows here and nowhere else before the run."""
        for name, array in feeds.items():
            if not context.set_input_shape(name, array.shape):
                raise self._failure(array.shape for array in feeds.values())
        scratch_bytes = int(context.update_device_memory_size_for_shapes())
        if scratch_bytes > 0:
            self._reserve(self._scratch, scratch_bytes)
            context.set_device_memory(self._scratch.device, self._scratch.size_bytes)
        for name, array in feeds.items():
            context.set_tensor_address(name, self._address_of(name, array))
        outputs = tuple(self._prepare_output(context, spec.name, np.dtype(spec.dtype)) for spec in self._engine.outputs)
        copied = ((name, array) for name, array in feeds.items() if isinstance(array, np.ndarray))
        return _Prepared(context, tuple((name, array.shape, array.nbytes) for name, array in copied), outputs)

    def _address_of(self, name: str, array: npt.NDArray[Any] | DeviceArray) -> int:
        """Where an input will be on the GPU: where it is, if it lies there as TensorRT wants it."""
        if isinstance(array, DeviceArray) and array.address % _ALIGNMENT == 0:
            return array.address
        buffer = self._buffer(name)
        self._reserve(buffer, array.nbytes)
        if isinstance(array, DeviceArray):
            self._stream.copy(buffer, array.address, array.nbytes)
        return buffer.device

    def _prepare_output(self, context: Any, name: str, dtype: np.dtype[Any]) -> _Output:
        shape = tuple(map(int, context.get_tensor_shape(name)))
        if min(shape, default=0) < 0:
            allocator = self._engine.output_allocator(lambda size: self._allocate(name, size))
            context.set_output_allocator(name, allocator)
            return _Output(name, dtype, None, allocator)
        output = _Output(name, dtype, shape)
        self._reserve(self._buffer(name), max(1, output.size_bytes))
        context.set_tensor_address(name, self._buffer(name).device)
        return output

    def _fill(self, feeds: _Arrays) -> None:
        for name, array in feeds.items():
            self._buffer(name).view(array.shape, array.dtype)[...] = array

    def _start(self, prepared: _Prepared) -> None:
        """Put copies and kernels on the stream; what comes out of an allocator is copied when it is known."""
        for name, _, size_bytes in prepared.feeds:
            self._stream.upload(self._buffer(name), size_bytes)
        if not prepared.context.execute_async_v3(self._stream.handle):
            error = next((o.allocator.error for o in prepared.outputs if o.allocator and o.allocator.error), None)
            raise error or self._failure(shape for _, shape, _ in prepared.feeds)
        for output in prepared.outputs:
            if output.shape is not None and output.size_bytes:
                self._stream.download(self._buffer(output.name), output.size_bytes)

    def _results(self, prepared: _Prepared) -> _Arrays:
        results = {}
        for output in prepared.outputs:
            shape = output.shape
            if shape is None:
                shape = output.allocator.shape
                if shape is None:
                    raise self._failure(shape for _, shape, _ in prepared.feeds)
                size_bytes = math.prod(shape) * output.dtype.itemsize
                if size_bytes:
                    self._stream.download(self._buffer(output.name), size_bytes)
                    self._stream.synchronize()
            results[output.name] = self._buffer(output.name).view(shape, output.dtype).copy()
        return results

    def _capture(self, key: _Key, prepared: _Prepared) -> bool:
        """Keep what `prepared` just did as a graph; False: it can't be captured, and is not tried again."""
        graph = self._stream.capture(lambda: self._start(prepared)) if prepared.capturable else None
        if graph is None:
            return False
        self._graphs[key] = _Captured(graph, prepared)
        while len(self._graphs) > self._most_graphs:
            oldest, captured = self._graphs.popitem(last=False)
            captured.graph.close()
            self._calls[oldest] = _SENT_BACK
        return True

    def _drop_graphs(self) -> None:
        while self._graphs:
            key, captured = self._graphs.popitem()
            captured.graph.close()
            self._calls[key] = 1  # captured again when it comes again

    def _buffer(self, name: str) -> Memory:
        return self._memory.setdefault(name, Memory(self._cuda))

    def _allocate(self, name: str, size_bytes: int) -> int:
        self._reserve(self._buffer(name), max(1, size_bytes))
        return self._buffer(name).device

    def _reserve(self, memory: Memory, size_bytes: int) -> None:
        if memory.reserve(size_bytes):
            self._drop_graphs()

    def _failure(self, shapes: Iterable[tuple[int, ...]]) -> EngineError:
        return EngineError(
            f"{self._engine.name} failed on an input of shape {', '.join(map(str, shapes))}: {self._engine.reason()}",
            hint="try a smaller batch; if it stays, build the engine again or use another form of the bundle",
        )
