"""Micro-batching: requests of several callers go through the graph together.

One thread takes what waits and runs it. Before it does, it waits for company: at most `max_delay_ms` from when it is
free and the first request is there, and only for as many as were under way at the end of the last batch, callers who
ask again as soon as they are answered. So a single caller never waits, and four wait for each other and nobody else.
A caller who is alone runs the graph itself, which saves the way to the thread and back.
A batch holds images of one size; a request that fails in a batch is run again on its own, so that it spoils no other.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import RunnerClosedError
from vitdeploy.runtime.admission import late

__all__ = ["MicroBatcher"]

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Run = Callable[[list[Pixels]], Logits]


@dataclass(eq=False)
class _Request:
    pixels: Pixels  # (height, width, 3)
    deadline: float | None
    answer: Future[Logits] = field(default_factory=Future)


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
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._alone = False  # a caller runs the graph itself
        self._company = 1  # requests under way when the last batch was answered
        self._enough = 1  # requests that the thread waits for
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="vitdeploy-batches", daemon=True)
        self._thread.start()

    def run_alone(self, pixels: Pixels) -> Logits | None:
        """The logits (classes,) of one image, computed in this thread if nobody else asks; else None.

        Raises:
            RunnerClosedError: closed, or in a forked process.
        """
        self._check_process()
        with self._changed:
            self._check_open()
            if self._alone or self._waiting or self._company > 1:
                return None
            self._alone = True
        try:
            logits: Logits = self._run([pixels])[0]
            return logits
        finally:
            with self._changed:
                self._alone = False
                self._company = 1 + len(self._waiting)
                self._changed.notify()

    def submit(self, pixels: Pixels, deadline: float | None) -> Future[Logits]:
        """Ask for the logits (classes,) of one image; cancelling the future withdraws what has not begun.

        The future raises DeadlineError if the deadline (of `time.monotonic`) passes before the graph is run.

        Raises:
            RunnerClosedError: closed, or in a forked process.
        """
        self._check_process()
        request = _Request(pixels, deadline)
        with self._changed:
            self._check_open()
            self._waiting.append(request)
            if len(self._waiting) >= self._enough:  # to wake the thread for less costs the callers time
                self._changed.notify()
        return request.answer

    def stop(self) -> None:
        """Take nothing more; what waits is still answered."""
        if self._process != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._changed.notify()

    def close(self) -> None:
        """`stop`, and wait until all is answered."""
        self.stop()
        if self._process == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join()

    def _check_process(self) -> None:
        if self._process != os.getpid():  # the lock may be held by a thread that is not here
            raise RunnerClosedError(
                "this classifier was opened before the process forked, and its threads are not here",
                hint="load the bundle in each worker process, after the fork",
            )

    def _check_open(self) -> None:
        if self._closed:
            raise RunnerClosedError("this classifier is closed", hint="load the bundle again")

    def _serve(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            self._answer(batch)
            with self._changed:
                self._company = len(batch) + len(self._waiting)
            del batch  # nothing is held while the next one is waited for

    def _next(self) -> list[_Request] | None:
        """The requests of the next batch; None when closed and all are answered."""
        with self._changed:
            while self._alone or not self._waiting:
                if self._closed and not self._alone:
                    return None
                self._changed.wait()
            self._wait_for_company()
            self._company = 2  # from here on nobody is alone
            return self._take()

    def _wait_for_company(self) -> None:
        until = time.monotonic() + self._max_delay_s
        self._enough = min(self._company, self._max_batch)
        while not self._closed and len(self._waiting) < self._enough:
            seconds = until - time.monotonic()
            if seconds <= 0:
                break
            self._changed.wait(seconds)
        self._enough = 1

    def _take(self) -> list[_Request]:
        """The oldest request and those that fit to it, in order; the others keep waiting in theirs."""
        shape = self._waiting[0].pixels.shape
        taken: list[_Request] = []
        kept: deque[_Request] = deque()
        for request in self._waiting:
            fits = request.pixels.shape == shape and len(taken) < self._max_batch
            (taken if fits else kept).append(request)
        self._waiting = kept
        return taken

    def _answer(self, batch: list[_Request]) -> None:
        now = time.monotonic()
        running = []
        for request in batch:
            if not request.answer.set_running_or_notify_cancel():
                continue
            if request.deadline is not None and request.deadline < now:
                request.answer.set_exception(late("before the request was run"))
                continue
            running.append(request)
        if running:
            self._infer(running)

    def _infer(self, running: list[_Request]) -> None:
        try:
            logits = self._run([request.pixels for request in running])
        except BaseException as error:
            if len(running) == 1:
                running[0].answer.set_exception(error)
                return
            for request in running:
                self._infer([request])
            return
        for request, row in zip(running, logits, strict=True):
            request.answer.set_result(row)
