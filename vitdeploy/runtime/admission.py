"""How many requests are under way: a bounded number of places, a line before them, and deadlines.

A request holds a place from when it is accepted until it is answered. When all are taken, the next one waits in line
(first come, first served), in a thread or in an event loop, or is refused.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from vitdeploy.errors import DeadlineError, InputError, QueueFullError, RunnerClosedError

__all__ = ["Places", "deadline_after", "late", "left", "result_by", "result_by_async"]

_T = TypeVar("_T")


def deadline_after(timeout_ms: float | None) -> float | None:
    """The point of `time.monotonic` in that many milliseconds; None: never.

    Raises:
        InputError: it is no number over 0.
    """
    if timeout_ms is None:
        return None
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, (int, float)) or not timeout_ms > 0:
        raise InputError(f"timeout_ms is {timeout_ms!r}", hint="give milliseconds over 0, or None for no deadline")
    return time.monotonic() + timeout_ms / 1000


def left(deadline: float | None) -> float | None:
    """Seconds until then, 0 when it has passed; None: no end."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def late(where: str) -> DeadlineError:
    """The error for a request whose deadline passed `where`."""
    return DeadlineError(
        f"the deadline passed {where}", hint="allow more time with timeout_ms, or send fewer requests at a time"
    )


def result_by(future: Future[_T], deadline: float | None, where: str) -> _T:
    """What a future gives, waited for in this thread; when it comes to nothing it is cancelled.

    Raises:
        DeadlineError: not before the deadline.
    """
    try:
        return future.result(left(deadline))
    except FutureTimeoutError as error:
        future.cancel()
        raise late(where) from error
    except BaseException:
        future.cancel()
        raise


async def result_by_async(future: Future[_T], deadline: float | None, where: str) -> _T:
    """`result_by` for an event loop, which goes on meanwhile."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), left(deadline))
    except asyncio.TimeoutError as error:
        raise late(where) from error


class Places:
    """At most `limit` requests at a time. With `refuse` there is no line: who finds all places taken gets an error."""

    def __init__(self, limit: int, *, refuse: bool) -> None:
        self._limit = limit
        self._refuse = refuse
        self._lock = threading.Lock()
        self._taken = 0
        self._line: deque[Future[None]] = deque()
        self._closed = False

    @property
    def taken(self) -> int:
        """Requests that are under way."""
        return self._taken

    def take(self, deadline: float | None) -> None:
        """Take a place; blocks while there is none.

        Raises:
            DeadlineError: none was free before the deadline.
            QueueFullError: none is free, and there is no line.
            RunnerClosedError: closed, before or meanwhile.
        """
        turn = self._turn()
        if turn is None:
            return
        try:
            result_by(turn, deadline, "while it waited in line")
        except BaseException:
            self._abandon(turn)
            raise

    async def take_async(self, deadline: float | None) -> None:
        """`take` for an event loop, which goes on meanwhile."""
        turn = self._turn()
        if turn is None:
            return
        try:
            await result_by_async(turn, deadline, "while it waited in line")
        except BaseException:
            self._abandon(turn)
            raise

    def give(self) -> None:
        """Give a place back: to the first in line who still waits."""
        while True:
            with self._lock:
                if not self._line:
                    self._taken -= 1
                    return
                turn = self._line.popleft()
            try:
                turn.set_result(None)
                return
            except InvalidStateError:  # who waited has left
                continue

    def close(self) -> None:
        """Refuse whoever waits and whoever comes; who has a place keeps it."""
        with self._lock:
            self._closed = True
            line, self._line = self._line, deque()
        for turn in line:
            try:
                turn.set_exception(_closed())
            except InvalidStateError:
                continue

    def _turn(self) -> Future[None] | None:
        """None: the place is taken. Else what will be done when there is one."""
        with self._lock:
            if self._closed:
                raise _closed()
            if self._taken < self._limit:
                self._taken += 1
                return None
            if self._refuse:
                raise QueueFullError(
                    f"{self._limit} requests are under way, and no more are taken",
                    hint="try again later, or raise max_queue or take when_full='wait' in load()",
                )
            turn: Future[None] = Future()
            self._line.append(turn)
            return turn

    def _abandon(self, turn: Future[Any]) -> None:
        """Leave the line; a place that came at that moment goes to the next."""
        if not turn.cancel() and turn.exception() is None:
            self.give()
            return
        with self._lock:
            if turn in self._line:
                self._line.remove(turn)


def _closed() -> RunnerClosedError:
    return RunnerClosedError("this classifier is closed", hint="load the bundle again")
