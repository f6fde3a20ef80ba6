"""Requests from several callers: throughput in a closed loop, latency under a given rate in an open one.

Closed loop: each of N callers sends its next request when the last one is answered. That gives the most the form can
do; its latencies say nothing of users, who do not wait for each other.

Open loop: requests arrive at a given mean rate whether or not earlier ones are answered (a Poisson process, seeded),
and wait for one of the callers. Latency is counted from the moment a request was due, so that a stall is charged to
every request it kept waiting. Counted from when a request was begun, the same stall shows in one sample alone
("coordinated omission"); that time is reported beside it as the service time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from vitdeploy.bench.latency import Call, Clock
from vitdeploy.core import progress

__all__ = ["ClosedLoop", "LoadRun", "OpenLoop", "closed_loop", "open_loop"]

_TURNS = 3  # slices into which the time of each form is cut, so that drift hits all alike
_OVERRUN = 0.05  # of the time of a turn by which its last answer may be late, beside its slowest call


@dataclass
class ClosedLoop:
    """What N callers got: `finished` requests in `seconds`, and the time of each in milliseconds."""

    callers: int
    finished: int = 0
    seconds: float = 0.0
    latency_ms: list[float] = field(default_factory=list)


@dataclass
class OpenLoop:
    """What came of requests at `rate` per second: times from when each was due, and from when it was begun.

    `seconds` is how long requests arrived, `late` how much longer it took to answer them, less the slowest call.
    """

    rate: float
    callers: int
    seconds: float = 0.0
    late: float = 0.0
    latency_ms: list[float] = field(default_factory=list)
    service_ms: list[float] = field(default_factory=list)

    @property
    def keeps_up(self) -> bool:
        """Whether requests are answered as fast as they come: whether the queue has a trend.

        It has one where the callers are asked for more time than there is, whatever the queue was in the end: by a few
        per cent of overload it grows so slowly that a short run ends before it is long.
        """
        asked = self.rate * float(np.mean(self.service_ms or [0.0])) / 1000 / self.callers
        return asked < 1 and self.late <= _OVERRUN * self.seconds


def closed_loop(call: Call, callers: int, seconds: float, clock: Clock, into: ClosedLoop) -> None:
    """Let `callers` threads call for `seconds`, each at least once; a call that was begun is counted."""
    began = clock.now()
    guard = threading.Lock()

    def caller(number: int, stop: threading.Event) -> None:
        count = 0
        while not stop.is_set():
            start = clock.now()
            if count and start - began >= seconds:
                return
            call(number + callers * count)
            passed = (clock.now() - start) * 1000
            count += 1
            with guard:
                into.finished += 1
                into.latency_ms.append(passed)

    try:
        _in_threads(caller, callers)
    finally:  # Ctrl-C leaves what was finished until then, and that took this long
        into.seconds += clock.now() - began


def open_loop(
    call: Call, rate: float, callers: int, seconds: float, clock: Clock, into: OpenLoop, *, seed: int
) -> None:
    """Send requests at `rate` per second for `seconds`; `callers` threads answer them in the order of arrival."""
    due = arrivals(rate, seconds, seed)
    if not due:
        return
    began = clock.now()
    guard = threading.Lock()
    following = iter(enumerate(due))

    def caller(_: int, stop: threading.Event) -> None:
        while not stop.is_set():
            with guard:
                place, offset = next(following, (-1, 0.0))
            if place < 0:
                return
            wait = began + offset - clock.now()
            if wait > 0:
                clock.rest(wait)
            start = clock.now()
            call(place)
            end = clock.now()
            with guard:
                into.latency_ms.append((end - began - offset) * 1000)
                into.service_ms.append((end - start) * 1000)

    before = len(into.service_ms)
    try:
        _in_threads(caller, callers)
    except BaseException:  # Ctrl-C
        seconds = min(seconds, clock.now() - began)
        raise
    finally:
        into.seconds += seconds
        slowest = max(into.service_ms[before:], default=0.0) / 1000
        into.late += max(0.0, clock.now() - began - seconds - slowest)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, in seconds from the start: gaps are exponential with mean 1 / rate."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=int(rate * seconds * 2) + 16)
    moments = np.cumsum(gaps)
    return [float(moment) for moment in moments if moment < seconds]


def _in_threads(work: Callable[[int, threading.Event], None], count: int) -> None:
    """Run `work(0..count-1, stop)` at the same time; `stop` is set, and the first error raised, once one has failed."""
    stop = threading.Event()
    errors: list[BaseException] = []
    begun: list[threading.Event] = []  # of each thread that works, set when it has ended

    def guarded(number: int) -> None:
        ended = threading.Event()
        begun.append(ended)
        try:
            work(number, stop)
        except BaseException as error:
            errors.append(error)
            stop.set()
        finally:
            ended.set()

    if count == 1:
        work(0, stop)
        return
    threads = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(count)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C: nobody may call a form that is about to be closed
        stop.set()  # who begins from now on does nothing
        for ended in tuple(begun):  # an interrupted join may take a thread for ended that works (Python up to 3.12)
            ended.wait(60)
        raise
    if errors:
        raise errors[0]


class LoadRun:
    """Forms under load, in turns; what was found survives an interruption of `run`.

    Args:
        calls: per form, one request; it is given a number by which it picks its image, and may be called by several
            threads at once.
        callers: a closed loop for each.
        rates: an open loop for each, answered by the largest number of `callers` (or one).
        seconds: for each form and load, over all turns.
    """

    def __init__(
        self,
        calls: Mapping[str, Call],
        *,
        callers: tuple[int, ...],
        rates: tuple[float, ...],
        seconds: float,
        clock: Clock,
        seed: int = 0,
    ) -> None:
        self._calls = dict(calls)
        self._seconds = seconds / _TURNS
        self._clock = clock
        self._seed = seed
        most = max(callers, default=1)
        self.closed = {name: [ClosedLoop(count) for count in callers] for name in calls}
        self.open = {name: [OpenLoop(rate, most) for rate in rates] for name in calls}
        self.failures: dict[str, Exception] = {}

    def run(self) -> None:
        """Put every form under every load; one that raises is dropped into `failures` and the others go on."""
        order = np.random.default_rng(self._seed)
        with progress.task("Measuring under load", total=_TURNS * len(self._calls), unit="turns") as step:
            for turn in range(_TURNS):
                names = sorted(self._calls)
                for position in order.permutation(len(names)):
                    name = names[int(position)]
                    step.update(detail=name)
                    try:
                        self._turn(name, turn)
                    except Exception as error:
                        self.failures[name] = error
                        for found in (self._calls, self.closed, self.open):
                            found.pop(name, None)
                    step.advance()

    def _turn(self, name: str, turn: int) -> None:
        call = self._calls[name]
        call(0)  # the form before it left its own data in the caches
        for closed in self.closed[name]:
            closed_loop(call, closed.callers, self._seconds, self._clock, closed)
        for opened in self.open[name]:
            seed = self._seed * _TURNS + turn
            open_loop(call, opened.rate, opened.callers, self._seconds, self._clock, opened, seed=seed)
