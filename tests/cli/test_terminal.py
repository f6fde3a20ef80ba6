"""Progress in a terminal: how far a step is, and that no thread draws beside one that says it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from tests.tools.threads import Threads
from vitdeploy.cli import terminal
from vitdeploy.cli.terminal import RichReporter


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What stands in a terminal of 120 columns without colours, where bars that are not full are just shorter."""
    page = io.StringIO()
    console = Console(file=page, width=120, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "errors_console", console)
    return page


def wait_until(seen: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_bar_is_as_long_as_its_step_is_far(page: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_REDRAW_SECONDS", -1.0)  # each time, not some times a second
    with RichReporter() as reporter, reporter.task("Judging", 40, "images") as step:
        step.advance(10)
        step.update(completed=20)
        step.update(total=80)
        step.update(completed=60, detail="the last ones")
    lines = [line for line in page.getvalue().splitlines() if "Judging" in line]
    bars = {words: next(line for line in lines if words in line).count("━") for words in ("10/40", "20/40", "20/80")}
    assert bars == {"10/40": 7, "20/40": 14, "20/80": 7}
    assert next(line for line in lines if "the last ones" in line).count("━") == 21
    assert lines[-1].count("━") == 28 and "✓" in lines[-1]


def test_only_a_step_of_unknown_length_is_drawn_by_a_thread(page: io.StringIO) -> None:
    threads = Threads()
    with RichReporter() as reporter:
        with reporter.task("Opening", None, ""):
            assert len(threads.begun()) == 1
            drawn = len(page.getvalue())
            wait_until(lambda: len(page.getvalue()) > drawn)
        with reporter.task("Measuring", 4, "calls"):
            assert threads.begun() == []
    assert threads.begun() == []
