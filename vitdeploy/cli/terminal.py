"""What the terminal shows: progress bars and notes on standard error, JSON on standard output."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitdeploy.progress import Step

__all__ = ["RichReporter", "echo_json", "errors_console", "program"]

errors_console = Console(stderr=True, highlight=False)
_REDRAW_SECONDS = 0.2


def program() -> str:
    """What to type to run vitdeploy again: its name if the shell finds it, else the path it was started by."""
    started = sys.argv[0]
    return started if Path(started).name == "vitdeploy" and shutil.which("vitdeploy") is None else "vitdeploy"


def echo_json(value: Any) -> None:
    """Print `value` to standard output as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


class _RichStep:
    def __init__(self, progress: Progress, task: TaskID, total: float | None, unit: str) -> None:
        self._progress, self._task, self._total, self._unit = progress, task, total, unit
        self._done = 0.0
        self._drawn = time.monotonic()
        self._show()

    def advance(self, amount: float = 1) -> None:
        self.update(completed=self._done + amount)

    def update(self, *, completed: float | None = None, total: float | None = None, detail: str | None = None) -> None:
        if total is not None:
            self._total = total
        if completed is not None:
            self._done = completed
        self._progress.update(self._task, completed=self._done, total=self._total)
        self._show(detail)
        if time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._progress.refresh()
            self._drawn = time.monotonic()

    def _show(self, detail: str | None = None) -> None:
        if detail is not None:
            self._progress.update(self._task, detail=detail)
        elif self._total is not None and self._unit:
            self._progress.update(self._task, detail=f"{self._done:g}/{self._total:g} {self._unit}")


@contextmanager
def _ticking(progress: Progress, wanted: bool) -> Iterator[None]:
    """Keep the clock of a step that can't say how far it is running."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_REDRAW_SECONDS):
            progress.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if wanted:
            thread.join()


class RichReporter:
    """Bars that stay when they are done when a terminal watches; one line a step when none does."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=errors_console,
            auto_refresh=False,  # a thread that draws would steal time from what is being measured
        )
        self._live = False

    def __enter__(self) -> RichReporter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live:
            self._progress.stop()
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._live = False

    @contextmanager
    def task(self, description: str, total: float | None, unit: str) -> Iterator[Step]:
        outer = not self._live
        if outer:
            self._progress.start()
            self._live = True
        task = self._progress.add_task(description, total=total, detail="")
        try:
            with _ticking(self._progress, total is None):
                yield _RichStep(self._progress, task, total, unit)
            done = self._progress.tasks[self._progress.task_ids.index(task)].completed
            self._progress.update(task, total=done or 1, completed=done or 1)
        finally:
            if outer:
                self._stop()

    def note(self, message: str) -> None:
        errors_console.print(message, markup=False)
