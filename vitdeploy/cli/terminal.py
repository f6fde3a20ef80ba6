"""What the terminal shows: progress bars and notes on standard error, JSON on standard output."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from vitdeploy.core.progress import Step
from vitdeploy.core.text import on_one_line, visible, visible_json

__all__ = ["RichReporter", "echo", "echo_json", "echo_problem", "errors_console", "new_console", "program"]

_REDRAW_SECONDS = 0.2
_COMMAND = re.compile(r"\b(vitdeploy|pip|sudo|curl) \S")


def program() -> str:
    """What to type to run vitdeploy again: its name if the shell finds it, else the path it was started by."""
    started = sys.argv[0]
    return started if Path(started).name == "vitdeploy" and shutil.which("vitdeploy") is None else "vitdeploy"


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line, with no character in it that the terminal would obey, and broken between words in a terminal."""
    click.echo(_wrapped(visible(str(text)), err=err), err=err)


def _wrapped(text: str, *, err: bool, before: str = "") -> str:
    """A line behind `before`, broken where the terminal ends; one with a command in it stays whole, to be copied."""
    console = new_console(stderr=err)
    if not console.is_terminal or len(before + text) <= console.width or _COMMAND.search(text):
        return text
    lines = textwrap.wrap(
        before + text.lstrip(),
        console.width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return "\n".join(lines).removeprefix(before)


def echo_json(value: Any) -> None:
    """Print `value`, or JSON that is text already, to standard output."""
    click.echo(visible_json(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)))


def echo_problem(kind: str, message: str, hint: str | None = None) -> None:
    """Print an error on standard error, as in "Error: ...", and its hint below."""
    for name, colour, text in ((kind, "red", message), ("Hint", "yellow", hint)):
        if text:
            click.secho(f"{name}: ", fg=colour, bold=True, nl=False, err=True)
            click.echo(_wrapped(on_one_line(text), err=True, before=f"{name}: "), err=True)


class _Visible:
    """Anything that Rich draws, with no character in it that the terminal would obey."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._inner, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._inner)


class _MakeVisible(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(each) for each in renderables]


def new_console(*, stderr: bool = False) -> Console:
    """A console for tables and text of any origin: it takes no markup, and lets no control character through."""
    made = Console(stderr=stderr, highlight=False, markup=False)
    made.push_render_hook(_MakeVisible())
    return made


errors_console = new_console(stderr=True)


class _OneLine(TextColumn):
    """A text that gives way, with an ellipsis, where the line is too long; the columns beside it keep theirs."""

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


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
            self._progress.update(self._task, detail=on_one_line(detail))
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
            _OneLine("{task.description}", markup=False, table_column=Column()),
            BarColumn(bar_width=28 if errors_console.width >= 100 else 12, table_column=Column(no_wrap=True)),
            _OneLine("{task.fields[detail]}", markup=False, table_column=Column()),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
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
        task = self._progress.add_task(on_one_line(description), total=total, detail="")
        try:
            with _ticking(self._progress, total is None):
                yield _RichStep(self._progress, task, total, unit)
            done = self._progress.tasks[self._progress.task_ids.index(task)].completed
            self._progress.update(task, total=done or 1, completed=done or 1)
        finally:
            if outer:
                self._stop()

    def note(self, message: str) -> None:
        whole = not errors_console.is_terminal or _COMMAND.search(message) is not None
        errors_console.print(message, markup=False, soft_wrap=whole)
