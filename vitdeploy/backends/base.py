"""What every backend is to its callers: the runner protocol, its lifetime, and the checks of what is fed."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.dlpack import DeviceArray
from vitdeploy.core.errors import InputError, RunnerClosedError
from vitdeploy.core.specs import ShapeRange, TensorSpec

__all__ = ["Arrays", "DeviceRunner", "Ranges", "Runner", "RunnerBase", "check_feed", "check_feeds", "never_free"]

Arrays = Mapping[str, npt.NDArray[Any]]
Ranges = Mapping[str, tuple[ShapeRange, ...]]
_Self = TypeVar("_Self", bound="RunnerBase")


class Runner(Protocol):
    """A graph that can be run inside a `with` block.

    The constructor does no I/O; entering loads, leaving releases in reverse order. `infer` may be called from several
    threads; what it returns belongs to the caller.
    """

    backend: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` must be fed."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` returns."""

    @property
    def ranges(self) -> Ranges:
        """What the dimensions of an input may be, where the backend sets limits (engines do); else no entry."""

    def __enter__(self: Any) -> Any:
        """Load the graph."""

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None:
        """Release it; a second time does nothing."""

    def infer(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once on one array per input, by name."""

    def infer_checked(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`infer` for C-contiguous feeds that are known to fit the inputs, in the process that opened it."""


@runtime_checkable
class DeviceRunner(Protocol):
    """The second, optional protocol: inputs in the memory of the runner's own device are used where they lie."""

    @property
    def device_memory(self) -> tuple[int, int] | None:
        """DLPack's kind and number of that device; None where there is none but the machine's own memory."""

    def infer_on_device(self, feeds: Mapping[str, DeviceArray]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once on inputs on that device; the results are arrays here, the caller's."""


class RunnerBase(ABC):
    """The part of a runner that is the same for every backend: lifetime and checks.

    A backend says in `_open` how to load (and registers on the stack how to release), in `infer_checked` how to run.
    """

    backend: str

    def __init__(self) -> None:
        self._stack: ExitStack | None = None
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()
        self._ranges: Ranges = {}
        self._process = 0

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` must be fed; known once the runner is open."""
        self._check_open()
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` returns; known once the runner is open."""
        self._check_open()
        return self._outputs

    @property
    def ranges(self) -> Ranges:
        """Per input, what each dimension may be; no entry where the backend sets no limits."""
        self._check_open()
        return self._ranges

    def __enter__(self: _Self) -> _Self:
        if self._stack is not None:
            raise InputError(f"this {type(self).__name__} is open already", hint="make one runner per `with` block")
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        self._process = os.getpid()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release what entering acquired, in reverse order; a second time does nothing, nor does it in a fork."""
        stack, self._stack = self._stack, None
        if stack is None:
            return
        if self._process == os.getpid():
            stack.close()
        else:
            never_free(self)

    def __del__(self) -> None:
        """Release what nobody closed: GPU memory is not Python's to collect."""
        if not self._holds():
            return
        if self._process != os.getpid() or not sys.is_finalizing():
            self.close()

    def _holds(self) -> bool:
        """Whether there is something to release."""
        return getattr(self, "_stack", None) is not None

    def infer(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once.

        Args:
            feeds: for each input its array, of exactly the input's dtype and rank.

        Returns:
            For each output its array, owned by the caller: no later call changes it.

        Raises:
            RunnerClosedError: outside the `with` block, or in a process forked after it was entered.
            InputError: a name, dtype or shape that does not fit, or not enough memory for it.
        """
        self._check_open()
        return self.infer_checked(check_feeds(feeds, self._inputs, self._ranges))

    def _check_open(self) -> None:
        if self._stack is None:
            raise self._closed()
        if self._process != os.getpid():
            raise RunnerClosedError(
                f"this {type(self).__name__} was opened before the process forked, and its threads are not here",
                hint="load the bundle in each worker process, after the fork",
            )

    def _closed(self) -> RunnerClosedError:
        return RunnerClosedError(
            f"this {type(self).__name__} is closed", hint="use it inside `with runner:`, or load the bundle again"
        )

    @abstractmethod
    def _open(self, stack: ExitStack) -> None:
        """Load, put every release on `stack`, set `_inputs`, `_outputs` and, where there are limits, `_ranges`."""

    @abstractmethod
    def infer_checked(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`infer` for C-contiguous feeds that fit, in a process that may run it: the caller has made sure of both."""


def never_free(value: Any, keep: Any = ctypes.pythonapi.Py_IncRef) -> None:
    """Keep what a backend made until a forked process ends: to free it would wait for threads that are not there."""
    keep(ctypes.py_object(value))


def check_feeds(feeds: Arrays, inputs: tuple[TensorSpec, ...], ranges: Ranges) -> dict[str, npt.NDArray[Any]]:
    """The feeds, C-contiguous, after each was compared with its input.

    Raises:
        InputError: a name is missing or unknown, or an array does not fit its input.
    """
    checked = {}
    for spec in inputs:
        array = feeds.get(spec.name)
        if array is None:
            raise InputError(f"the input {spec.name!r} is missing", hint=f"feed {describe(spec)}")
        check_feed(array, spec, ranges.get(spec.name))
        checked[spec.name] = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    if len(feeds) > len(checked):
        unknown = ", ".join(repr(name) for name in feeds if name not in checked)
        raise InputError(
            f"there is no input {unknown}", hint=f"this graph has: {', '.join(describe(spec) for spec in inputs)}"
        )
    return checked


def check_feed(array: Any, spec: TensorSpec, ranges: tuple[ShapeRange, ...] | None = None) -> None:
    """Compare one array with its input.

    Raises:
        InputError: it is not an array, or its dtype, rank or a dimension does not fit.
    """
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"the input {spec.name!r} is a {type(array).__name__}, not a NumPy array", hint=f"feed {describe(spec)}"
        )
    if _name(array.dtype) != spec.dtype:
        raise InputError(
            f"the input {spec.name!r} is {_name(array.dtype)}, not {spec.dtype}",
            hint=f"feed {describe(spec)}" + (": pixels 0..255, not yet normalised" if spec.dtype == "uint8" else ""),
        )
    if array.ndim != len(spec.shape):
        raise InputError(
            f"the input {spec.name!r} has {array.ndim} dimensions {array.shape}, not {len(spec.shape)}",
            hint=f"feed {describe(spec)}",
        )
    for axis, (size, wanted) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(wanted, int):
            if size != wanted:
                raise InputError(
                    f"the input {spec.name!r} has the shape {array.shape}; dimension {axis} must be {wanted}",
                    hint=f"feed {describe(spec)}",
                )
        elif size == 0:
            raise InputError(
                f"the input {spec.name!r} is empty: its shape is {array.shape}", hint="feed at least one element"
            )
        if ranges is not None and not ranges[axis].minimum <= size <= ranges[axis].maximum:
            raise InputError(
                f"the input {spec.name!r} has the shape {array.shape}; this engine takes {_dimension(wanted, axis)} of"
                f" {ranges[axis].minimum} to {ranges[axis].maximum}",
                hint="build the engine again with a wider range, or use another form of the bundle",
            )


@functools.lru_cache(64)  # NumPy makes the name anew each time, by a function of its own
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.isnative else f"{dtype.name} of the other byte order"


def _dimension(wanted: int | str, axis: int) -> str:
    return wanted if isinstance(wanted, str) else f"dimension {axis}"


def describe(spec: TensorSpec) -> str:
    """An input or output in words: `image`: uint8 (batch, height, width, 3)."""
    return f"{spec.name!r}: {spec.dtype} ({', '.join(map(str, spec.shape))})"
