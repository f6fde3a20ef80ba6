"""An exception at any line of batching, admission and the classifier: it answers afterwards, and closes.

Ctrl-C comes in the main thread, between any two lines. So each way through the code is walked once to learn its lines,
and then once for each of them, with KeyboardInterrupt raised there.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.any_line import Line, in_new_threads, lines_of, raised_at
from tests.tools.fuzz import rounds
from vitdeploy import Classifier, load
from vitdeploy.core import admission
from vitdeploy.core.admission import Places
from vitdeploy.core.errors import VitdeployError
from vitdeploy.runtime import batching, classifier
from vitdeploy.runtime.batching import MicroBatcher

MODULES = (batching, admission, classifier)
SECONDS = 60  # longest that a test waits for what has to happen
IMAGE = np.zeros((32, 32, 3), np.uint8)


def elsewhere(work: Callable[[], Any]) -> Any:
    """What `work` gives in another thread; a thread that hangs is left behind."""
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(work()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert given, "it never came back"
    return given[0]


def alone(opened: Classifier) -> None:
    opened.predict(IMAGE)


def with_others(opened: Classifier) -> None:
    assert opened._batcher is not None
    opened._batcher._company = 2
    opened.predict(IMAGE)


def in_line(opened: Classifier) -> None:
    """The only place is another's for a moment."""
    held = [opened._places.take(None)]
    timer = threading.Timer(0.02, lambda: [opened._places.give(place) for place in held])
    timer.start()
    try:
        with_others(opened)
    finally:
        timer.join()


def in_an_event_loop(opened: Classifier) -> None:
    asyncio.run(opened.predict_async(IMAGE))


@pytest.mark.parametrize("way", [alone, with_others, in_line, in_an_event_loop], ids=lambda way: way.__name__)
def test_it_answers_after_ctrl_c_at_any_line_and_closes(tiny_bundle: Path, way: Callable[[Classifier], None]) -> None:
    with load(tiny_bundle, "onnxruntime", "fp32", threads=1, max_batch=4, max_queue=1) as opened:
        way(opened)
        lines = lines_of(lambda: way(opened), MODULES)
        assert len(lines) > 20
        raised = 0
        for line in lines:
            raised += raised_at(line, lambda: way(opened), MODULES, KeyboardInterrupt())
            assert elsewhere(lambda: opened.predict(IMAGE).label), line
            until = time.monotonic() + SECONDS
            while opened.pending:
                assert time.monotonic() < until, line
                time.sleep(0.001)
        assert raised > 0.8 * len(lines)  # a few depend on how fast the others are
        elsewhere(lambda: (opened.close(), True)[1])


@pytest.mark.fuzz
def test_it_answers_after_ctrl_c_at_drawn_lines_of_drawn_ways(tiny_bundle: Path) -> None:
    """As the one above, and it is broken off again on its way out, and while it is still broken."""
    draw, ways = random.Random(0), (alone, with_others, in_line, in_an_event_loop)
    with load(tiny_bundle, "onnxruntime", "fp32", threads=1, max_batch=4, max_queue=1) as opened:
        lines = {way: lines_of(lambda way=way: way(opened), MODULES) for way in ways}
        for _ in range(rounds(20)):
            way, hit = draw.choice(ways), []
            for _ in range(draw.randint(2, 4)):
                hit.append(draw.choice(lines[way]))
                with suppress(VitdeployError):  # the only place may be one that is given back a moment later
                    raised_at(hit[-1], lambda way=way: way(opened), MODULES, KeyboardInterrupt())
            assert elsewhere(lambda: opened.predict(IMAGE).label), (way, hit)
        elsewhere(lambda: (opened.close(), True)[1])


def test_it_closes_after_ctrl_c_at_any_line_of_close(tiny_bundle: Path) -> None:
    def opened() -> Classifier:
        made = load(tiny_bundle, "onnxruntime", "fp32", threads=1, max_batch=4)
        asyncio.run(made.predict_async(IMAGE))
        return made

    first = opened()
    for line in lines_of(first.close, MODULES):
        broken = opened()
        assert raised_at(line, broken.close, MODULES, KeyboardInterrupt()), line
        assert elsewhere(lambda broken=broken: (broken.close(), True)[1]), line
        assert broken._runner._stack is None, line  # type: ignore[attr-defined]


def served(batcher: MicroBatcher) -> Any:
    """An answer, or the error that came in its place."""
    try:
        return int(batcher.submit(np.full((2, 2, 3), 7, np.uint8), None).result(SECONDS)[0])
    except (VitdeployError, RuntimeError) as error:
        return error


def run(images: list[np.ndarray]) -> np.ndarray:
    return np.array([[pixels[0, 0, 0]] for pixels in images], np.float32)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is replaced by another
def test_the_thread_that_runs_batches_survives_an_error_at_any_of_its_lines() -> None:
    seen: dict[Line, None] = {}
    wanted: list[Line] = []

    def reached(line: Line) -> None:
        seen.setdefault(line)
        if line in wanted:
            wanted.clear()
            raise RuntimeError("at this line")

    done = in_new_threads((batching, admission), reached)
    try:
        batcher = MicroBatcher(run, 4, 0)
        assert [served(batcher) for _ in range(3)] == [7, 7, 7]
        lines = list(seen)
        assert len(lines) > 25
        for line in lines:
            wanted[:] = [line]
            served(batcher)
            wanted.clear()
            assert served(batcher) == 7, line
            assert batcher.run_alone(np.full((2, 2, 3), 7, np.uint8)) is not None or batcher._company > 1
        elsewhere(lambda: (batcher.close(), True)[1])
    finally:
        done()


def test_a_caller_in_line_is_served_though_the_one_before_was_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever line of `give` another thread was stopped at."""
    monkeypatch.setattr(admission, "_LOOK", 0.02)  # who was told nothing looks again soon

    def handed_on(places: Places) -> Callable[[], None]:
        held = places.take(None)
        return lambda: places.give(held)

    places = Places(1, refuse=False)
    lines = []
    for attempt in range(100):
        give = handed_on(places)
        turn: list[Any] = []
        thread = threading.Thread(target=lambda turn=turn: turn.append(places.take(None)), daemon=True)
        thread.start()
        while not places._line:
            time.sleep(0.001)
        if attempt == 0:
            lines = lines_of(give, [admission])
        else:
            raised_at(lines[attempt - 1], give, [admission], KeyboardInterrupt())
        del give
        thread.join(SECONDS)
        assert turn, lines[attempt - 1]
        places.give(turn[0])
        assert places.taken == 0
        if attempt == len(lines):
            break
