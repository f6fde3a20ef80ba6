"""Run a TensorRT engine on an NVIDIA GPU: TensorRT 10.3 and later, 11.x and TensorRT-RTX by one code path.

Callers from several threads run side by side, each in an `Execution` of its own until there are as many as
`streams`; further ones wait. An execution that finds no memory on the GPU is given up while there is another.
PyTorch takes no part; CUDA is reached through cuda-python (`cuda.bindings.runtime`, in old ones `cuda.cudart`).
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.base import RunnerBase
from vitdeploy.backends.dlpack import CUDA, DeviceArray
from vitdeploy.backends.registry import find
from vitdeploy.backends.tensorrt.compatibility import (
    check_fit,
    check_source,
    check_version,
    described,
    read_engine,
    weights_of,
)
from vitdeploy.backends.tensorrt.cuda import OutOfMemory, on_device
from vitdeploy.backends.tensorrt.engine import LoadedEngine
from vitdeploy.backends.tensorrt.execution import GRAPHS, Execution
from vitdeploy.backends.tensorrt.kernel_cache import KernelCache
from vitdeploy.backends.tensorrt.obstacles import USE_TENSORRT, not_for_rtx
from vitdeploy.backends.tensorrt.options import FLAVOURS
from vitdeploy.core.admission import Place, Places
from vitdeploy.core.errors import DependencyError, EngineError, InputError, RunnerClosedError, require
from vitdeploy.core.machine import Gpu, gpus, problem_with_gpu

__all__ = ["TensorRTRunner"]

_Arrays = dict[str, npt.NDArray[Any]]
_Feeds = Mapping[str, npt.NDArray[Any] | DeviceArray]
_Piece = tuple[int, slice]  # profile, images of the batch
_MOST_SHAPES = 1024


class TensorRTRunner(RunnerBase):
    """An engine of a bundle on an NVIDIA GPU.

    `device_ms` is what the last call took on the GPU by CUDA events, copies included; a call in parts adds them up.

    An engine is compiled code, so only a file that a bundle's manifest describes is loaded, after the TensorRT version
    and the GPU that it was built for, and its hash, were compared with what is here.

    Args:
        path: the engine file, inside its bundle.
        flavour: what built it, "tensorrt" or "tensorrt-rtx".
        device: number of the GPU.
        trusted: load the file though no bundle describes it; only for an engine that you built yourself.
        weights: the graph that a trusted engine without weights was built from; a bundle knows its own.
        streams: how many calls may run at a time, each with memory of its own. TensorRT-RTX with `cuda_graphs` runs
            one, since another call that takes memory would break into a capture.
        cuda_graphs: run a shape that comes again as a CUDA graph.

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
        weights: str | os.PathLike[str] | None = None,
        streams: int = 2,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__()
        if flavour not in FLAVOURS:
            raise InputError(f"there is no TensorRT flavour {flavour!r}", hint=f"one of {', '.join(FLAVOURS)}")
        if streams < 1:
            raise InputError(f"an engine can't run in {streams} streams", hint="give at least 1")
        self.backend = flavour
        self._path = Path(path)
        self._number = device
        self._trusted = trusted
        self._weights = None if weights is None else Path(weights)
        self._streams, self._graphs = streams, GRAPHS if cuda_graphs else 0
        self._engine: LoadedEngine | None = None
        self._executions: _Executions | None = None
        self._cuda: ModuleType | None = None
        self._kernels: KernelCache | None = None
        self._releasing = threading.Lock()
        self._shapes: set[tuple[Any, ...]] = set()  # that were run, as long as their kernels are kept
        self.device_ms: float | None = None

    @property
    def engine(self) -> LoadedEngine:
        """The engine itself, to look into it while the runner is open."""
        self._check_open()
        assert self._engine is not None
        return self._engine

    def _open(self, stack: ExitStack) -> None:
        if not self._path.is_file():
            raise EngineError(
                f"there is no engine at {self._path}", hint="vitdeploy build-engine BUNDLE --fp16 makes one"
            )
        found = None if self._trusted else described(self._path)
        gpu = self._gpu()
        reason = not_for_rtx(gpu) if self.backend == "tensorrt-rtx" else None
        if reason is not None:
            raise EngineError(reason, hint=USE_TENSORRT)
        spec = find(self.backend)
        trt = require(spec.needs[0].module, extra=spec.extra)
        if found is not None:
            check_version(found.artifact, self.backend, str(trt.__version__), found.bundle.path)
            check_fit(found.artifact, gpu, found.bundle.path)
            check_source(found)
        cuda = _cuda_runtime(spec.extra)
        data = read_engine(self._path, None if found is None else found.artifact)
        weights = self._weights if found is None else weights_of(found)
        stack.callback(self._release)
        if self.backend == "tensorrt-rtx":
            digest = hashlib.sha256(data).hexdigest() if found is None else found.artifact.sha256
            self._kernels = KernelCache(digest, str(trt.__version__), gpu)
        kept = None if self._kernels is None else self._kernels.read()
        self._cuda = cuda
        with on_device(cuda, self._number):
            self._engine = engine = LoadedEngine(
                trt, self._path.name, data, weights, graphs=self._graphs > 0, kernels=kept
            )
        limit = 1 if engine.captures_itself else self._streams
        self._executions = executions = _Executions(
            lambda: Execution(engine, cuda, self._number, graphs=self._graphs), limit
        )
        executions.give(executions.take()[0])  # the first one now, so that what it lacks is said here
        self._inputs, self._outputs, self._ranges = engine.inputs, engine.outputs, engine.ranges

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

    def close(self) -> None:
        """Release the engine and its memory; a second time releases what a Ctrl-C kept the first from, if anything."""
        super().close()
        if self._holds() and self._process == os.getpid():
            self._release()

    def _holds(self) -> bool:
        return super()._holds() or getattr(self, "_engine", None) is not None

    def _release(self) -> None:
        """In a thread of its own, which no Ctrl-C breaks off between giving memory back and noting that it was."""
        errors: list[BaseException] = []

        def release() -> None:
            try:
                with self._releasing:
                    self._release_here()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=release, name="vitdeploy-release")
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, or the system has no thread left
            release()
        else:
            thread.join()
        if errors:
            raise errors[0]

    def _release_here(self) -> None:
        if self._executions is not None:
            self._executions.close()  # calls of other threads end first
            self._executions = None
        engine, self._engine = self._engine, None
        if engine is not None:
            assert self._cuda is not None
            with suppress(EngineError), on_device(self._cuda, self._number):
                self._keep_kernels(engine)
                del engine

    def _keep_kernels(self, engine: LoadedEngine) -> None:
        if self._kernels is not None:
            self._kernels.write(engine.compiled)

    def _note_shape(self, engine: LoadedEngine, shape: tuple[Any, ...]) -> None:
        """After a call: a process may end without closing, so kernels are kept at the 1st, 2nd, 4th, 8th ... shape."""
        if self._kernels is None or shape in self._shapes or len(self._shapes) >= _MOST_SHAPES:
            return
        self._shapes.add(shape)
        if len(self._shapes).bit_count() == 1:
            self._keep_kernels(engine)

    @property
    def device_memory(self) -> tuple[int, int] | None:
        """The memory of the GPU that the engine runs on."""
        return CUDA, self._number

    @property
    def cuda_graphs(self) -> dict[str, Any]:
        """How many CUDA graphs are kept, who captures them, and why a shape that should have one has none, if so."""
        self._check_open()
        assert self._engine is not None and self._executions is not None
        made = self._executions.made
        by = "TensorRT" if self._engine.captures_itself else "vitdeploy" if self._graphs else None
        why_not = "switched off" if by is None else next((e.why_no_graph for e in made if e.why_no_graph), None)
        return {"by": by, "kept": sum(execution.graph_count for execution in made), "why_not": why_not}

    def infer_on_device(self, feeds: Mapping[str, DeviceArray]) -> _Arrays:
        """Run the engine once on uint8 inputs that lie on its GPU; see `infer`."""
        self._check_open()
        return self.infer_checked(feeds)

    def infer_checked(self, feeds: _Feeds) -> _Arrays:
        """`infer` for feeds that fit."""
        engine, executions = self._engine, self._executions
        if engine is None or executions is None:  # closed by another thread since it was checked
            raise _closed()
        parts, device_ms = [], 0.0
        for profile, images in _pieces(engine, feeds):
            piece = {name: array[images] for name, array in feeds.items()}
            part, took = _execute(executions, piece, profile)
            self._note_shape(engine, (profile, *(array.shape for array in piece.values())))
            parts.append(part)
            device_ms += took
        self.device_ms = device_ms
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _execute(executions: _Executions, feeds: _Feeds, profile: int) -> tuple[_Arrays, float]:
    """The answer, and the milliseconds that it took on the GPU."""
    while True:
        place, execution = executions.take()
        try:
            return execution.run(feeds, profile), execution.device_ms or 0.0
        except OutOfMemory:
            if not executions.give_up(place):  # it is the only one there is
                raise
        finally:
            executions.give(place)


