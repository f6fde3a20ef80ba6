"""The only clock: warm-up until stable, then interleaved rounds over all forms in random order.

Every round visits each form once, in a new random order, so that whatever slows the machine down for a
while (another program, heat, a clock change) hits all forms alike. A visit makes one call that is not
kept, since the form before it has left its own data in the caches, and then the same number of kept
calls in every round; a short rest before it lets the runtime before it come to rest. All kept samples stay in the
result; percentiles are computed from them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import numpy as np

from vitdeploy import interrupts, progress
from vitdeploy.bench.statistics import percentiles

__all__ = ["Clock", "LatencyRun", "LatencySettings", "Track", "WallClock"]

Call = Callable[[int], "float | None"]


class Clock(Protocol):
    """Tells the time; tests bring one of their own."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def rest(self, seconds: float) -> None:
        """Let time pass."""


class WallClock:
    """The finest steady clock of the system."""

    def now(self) -> float:
        return time.perf_counter()

    def rest(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class LatencySettings:
    """How long and how often to measure.

    `rounds` are made unless `max_seconds` have passed and `min_rounds` are done. A visit keeps as many calls as fit in
    `visit_seconds`, at least 1 and at most `calls_per_round`. Warm-up ends when the time is stable, at the latest
    after `warmup_seconds` per form. `rest_seconds` pass before every visit: the worker threads of a runtime go on
    looking for work for milliseconds after a call, and would take the processor from the next form's.
    `seed` orders the rounds.
    """

    rounds: int = 50
    min_rounds: int = 10
    max_seconds: float = 120.0
    calls_per_round: int = 5
    visit_seconds: float = 0.05
    warmup_seconds: float = 5.0
    rest_seconds: float = 0.03
    seed: int = 0


@dataclass
class Track:
    """What was measured of one form: `rounds` holds the kept times of each round, in milliseconds.

    `device_ms` holds what the GPU itself says of the kept calls, where it says something.
    """

    name: str
    calls_per_round: int = 1
    rounds: dict[int, tuple[float, ...]] = field(default_factory=dict)
    device_ms: list[float] = field(default_factory=list)
    warmup_calls: int = 0
    warmup_stable: bool = False

    @property
    def samples_ms(self) -> list[float]:
        """All kept samples in the order they were taken."""
        return [sample for index in sorted(self.rounds) for sample in self.rounds[index]]

    def paired_with(self, other: Track) -> tuple[list[float], list[float]]:
        """The median time of each round that both tracks have: this one's, then the other's."""
        shared = sorted(self.rounds.keys() & other.rounds.keys())
        return [median(self.rounds[i]) for i in shared], [median(other.rounds[i]) for i in shared]

    def noise(self) -> str | None:
        """Why these times can't be taken at face value, in plain words; None when they can."""
        samples = np.asarray(self.samples_ms)
        found = []
        third = len(samples) // 3
        if third >= 3:
            change = float(np.median(samples[-third:]) / np.median(samples[:third])) - 1
            if abs(change) > _DRIFT:
                found.append(
                    f"it became {abs(change):.0%} {'slower' if change > 0 else 'faster'} while it was measured"
                )
        if len(samples) >= 4:
            summary = percentiles(self.samples_ms)
            if summary["p90"] > _SPREAD * summary["p50"]:
                found.append(f"p90 is {summary['p90'] / summary['p50']:.1f} times p50")
        if not self.warmup_stable:
            found.append("its time was still changing when the warm-up ended")
        return "; ".join(found) or None


_DRIFT = 0.10  # last third against first third of the samples
_SPREAD = 1.5  # p90 against p50
_STABLE = 0.05  # median of the last warm-up window against the window before it
_WINDOW = 5


class LatencyRun:
    """One measurement of several forms; what was kept survives an interruption of `run`.

    Args:
        calls: per form, what to time. It is given a running number, equal for all forms at the same place of a
            round, by which it picks its image; it returns the GPU's own time of the call in milliseconds, or None.
        settings: how long and how often.
        clock: where the time comes from.
        title: for the progress bars.
        between: called before each round, while nothing is timed.
    """

    def __init__(
        self,
        calls: Mapping[str, Call],
        settings: LatencySettings | None = None,
        *,
        clock: Clock | None = None,
        title: str = "Measuring latency",
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self._calls = dict(calls)
        self._settings = settings or LatencySettings()
        self._clock = clock or WallClock()
        self._title = title
        self._between = between
        self.tracks: dict[str, Track] = {}
        self.failures: dict[str, Exception] = {}

    def run(self) -> None:
        """Warm up, then measure; a form whose call raises is dropped into `failures` and the others go on."""
        with _quiet_garbage_collector(), interrupts.remembered():
            with progress.task("Warming up", total=len(self._calls), unit="forms") as step:
                for name in list(self._calls):
                    step.update(detail=name)
                    self._guard(name, self._warm_up)
                    step.advance()
            self._rounds()

    def _guard(self, name: str, action: Callable[[str], None]) -> None:
        try:
            action(name)
        except Exception as error:
            interrupts.check()
            self.failures[name] = error
            self.tracks.pop(name, None)
            self._calls.pop(name, None)
        interrupts.check()

    def _warm_up(self, name: str) -> None:
        times: list[float] = []
        began = self._clock.now()
        stable = False
        while not stable:
            times.append(self._timed(name, len(times)))
            enough = len(times) >= 2 * _WINDOW
            if enough:
                now, before = median(times[-_WINDOW:]), median(times[-2 * _WINDOW : -_WINDOW])
                stable = abs(now - before) <= _STABLE * before
            late = self._clock.now() - began > self._settings.warmup_seconds
            if late and len(times) >= 3:
                # A form too slow for two whole windows is judged by its last two calls.
                stable = stable or (not enough and abs(times[-1] - times[-2]) <= 2 * _STABLE * times[-2])
                break
        typical = median(times[-_WINDOW:])
        calls = int(self._settings.visit_seconds * 1000 / max(typical, 1e-6))
        self.tracks[name] = Track(
            name,
            calls_per_round=min(max(calls, 1), self._settings.calls_per_round),
            warmup_calls=len(times),
            warmup_stable=stable,
        )

    def _rounds(self) -> None:
        settings, began = self._settings, self._clock.now()
        order = np.random.default_rng(settings.seed)
        with progress.task(self._title, total=settings.rounds, unit="rounds") as step:
            for index in range(settings.rounds):
                if index >= settings.min_rounds and self._clock.now() - began > settings.max_seconds:
                    break
                self._between()
                names = sorted(self._calls)
                for position in order.permutation(len(names)):
                    self._guard(names[int(position)], lambda name, index=index: self._visit(name, index))  # type: ignore[misc]
                step.advance()

    def _visit(self, name: str, index: int) -> None:
        track = self.tracks[name]
        first = index * self._settings.calls_per_round
        self._clock.rest(self._settings.rest_seconds)
        self._calls[name](first)
        track.rounds[index] = tuple(
            self._timed(name, first + call, track.device_ms) for call in range(track.calls_per_round)
        )

    def _timed(self, name: str, number: int, device: list[float] | None = None) -> float:
        """Milliseconds that one call takes by the clock; the GPU's own count goes to `device`."""
        call, clock = self._calls[name], self._clock
        began = clock.now()
        on_device = call(number)
        passed = (clock.now() - began) * 1000
        if device is not None and on_device is not None:
            device.append(on_device)
        return passed


@contextmanager
def _quiet_garbage_collector() -> Iterator[None]:
    """Keep what is loaded out of the garbage collector's walks: they would be charged to whoever is timed."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
