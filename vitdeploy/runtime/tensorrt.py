"""Run a TensorRT engine on an NVIDIA GPU: TensorRT 10.3 and later, 11.x and TensorRT-RTX by one code path.

Callers from several threads run side by side, each in a lane of its own (`vitdeploy.runtime.lane`) until there are as
many as `streams`; further ones wait. A lane that finds no memory on the GPU is given up while there is another.
PyTorch takes no part; CUDA is reached through cuda-python (`cuda.bindings.runtime`, in old ones `cuda.cudart`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import DependencyError, EngineError, InputError, RunnerClosedError, require
from vitdeploy.machine import Gpu, gpus, problem_with_gpu
from vitdeploy.runtime.base import RunnerBase
from vitdeploy.runtime.cuda import OutOfMemory, select_device
from vitdeploy.runtime.dlpack import CUDA, DeviceArray
from vitdeploy.runtime.engine import LoadedEngine
from vitdeploy.runtime.engine_fit import check_fit, check_source, check_version, described, read_engine, weights_of
from vitdeploy.runtime.lane import GRAPHS, Lane

__all__ = ["TensorRTRunner"]

_FLAVOURS = {"tensorrt": ("tensorrt", "gpu"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}
_Arrays = dict[str, npt.NDArray[Any]]
_Feeds = Mapping[str, npt.NDArray[Any] | DeviceArray]
_Piece = tuple[int, slice]  # profile, images of the batch


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
        if flavour not in _FLAVOURS:
            raise InputError(f"there is no TensorRT flavour {flavour!r}", hint=f"one of {', '.join(_FLAVOURS)}")
        if streams < 1:
            raise InputError(f"{streams} streams are none", hint="give at least 1")
        self.backend = flavour
        self._path = Path(path)
        self._number = device
        self._trusted = trusted
        self._weights = None if weights is None else Path(weights)
        self._streams, self._graphs = streams, GRAPHS if cuda_graphs else 0
        self._engine: LoadedEngine | None = None
        self._lanes: _Lanes | None = None
        self.device_ms: float | None = None

    @property
    def engine(self) -> LoadedEngine:
        """The engine itself, to look into it while the runner is open."""
        self._check_open()
        assert self._engine is not None
        return self._engine

    def _open(self, stack: ExitStack) -> None:
        if not self._path.is_file():
            raise EngineError(f"there is no engine at {self._path}", hint="vitdeploy build-engine makes it")
        found = None if self._trusted else described(self._path)
        gpu = self._gpu()
        module, extra = _FLAVOURS[self.backend]
        trt = require(module, extra=extra)
        if found is not None:
            check_version(found.artifact, self.backend, str(trt.__version__), found.bundle.path)
            check_fit(found.artifact, gpu, found.bundle.path)
            check_source(found)
        cuda = _cuda_runtime(extra)
        data = read_engine(self._path, None if found is None else found.artifact)
        weights = self._weights if found is None else weights_of(found)
        select_device(cuda, self._number)
        stack.callback(self._release)
        self._engine = engine = LoadedEngine(trt, self._path.name, data, weights, graphs=self._graphs > 0)
        limit = 1 if engine.captures_itself else self._streams
        self._lanes = lanes = _Lanes(lambda: Lane(engine, cuda, self._number, graphs=self._graphs), limit)
        lanes.give(lanes.take())  # the first one now, so that what it lacks is said here
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

    def _release(self) -> None:
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.close()  # calls of other threads end first
        self._engine = None

    @property
    def device_memory(self) -> tuple[int, int] | None:
        """The memory of the GPU that the engine runs on."""
        return CUDA, self._number

    def infer_on_device(self, feeds: Mapping[str, DeviceArray]) -> _Arrays:
        """Run the engine once on uint8 inputs that lie on its GPU; see `infer`."""
        self._check_open()
        return self.infer_checked(feeds)

    def infer_checked(self, feeds: _Feeds) -> _Arrays:
        """`infer` for feeds that fit."""
        engine, lanes = self._engine, self._lanes
        if engine is None or lanes is None:  # closed by another thread since it was checked
            raise _closed()
        parts, device_ms = [], 0.0
        for profile, images in _pieces(engine, feeds):
            part, took = _on_a_lane(lanes, {name: array[images] for name, array in feeds.items()}, profile)
            parts.append(part)
            device_ms += took
        self.device_ms = device_ms
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _on_a_lane(lanes: _Lanes, feeds: _Feeds, profile: int) -> tuple[_Arrays, float]:
    """The answer, and the milliseconds that it took on the GPU."""
    while True:
        lane = lanes.take()
        try:
            answer, took = lane.run(feeds, profile), lane.device_ms or 0.0
        except OutOfMemory:
            if not lanes.give_up(lane):  # it is the only one there is
                raise
        except BaseException:
            lanes.give(lane)
            raise
        else:
            lanes.give(lane)
            return answer, took


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
    raise InputError(
        f"no profile of {engine.name} takes {asked}; it has {'; '.join(map(_words, engine.profiles))}",
        hint="build the engine again with a profile for it: vitdeploy build-engine --batch ... --image-size ...",
    )


def _words(profile: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {' x '.join(f'{r.minimum}..{r.maximum}' for r in ranges[:3])}" for name, ranges in profile.items()
    )


class _Lanes:
    """At most `limit` lanes: who asks for one gets a free one, or a new one, or waits for one."""

    def __init__(self, make: Callable[[], Lane], limit: int) -> None:
        self._make, self._limit = make, limit
        self._changed = threading.Condition()
        self._free: list[Lane] = []
        self._count = 0
        self._closed = False

    def take(self) -> Lane:
        """A lane that nobody else has until it is given back."""
        with self._changed:
            while not self._free and self._count >= self._limit and not self._closed:
                self._changed.wait()
            if self._closed:
                raise _closed()
            if self._free:
                return self._free.pop()  # the one that was used last is the warmest
            self._count += 1
        try:
            return self._make()
        except BaseException:
            self._lost()
            raise

    def give(self, lane: Lane) -> None:
        """Give a lane back."""
        with self._changed:
            self._free.append(lane)
            self._changed.notify_all()

    def give_up(self, lane: Lane) -> bool:
        """Release a lane for good where there are others, for want of memory; else just give it back and say False."""
        with self._changed:
            if self._count == 1:
                self._free.append(lane)
                self._changed.notify_all()
                return False
            self._limit = self._count - 1
        lane.release()
        self._lost()
        return True

    def close(self) -> None:
        """Wait until every lane was given back, and release them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while len(self._free) < self._count:
                self._changed.wait()
            lanes, self._free, self._count = self._free, [], 0
        for lane in lanes:
            lane.release()

    def _lost(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()


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
