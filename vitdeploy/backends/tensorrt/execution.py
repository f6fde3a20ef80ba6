"""What one call at a time needs to run an engine on a GPU: a stream, memory, execution contexts, CUDA graphs.

Memory is kept from call to call and grows when a larger input comes: a piece of GPU memory with pinned memory beside
it for each input and output, and one piece of scratch memory that all contexts of the execution use in turn.

Inputs of a shape that comes back are run as a CUDA graph: copy in, every kernel, copy out, started by one call. The
first call of a shape runs plainly; the second one too, in a context of its own, which is then captured, since whatever
else were done with that context would change what the graph does (NVIDIA's best practice); from the third on the graph
is launched. A graph holds addresses, so all are dropped when memory grows.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.dlpack import DeviceArray
from vitdeploy.backends.tensorrt.cuda import Buffer, Graph, OutOfMemory, Stream, on_device
from vitdeploy.backends.tensorrt.engine import LoadedEngine
from vitdeploy.core.errors import EngineError

__all__ = ["GRAPHS", "Execution"]

GRAPHS = 8  # CUDA graphs, and so contexts, that an execution keeps; the one that was not used for longest goes
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
class _Context:
    """An execution context, and the allocators of its outputs whose size only a run knows."""

    context: Any
    allocators: dict[str, Any] = field(default_factory=dict)


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


class Execution:
    """Runs an engine for one caller at a time.

    `device_ms` is what the last call took on the GPU by CUDA events, copies included; None before the first.
    `why_no_graph` is why the last shape that should have become a CUDA graph runs plainly; None if none did.

    Args:
        engine: the engine.
        cuda: cuda-python's runtime module.
        device: number of the GPU.
        graphs: how many CUDA graphs to keep; 0: none are made.
    """

    def __init__(self, engine: LoadedEngine, cuda: ModuleType, device: int, *, graphs: int = GRAPHS) -> None:
        self._engine, self._cuda, self._device = engine, cuda, device
        self._most_graphs = 0 if engine.captures_itself else graphs
        self._stream = Stream(cuda, device)
        self.device_ms: float | None = None
        self.why_no_graph: str | None = None
        self._memory: dict[str, Buffer] = {}
        self._scratch = Buffer(cuda, pinned=False)
        self._contexts: dict[int, _Context] = {}  # by profile
        self._graphs: OrderedDict[_Key, _Captured] = OrderedDict()
        self._calls: OrderedDict[_Key, int] = OrderedDict()  # plain calls of a shape; it is captured in the second

    def run(self, feeds: _Feeds, profile: int) -> _Arrays:
        """Copy in, run, copy out, wait; the results are the caller's. What lies on this GPU is not copied in.

        Raises:
            OutOfMemory: the GPU has no room for inputs of these shapes.
            EngineError: TensorRT or CUDA failed.
        """
        self._engine.forget_errors()
        with on_device(self._cuda, self._device):
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
        with suppress(EngineError), on_device(self._cuda, self._device):
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
        on_host = {name: array for name, array in feeds.items() if isinstance(array, np.ndarray)}
        if len(on_host) < len(feeds):
            return self._run_device(feeds, profile)
        return self._run_host(on_host, profile)

    def _run_device(self, feeds: _Feeds, profile: int) -> _Arrays:
        """On inputs that lie on this GPU. No CUDA graph: it would hold their addresses."""
        self._stream.wait_for_default()
        prepared = self._prepare(self._usual_context(profile), feeds)
        self._timed(lambda: self._start(prepared))
        return self._results(prepared)

    def _run_host(self, feeds: _Arrays, profile: int) -> _Arrays:
        key = (profile, *((name, array.shape) for name, array in feeds.items()))
        captured = self._graphs.get(key)
        if captured is not None:
            self._graphs.move_to_end(key)
            self._fill(feeds)
            try:
                self._timed(captured.graph.launch)
            except OutOfMemory as error:  # CUDA takes memory for a graph when it is first launched
                self._stream.drain()
                self._give_up(key, error.message)
            else:
                return self._results(captured.prepared)
        calls = self._calls.pop(key, 0)
        own = self._context_of_graph(profile) if calls == 1 and self._most_graphs > 0 else None
        context = self._usual_context(profile) if own is None else own
        prepared = self._prepare(context, feeds)
        self._fill(feeds)
        self._timed(lambda: self._start(prepared))
        results = self._results(prepared)
        if calls == 1 and self._most_graphs > 0 and not (own is not None and self._capture(key, prepared)):
            calls = _NEVER
        self._calls[key] = calls + 1
        while len(self._calls) > _KNOWN:
            self._calls.popitem(last=False)
        return results

    def _timed(self, start: Callable[[], None]) -> None:
        self._stream.mark()
        start()
        self._stream.mark(end=True)
        self._stream.synchronize()
        self.device_ms = self._stream.marked_ms()

    def _usual_context(self, profile: int) -> _Context:
        if profile not in self._contexts:
            self._contexts[profile] = _Context(self._engine.context(profile, self._stream.handle))
        return self._contexts[profile]

    def _context_of_graph(self, profile: int) -> _Context | None:
        """A context for a CUDA graph alone; None where there is none to be had: the call then runs plainly."""
        try:
            return _Context(self._engine.context(profile, self._stream.handle))
        except (OutOfMemory, EngineError) as error:
            self.why_no_graph = error.message
            return None

    def _prepare(self, held: _Context, feeds: _Feeds) -> _Prepared:
        """Set shapes and addresses; memory grows here and nowhere else before the run."""
        context = held.context
        for name, array in feeds.items():
            if not context.set_input_shape(name, array.shape):
                raise self._failure(array.shape for array in feeds.values())
        scratch_bytes = int(context.update_device_memory_size_for_shapes())
        if self._engine.needs_scratch:  # TensorRT asks for some then, though these shapes need none
            self._reserve(self._scratch, max(scratch_bytes, _ALIGNMENT))
            context.set_device_memory(self._scratch.device, self._scratch.size_bytes)
        for name, array in feeds.items():
            context.set_tensor_address(name, self._address_of(name, array))
        outputs = tuple(self._prepare_output(held, spec.name, np.dtype(spec.dtype)) for spec in self._engine.outputs)
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

    def _prepare_output(self, held: _Context, name: str, dtype: np.dtype[Any]) -> _Output:
        context = held.context
        shape = tuple(map(int, context.get_tensor_shape(name)))
        if min(shape, default=0) < 0:
            if name not in held.allocators:
                allocator = self._engine.output_allocator(lambda size: self._allocate(name, size))
                context.set_output_allocator(name, allocator)
                held.allocators[name] = allocator
            held.allocators[name].forget()
            return _Output(name, dtype, None, held.allocators[name])
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
            self.why_no_graph = (
                "CUDA could not capture the call" if prepared.capturable else "its outputs have no fixed size"
            )
            return False
        self._graphs[key] = _Captured(graph, prepared)
        while len(self._graphs) > self._most_graphs:
            oldest, captured = self._graphs.popitem(last=False)
            captured.graph.close()
            self._calls[oldest] = _SENT_BACK
        return True

    def _give_up(self, key: _Key, why: str) -> None:
        """A shape whose graph can't be launched runs plainly from here on."""
        self._graphs.pop(key).graph.close()
        self._calls[key], self.why_no_graph = _NEVER, why

    def _drop_graphs(self) -> None:
        while self._graphs:
            key, captured = self._graphs.popitem()
            captured.graph.close()
            self._calls[key] = 1  # captured again when it comes again

    def _buffer(self, name: str) -> Buffer:
        return self._memory.setdefault(name, Buffer(self._cuda))

    def _allocate(self, name: str, size_bytes: int) -> int:
        self._reserve(self._buffer(name), max(1, size_bytes))
        return self._buffer(name).device

    def _reserve(self, memory: Buffer, size_bytes: int) -> None:
        if memory.reserve(size_bytes):
            self._drop_graphs()

    def _failure(self, shapes: Iterable[tuple[int, ...]]) -> OutOfMemory | EngineError:
        return self._engine.failure(
            f"{self._engine.name} failed on an input of shape {', '.join(map(str, shapes))}",
            "use a smaller batch or image, or free GPU memory",
            "try a smaller batch; if it stays, build the engine again or use another form of the bundle",
        )
