"""An exception at a chosen line of Python code, as Ctrl-C raises one wherever the main thread happens to be."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType, ModuleType
from typing import Any

__all__ = ["Line", "in_new_threads", "lines_of", "raised_at"]

Line = tuple[str, int]  # file, number


def lines_of(run: Callable[[], object], modules: Iterable[ModuleType]) -> list[Line]:
    """The lines of the modules that `run` comes to in this thread, in the order of the first time."""
    found: dict[Line, None] = {}
    _traced(run, modules, lambda line: found.setdefault(line))
    return list(found)


def raised_at(line: Line, run: Callable[[], object], modules: Iterable[ModuleType], error: BaseException) -> bool:
    """Whether `error` was raised as `run` came to that line for the first time; nothing of it is left here."""
    raised = []

    def reached(at: Line) -> None:
        if at == line and not raised:
            raised.append(at)
            raise error

    try:
        _traced(run, modules, reached)
    except type(error) as caught:
        caught.__traceback__ = None
    return bool(raised)


def in_new_threads(modules: Iterable[ModuleType], reached: Callable[[Line], object]) -> Callable[[], None]:
    """Call `reached` at every line of the modules, in threads that start until what this gives is called."""
    threading.settrace(_tracer(modules, reached))
    return lambda: threading.settrace(None)  # type: ignore[arg-type]


def _traced(run: Callable[[], object], modules: Iterable[ModuleType], reached: Callable[[Line], object]) -> None:
    before = sys.gettrace()
    sys.settrace(_tracer(modules, reached))
    try:
        run()
    finally:
        sys.settrace(before)


def _tracer(modules: Iterable[ModuleType], reached: Callable[[Line], object]) -> Any:
    files = {module.__file__ for module in modules}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in files:
            return None
        if event == "line":
            reached((name, frame.f_lineno))
        return trace

    return trace
