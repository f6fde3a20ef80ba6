"""What every backend is: a runner with inputs, outputs and `infer`, that acquires on entering and releases on leaving."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import InputError, RunnerClosedError
from vitdeploy.specs import TensorSpec

__all__ = ["BaseRunner", "Runner", "check_feeds", "dynamic_shape"]

Array = npt.NDArray[Any]


class Runner(Protocol):
    """Runs one form of a model on one backend.

    The constructor does no I/O. Entering acquires, leaving releases in reverse order and may be done twice; use outside
    raises RunnerClosedError. `infer` checks names, dtypes and shapes, and returns arrays that the caller owns.
    """

    backend: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class BaseRunner:
    """The life of a runner; a backend gives `_open`, which acquires on the stack, and `_run`."""

    backend = ""

    def __init__(self) -> None:
        self._stack: ExitStack | None = None
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()

    def _open(self, stack: ExitStack) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Acquire, registering each release on `stack`; returns inputs and outputs."""
        raise NotImplementedError

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on checked feeds."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        if self._stack is not None:
            raise RunnerClosedError("this runner is open already", hint="make a second one")
        with ExitStack() as stack:
            self._inputs, self._outputs = self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        self._check_open()
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        self._check_open()
        return self._outputs

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model.

        Args:
            feeds: an array for each input, of its dtype and shape.

        Raises:
            RunnerClosedError: outside the `with` block.
            InputError: a name, dtype or shape that the model does not take.
        """
        self._check_open()
        check_feeds(self._inputs, feeds)
        return self._run(feeds)

    def _check_open(self) -> None:
        if self._stack is None:
            raise RunnerClosedError(
                f"the {self.backend} runner is closed", hint="use it inside `with ... as runner:`"
            )


def check_feeds(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> None:
    """Raise InputError where feeds do not fit inputs: names, dtype, rank, fixed dimensions, emptiness."""
    if len(feeds) != len(inputs) or any(spec.name not in feeds for spec in inputs):
        raise InputError(
            f"the model takes {', '.join(spec.name for spec in inputs)}, got {', '.join(feeds) or 'nothing'}",
            hint="feed every input by its name",
        )
    for spec in inputs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"{spec.name} is a {type(array).__name__}", hint="feed a NumPy array")
        if array.dtype.name != spec.dtype:
            raise InputError(
                f"{spec.name} is {array.dtype.name}, the model takes {spec.dtype}",
                hint="feed raw pixels 0..255; preprocessing is in the graph" if spec.dtype == "uint8" else None,
            )
        wanted = "(" + ", ".join(map(str, spec.shape)) + ")"
        fits = array.ndim == len(spec.shape) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, array.shape, strict=False)
        )
        if not fits or 0 in array.shape:
            raise InputError(
                f"{spec.name} has shape {array.shape}, the model takes {wanted}",
                hint="every dimension must hold at least one element" if fits else None,
            )


def dynamic_shape(dims: Any) -> tuple[int | str, ...]:
    """A shape as backends give it, with a name for each dimension that is not fixed."""
    return tuple(dim if isinstance(dim, int) and dim >= 0 else str(dim or f"dim{i}") for i, dim in enumerate(dims))
