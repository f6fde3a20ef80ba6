"""Progress in a notebook: a bar and a line for each step, without ipywidgets; elsewhere the bars of the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import Any

from vitdeploy.core import progress

__all__ = ["NotebookReporter", "show_progress"]

_REDRAW_SECONDS = 0.2


def show_progress(shown: bool = True) -> None:
    """Show the progress of every call from now on, in all threads: bars in a notebook or a terminal; False: no more.

    Example:
        vitdeploy.show_progress()
        vitdeploy.finetune(config)
    """
    if not shown:
        progress.by_default(None)
    elif _in_notebook():
        progress.by_default(NotebookReporter())
    else:
        from vitdeploy.cli.terminal import RichReporter

        progress.by_default(RichReporter())


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    found = None if shell is None else shell.get_ipython()
    return found is not None and hasattr(found, "kernel")


class _Bar:
    """One step: a display of the notebook that is drawn anew, at most five times a second."""

    def __init__(self, description: str, total: float | None, unit: str) -> None:
        shell: Any = import_module("IPython.display")
        self._html, self._begun, self._drawn = shell.HTML, time.monotonic(), 0.0
        self._description, self._total, self._unit = description, total, unit
        self._done, self._detail = 0.0, ""
        self._display: Any = shell.display(self._html(self._drawing(ended=False)), display_id=True)

    def advance(self, amount: float = 1) -> None:
        self.update(completed=self._done + amount)

    def update(self, *, completed: float | None = None, total: float | None = None, detail: str | None = None) -> None:
        self._total = self._total if total is None else total
        self._done = self._done if completed is None else completed
        self._detail = self._detail if detail is None else detail
        if time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self.draw(ended=False)

    def draw(self, *, ended: bool) -> None:
        self._drawn = time.monotonic()
        if self._display is not None:
            self._display.update(self._html(self._drawing(ended=ended)))

    def _drawing(self, *, ended: bool) -> str:
        known = "" if self._total is None else f" max='{self._total:g}' value='{self._done:g}'"
        words = self._detail or ("" if self._total is None else f"{self._done:g}/{self._total:g} {self._unit}")
        mark = "✓" if ended else f"<progress{known}></progress>"
        return f"{mark} {escape(self._description)} {escape(words)} {time.monotonic() - self._begun:.0f} s"


class NotebookReporter:
    """Draws steps below the cell that runs."""

    @contextmanager
    def task(self, description: str, total: float | None, unit: str) -> Iterator[progress.Step]:
        """A bar that stays, with a tick, when the step is done."""
        bar = _Bar(description, total, unit)
        yield bar
        bar.draw(ended=True)

    def note(self, message: str) -> None:
        """A line below the bars."""
        print(message)
