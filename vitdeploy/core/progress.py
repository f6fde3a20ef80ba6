"""Progress of long steps: the library reports, whoever runs it decides how that looks.

Library code writes

    with progress.task("Calibrating", total=128, unit="images") as step:
        for image in images:
            ...
            step.advance()

and knows nothing of terminals. Silent by default; the command line installs a reporter with `use`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol

from vitdeploy.core import interrupts

__all__ = ["Reporter", "Step", "by_default", "detail", "note", "silent", "task", "use"]


class Step(Protocol):
    """One running step."""

    def advance(self, amount: float = 1) -> None:
        """Say that `amount` more units are done."""

    def update(self, *, completed: float | None = None, total: float | None = None, detail: str | None = None) -> None:
        """Set what is done, what there is in all, or a few words on the current phase."""


class Reporter(Protocol):
    """Where progress goes."""

    def task(self, description: str, total: float | None, unit: str) -> AbstractContextManager[Step]:
        """Open a step; leaving the context closes it."""

    def note(self, message: str) -> None:
        """Say one line that stays: a tick with its tolerance, a warning in plain words."""


class _SilentStep:
    def advance(self, amount: float = 1) -> None:
        pass

    def update(self, *, completed: float | None = None, total: float | None = None, detail: str | None = None) -> None:
        pass


def silent() -> AbstractContextManager[Step]:
    """A step that shows nothing."""
    return nullcontext(_SilentStep())


class _Silent:
    def task(self, description: str, total: float | None, unit: str) -> AbstractContextManager[Step]:
        return silent()

    def note(self, message: str) -> None:
        pass


_SILENT = _Silent()
_default: Reporter = _SILENT
_reporter: ContextVar[Reporter | None] = ContextVar("vitdeploy_progress", default=None)
_verbose: ContextVar[bool] = ContextVar("vitdeploy_verbose", default=False)


@contextmanager
def task(description: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
    """Open a step named `description` of `total` units (None: not known).

    Raises:
        KeyboardInterrupt: a Ctrl-C was lost on the way, see `vitdeploy.core.interrupts`.
    """
    interrupts.check()
    with _current().task(description, total, unit) as step:
        yield step
        interrupts.check()


def note(message: str) -> None:
    """Report one line that stays on the screen."""
    _current().note(message)


def by_default(reporter: Reporter | None) -> None:
    """Send progress to `reporter` wherever no `use` says otherwise, in every thread; None: nowhere."""
    global _default
    _default = reporter or _SILENT


def _current() -> Reporter:
    return _reporter.get() or _default


def detail(message: str) -> None:
    """Report one line that only those who asked for more want to read."""
    if _verbose.get():
        note(message)


@contextmanager
def use(reporter: Reporter, *, verbose: bool = False) -> Iterator[None]:
    """Send progress to `reporter` inside the block; `verbose`: details too."""
    tokens = _reporter.set(reporter), _verbose.set(verbose)
    try:
        yield
    finally:
        _reporter.reset(tokens[0])
        _verbose.reset(tokens[1])
