"""How many requests are under way: a bounded number of places, a line before them, and deadlines.

A request holds a place from when it is accepted until it is answered. When all are taken, the next one waits in line
(first come, first served), in a thread or in an event loop, or is refused.

An exception may come at any line: Ctrl-C does, in the main thread. So no state says that something is under way beyond
the caller's own `Place`: what the caller drops on its way out, by an exception too, is given back by that. Locks are
held for a few lines, by `with` on locks written in C, which Ctrl-C can't leave locked as it can a Condition or a
Future; and who waits looks again every `_LOOK` seconds, for what was given and not said.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from vitdeploy.core.errors import DeadlineError, InputError, QueueFullError, RunnerClosedError

__all__ = ["Answer", "Place", "Places", "deadline_after", "late", "left", "result_by", "result_by_async"]

_T = TypeVar("_T")
_LOOK = 0.5


def deadline_after(timeout_ms: float | None) -> float | None:
    """The point of `time.monotonic` in that many milliseconds; None: never.

    Raises:
        InputError: it is not a number over 0.
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


class Answer(Generic[_T]):
    """What a thread will give to one caller, who waits for it in a thread or in an event loop."""

    __slots__ = ("_given", "_heard", "_ready", "cancelled")

    def __init__(self) -> None:
        self._given: list[tuple[_T | None, BaseException | None]] = []  # the first counts
        self._ready = threading.Lock()
        self._ready.acquire()
        self._heard: Callable[[], object] | None = None
        self.cancelled = False

    def set(self, value: _T | None = None, error: BaseException | None = None) -> None:
        """Give it, or the error that comes in its place; a second time changes nothing."""
        self._given.append((value, error))
        try:
            self._ready.release()
        except RuntimeError:  # it was given before
            return
        if self._heard is not None:
            self._heard()

    def cancel(self) -> bool:
        """Say that nobody waits; False: it was given already."""
        self.cancelled = True
        return not self._given

    def wait(self, seconds: float | None) -> bool:
        """Whether it was given in that time; None: wait for ever."""
        return bool(self._given) or self._ready.acquire(timeout=-1 if seconds is None else seconds)

    def result(self, seconds: float | None = None) -> _T:
        """The answer, waited for; raises the error that came in its place, or TimeoutError."""
        if not self.wait(seconds):
            raise TimeoutError
        value, error = self._given[0]
        if error is not None:
            raise error
        return cast("_T", value)

    async def wait_async(self, seconds: float | None) -> bool:
        """`wait` for an event loop, which goes on meanwhile."""
        import asyncio  # here, since it takes 20 ms and 2 MB, and few have an event loop

        loop = asyncio.get_running_loop()
        heard = asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(heard.set)

        self._heard = tell
        if self._given:
            return True
        try:
            await asyncio.wait_for(heard.wait(), seconds)
        except asyncio.TimeoutError:
            return bool(self._given)
        return True


def result_by(answer: Answer[_T], deadline: float | None, where: str) -> _T:
    """An answer, waited for in this thread; it is cancelled when it comes to nothing.

    Raises:
        DeadlineError: not before the deadline.
    """
    try:
        if not answer.wait(left(deadline)):
            raise late(where)
        return answer.result()
    finally:
        answer.cancel()


async def result_by_async(answer: Answer[_T], deadline: float | None, where: str) -> _T:
    """`result_by` for an event loop, which goes on meanwhile."""
    try:
        if not await answer.wait_async(left(deadline)):
            raise late(where)
        return answer.result()
    finally:
        answer.cancel()


class Place:
    """Room for one request: held until it is given back, or until nothing refers to it any more."""

    __slots__ = ("__weakref__", "turn")

    def __init__(self) -> None:
        self.turn: Answer[None] | None = None  # of who waits in line


class Places:
    """At most `limit` requests at a time. With `refuse` there is no line: who finds all places taken gets an error."""

    def __init__(self, limit: int, *, refuse: bool) -> None:
        self.limit = limit
        self._refuse = refuse
        self._lock = threading.Lock()
        self._taken: set[weakref.ref[Place]] = set()
        self._line: deque[weakref.ref[Place]] = deque()
        self._closed = False

    @property
    def taken(self) -> int:
        """Requests that are under way."""
        return len(self._taken)

    def take(self, deadline: float | None) -> Place:
        """Take a place; blocks while there is none.

        Raises:
            DeadlineError: none was free before the deadline.
            QueueFullError: none is free, and there is no line.
            RunnerClosedError: closed, before or meanwhile.
        """
        place = Place()
        turn = self._turn(place)
        if turn is not None:
            try:
                while not turn.wait(_soon(deadline)):
                    self._look(place, deadline)
                turn.result()
            except BaseException:
                self.give(place)
                raise
        return place

    async def take_async(self, deadline: float | None) -> Place:
        """`take` for an event loop, which goes on meanwhile."""
        place = Place()
        turn = self._turn(place)
        if turn is not None:
            try:
                while not await turn.wait_async(_soon(deadline)):
                    self._look(place, deadline)
                turn.result()
            except BaseException:
                self.give(place)
                raise
        return place

    def take_free(self) -> Place | None:
        """A place if one is free now, and nobody waits for it.

        Raises:
            RunnerClosedError: closed.
        """
        with self._lock:
            place = Place()
            return place if self._admitted(place) else None

    def give(self, place: Place) -> None:
        """Give a place back: to the first in line who still waits. A second time does nothing."""
        with self._lock:
            self._taken.discard(weakref.ref(place))
            if place.turn is not None:
                place.turn.cancel()
            if self._line:
                self._advance()

    def close(self) -> None:
        """Refuse whoever waits and whoever comes; who has a place keeps it."""
        with self._lock:
            self._closed = True
            self._advance()

    def _turn(self, place: Place) -> Answer[None] | None:
        """None: the place is taken. Else what will be said when there is one."""
        with self._lock:
            if self._admitted(place):
                return None
            if self._refuse:
                raise QueueFullError(
                    f"{self.limit} requests are under way, and no more are taken",
                    hint="try again later, or raise max_queue or take when_full='wait' in load()",
                )
            place.turn = Answer()
            self._line.append(weakref.ref(place))
            self._advance()
            return place.turn

    def _admitted(self, place: Place) -> bool:
        if self._closed:
            raise _closed()
        if self._line or len(self._taken) >= self.limit:
            return False
        self._taken.add(weakref.ref(place, self._taken.discard))
        return True

    def _look(self, place: Place, deadline: float | None) -> None:
        """What who waits in line does when nothing was said for a while."""
        with self._lock:
            self._advance()
            if weakref.ref(place) in self._taken and place.turn is not None:
                place.turn.set()
            elif left(deadline) == 0:
                raise late("while it waited in line")

    def _advance(self) -> None:
        """Give the places that are free to the first in line; it may be broken off at any line, and done again."""
        while self._line and (self._closed or len(self._taken) < self.limit):
            place = self._line[0]()
            if place is not None and place.turn is not None and not place.turn.cancelled:
                if not self._closed:
                    self._taken.add(weakref.ref(place, self._taken.discard))
                place.turn.set(error=_closed() if self._closed else None)
            self._line.popleft()


def _soon(deadline: float | None) -> float:
    return _LOOK if deadline is None else min(_LOOK, max(0.0, deadline - time.monotonic()))


def _closed() -> RunnerClosedError:
    return RunnerClosedError("this classifier is closed", hint="load the bundle again")
