"""Micro-batching: requests of several callers go through the graph together.

One thread takes what waits and runs it. Before it does, it waits for company: at most `max_delay_ms` from when it is
free and the first request is there, and only for as many as were under way at the end of the last batch, callers who
ask again as soon as they are answered. So a single caller never waits, and four wait for each other and nobody else.
A caller who is alone runs the graph itself, which saves the way to the thread and back.
A batch holds images of one size; a request that fails in a batch is run again on its own, so that it spoils no other.

Callers may be interrupted at any line (see `core.admission`): they take no lock that the thread needs, but append to a
deque, and hold the graph by a `Place`. What the thread meets with goes to the callers, and it goes on.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vitdeploy.core.admission import Answer, Place, Places, late
from vitdeploy.core.errors import RunnerClosedError

__all__ = ["MicroBatcher"]

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Run = Callable[[list[Pixels]], Logits]


@dataclass(eq=False)
class _Request:
    pixels: Pixels  # (height, width, 3)
    deadline: float | None
    answer: Answer[Logits] = field(default_factory=Answer)


class MicroBatcher:
    """Joins single images into batches for `run`: a list of uint8 (height, width, 3) -> logits (batch, classes).

    Args:
        run: one call of it runs at a time.
        max_batch: most images of one call.
        max_delay_ms: longest that a request waits for others while nothing runs, in milliseconds.
    """

    def __init__(self, run: Run, max_batch: int, max_delay_ms: float) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_delay_s = max_delay_ms / 1000
        self._graph = Places(1, refuse=False)  # who has the place runs the graph: the thread, or a caller who is alone
        self._arrived: deque[_Request] = deque()  # callers append, the thread takes
        self._kept: deque[_Request] = deque()  # the thread's own: those that did not fit into a batch
        self._running: list[_Request] = []  # the thread's own
        self._place: Place | None = None  # the thread's own, in `_graph`
        self._wake = threading.Lock()  # released to wake the thread
        self._closed = self._ended = False
        self._company = 1  # requests under way when the last batch was answered
        self._enough = 1  # requests that the thread waits for
        self._process = os.getpid()
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="vitdeploy-batches", daemon=True)
        self._thread.start()

    def run_alone(self, pixels: Pixels) -> Logits | None:
        """The logits (classes,) of one image, computed in this thread if nobody else asks; else None.

        Raises:
            RunnerClosedError: closed.
        """
        self._check_open()
        if self._company > 1 or self._arrived or self._kept:
            return None
        place = self._graph.take_free()
        if place is None:
            return None
        try:
            logits: Logits = self._run([pixels])[0]
            return logits
        finally:
            self._company = 1 + self._waiting
            self._graph.give(place)

    def submit(self, pixels: Pixels, deadline: float | None) -> Answer[Logits]:
        """Ask for the logits (classes,) of one image; cancelling the answer withdraws what has not begun.

        The answer is DeadlineError if the deadline (of `time.monotonic`) passes before the graph is run.

        Raises:
            RunnerClosedError: closed.
        """
        self._check_open()
        request = _Request(pixels, deadline)
        self._arrived.append(request)
        if self._ended:  # since it was checked
            self._fail_waiting(_closed())
        elif self._waiting >= self._enough:  # to wake the thread for less costs the callers time
            self._signal()
        return request.answer

    def stop(self) -> None:
        """Take nothing more; what waits is still answered."""
        if self._process == os.getpid():
            self._closed = True
            self._signal()

    def close(self) -> None:
        """`stop`, and wait until all is answered."""
        self.stop()
        if self._process == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def _waiting(self) -> int:
        return len(self._arrived) + len(self._kept)

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()

    def _signal(self) -> None:
        if self._wake.locked():
            try:
                self._wake.release()
            except RuntimeError:  # another caller was faster
                return

    def _serve(self) -> None:
        try:
            while self._step_safely():
                pass
        finally:
            if not self._closed:
                self._start()
            else:
                self._ended = True
                self._fail_waiting(_closed())

    def _step_safely(self) -> bool:
        try:
            return self._step()
        except BaseException as error:  # none of a request's own: nobody is to wait for ever
            self._fail_waiting(error)
            self._give_place()
            return True

    def _step(self) -> bool:
        """Answer the next batch; False: closed, and all are answered."""
        while not self._waiting:
            if self._closed:
                self._graph.take(None)  # who is alone is waited for
                self._graph.close()
                return False
            self._wake.acquire()
        self._place = self._graph.take(None)
        try:
            self._wait_for_company()
            self._company = 2  # from here on nobody is alone
            self._take()
            self._answer()
            self._company = len(self._running) + self._waiting
            self._running = []  # nothing is held while the next one is waited for
        finally:
            self._give_place()
        return True

    def _give_place(self) -> None:
        if self._place is not None:
            self._graph.give(self._place)

    def _wait_for_company(self) -> None:
        until = time.monotonic() + self._max_delay_s
        self._enough = min(self._company, self._max_batch)
        try:
            while not self._closed and self._waiting < self._enough:
                seconds = until - time.monotonic()
                if seconds <= 0:
                    break
                self._wake.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
        finally:
            self._enough = 1

    def _take(self) -> None:
        """The oldest request and those that fit to it are running, in order; the others keep waiting in theirs."""
        while self._arrived:
            self._kept.append(self._arrived.popleft())
        shape = self._kept[0].pixels.shape
        taken: list[_Request] = []
        kept: deque[_Request] = deque()
        for request in self._kept:
            fits = request.pixels.shape == shape and len(taken) < self._max_batch
            (taken if fits else kept).append(request)
        self._running, self._kept = taken, kept

    def _fail_waiting(self, error: BaseException) -> None:
        for request in self._running:
            request.answer.set(error=error)
        self._running = []
        while self._kept or self._arrived:
            (self._kept or self._arrived).popleft().answer.set(error=error)

    def _answer(self) -> None:
        now = time.monotonic()
        running = []
        for request in self._running:
            if request.answer.cancelled:
                continue
            if request.deadline is not None and request.deadline < now:
                request.answer.set(error=late("before the request was run"))
                continue
            running.append(request)
        if running:
            self._infer(running)

    def _infer(self, running: list[_Request]) -> None:
        try:
            logits = self._run([request.pixels for request in running])
        except BaseException as error:
            if len(running) == 1:
                running[0].answer.set(error=error)
                return
            for request in running:
                self._infer([request])
            return
        for request, row in zip(running, logits, strict=True):
            request.answer.set(row)


def _closed() -> RunnerClosedError:
    return RunnerClosedError("this classifier is closed", hint="load the bundle again")