def _pieces(engine: LoadedEngine, feeds: _Feeds) -> list[_Piece]:
    """How a batch is run: whole in the profile that suits it best, or else in equal parts that one profile takes.

    Raises:
        InputError: no profile takes images of this size, or parts of this batch.
    """
    shapes = {name: array.shape for name, array in feeds.items()}
    profile = engine.profile_for(shapes)
    if profile is not None:
        return [(profile, slice(None))]
    count = next(iter(shapes.values()))[0]
    for parts in range(2, count + 1):
        bounds = [count * part // parts for part in range(parts + 1)]
        images = [slice(low, high) for low, high in pairwise(bounds)]
        sizes = {piece.stop - piece.start for piece in images}
        chosen = {
            size: engine.profile_for({name: (size, *shape[1:]) for name, shape in shapes.items()}) for size in sizes
        }
        found = [(chosen[piece.stop - piece.start], piece) for piece in images]
        whole = [(profile, piece) for profile, piece in found if profile is not None]
        if len(whole) == len(found):
            return whole
    asked = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    height, width = next(iter(shapes.values()))[1:3]
    options = f"--batch {count} --image-size {height}x{width}"
    raise InputError(
        f"no profile of {engine.name} takes {asked}; it has {'; '.join(map(_words, engine.profiles))}",
        hint=f"build the engine again for it: vitdeploy build-engine BUNDLE --fp16 {options}",
    )


def _words(profile: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {' x '.join(f'{r.minimum}..{r.maximum}' for r in ranges[:3])}" for name, ranges in profile.items()
    )


class _Executions:
    """At most `limit` executions: who asks for one gets a free one, or a new one, or waits for one.

    Which are lent is known by the places of who has them, so that none is lost to an exception (see `core.admission`).
    """

    def __init__(self, make: Callable[[], Execution], limit: int) -> None:
        self._make = make
        self._places = Places(limit, refuse=False)
        self._lock = threading.Lock()
        self._made: list[Execution] = []
        self._lent: WeakKeyDictionary[Place, Execution] = WeakKeyDictionary()

    def take(self) -> tuple[Place, Execution]:
        """An execution that nobody else has until its place is given back."""
        while True:
            try:
                place = self._places.take(None)
            except RunnerClosedError as error:
                raise _closed() from error
            try:
                execution = self._lend(place)
            except BaseException:
                self.give(place)
                raise
            if execution is not None:
                return place, execution
            self.give(place)

    def _lend(self, place: Place) -> Execution | None:
        """None: the GPU has no memory for one more, so there will be no more than those that others have now."""
        with self._lock:
            lent = list(self._lent.values())
            free = [execution for execution in self._made if execution not in lent]
            if not free:
                try:
                    self._made.append(self._make())
                except OutOfMemory:
                    if not self._made:
                        raise
                    self._places.limit = len(self._made)
                    return None
            self._lent[place] = execution = (free or self._made)[-1]
            return execution

    def give(self, place: Place) -> None:
        """Give an execution back; a second time does nothing."""
        with self._lock:
            self._lent.pop(place, None)
        self._places.give(place)

    @property
    def made(self) -> tuple[Execution, ...]:
        with self._lock:
            return tuple(self._made)

    def give_up(self, place: Place) -> bool:
        """For want of memory, release an execution for good where there are others; else say False."""
        with self._lock:
            if len(self._made) == 1:
                return False
            self._made.remove(execution := self._lent.pop(place))
            self._places.limit = len(self._made)
        execution.release()
        return True

    def close(self) -> None:
        """Wait until every execution was given back, and release them."""
        self._places.close()
        while self._places.taken:
            time.sleep(0.001)
        while self._made:
            self._made.pop().release()


def _closed() -> RunnerClosedError:
    return RunnerClosedError("this TensorRTRunner is closed", hint="load the bundle again")


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
