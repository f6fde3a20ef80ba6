"""The only clock: warm-up until stable, then interleaved rounds over all forms in random order.

Every round visits each form once, in a new random order, so that whatever slows the machine down for a
while (another program, heat, a clock change) hits all forms alike. A visit makes one call that is not
kept, since the form before it has left its own data in the caches, and rests until the threads of the
runtime before it sleep (where a GPU shall be kept busy, it goes on with such calls for as long). Then it keeps
one call, as a single request sees it ("on demand"), and the calls that follow that one without a rest ("steady"):
the same number of every form, since many get faster from call to call. All kept
samples stay in the result; percentiles are computed from them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import numpy as np

from vitdeploy.core import interrupts, progress
from vitdeploy.core.machine import BUSY
from vitdeploy.report.settings import BenchSettings

__all__ = ["Clock", "LatencyRun", "Track", "Visit", "WallClock"]

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


class Meter(Protocol):
    """Watches other programs from when it was made."""

    def other_share(self) -> float | None:
        """The share of the processor that they used, 0..1; None where it can't be told."""


@dataclass(frozen=True)
class Visit:
    """The kept times of one turn in milliseconds: of a call after a rest, and of calls that follow each other.

    `device` is what the GPU itself says of all of them, `gpu_mhz` its clock behind the last; of a form on a GPU only.
    """

    on_demand: float
    steady: tuple[float, ...]
    device: tuple[float, ...] = ()
    gpu_mhz: float | None = None


@dataclass
class Track:
    """What was measured of one form, by round."""

    name: str
    rounds: dict[int, Visit] = field(default_factory=dict)
    warmup_calls: int = 0
    warmup_stable: bool = False

    @property
    def on_demand_ms(self) -> list[float]:
        """The calls after a rest, one a round."""
        return [self.rounds[index].on_demand for index in sorted(self.rounds)]

    @property
    def steady_ms(self) -> list[float]:
        """The calls that follow each other, in the order they were taken."""
        return [sample for index in sorted(self.rounds) for sample in self.rounds[index].steady]

    @property
    def device_ms(self) -> list[float]:
        """What the GPU itself says of the kept calls."""
        return [sample for index in sorted(self.rounds) for sample in self.rounds[index].device]

    @property
    def gpu_mhz(self) -> float | None:
        """The median clock of the GPU behind its calls."""
        clocks = [visit.gpu_mhz for visit in self.rounds.values() if visit.gpu_mhz is not None]
        return median(clocks) if clocks else None

    def paired_with(self, other: Track, part: str = "on_demand") -> tuple[list[float], list[float]]:
        """The time of each round that both tracks have, this one's and the other's: on demand, or the median of the
        round's "steady" calls, or of what the GPU says of all of them, "device"."""

        def time_of(visit: Visit) -> float | None:
            if part == "on_demand":
                return visit.on_demand
            samples: tuple[float, ...] = getattr(visit, part)
            return median(samples) if samples else None

        pairs = [
            (own, theirs)
            for index in sorted(self.rounds.keys() & other.rounds.keys())
            if (own := time_of(self.rounds[index])) is not None and (theirs := time_of(other.rounds[index])) is not None
        ]
        return [own for own, _ in pairs], [theirs for _, theirs in pairs]

    def unsteady(self) -> str | None:
        """Why nothing can be compared with these times; None where they are steady enough."""
        times = self.on_demand_ms
        p50, p90 = np.percentile(times, [50, 90]) if len(times) >= 10 else (1.0, 1.0)
        return f"the baseline's own calls differ: p90 is {p90 / p50:.1f} times p50" if p90 > _UNSTEADY * p50 else None

    def noise(self) -> str | None:
        """Why these times can't be taken at face value, in plain words; None when they can."""
        samples = np.asarray(self.on_demand_ms)
        found = []
        third = len(samples) // 3
        if third >= 3:
            change = float(np.median(samples[-third:]) / np.median(samples[:third])) - 1
            if abs(change) > _DRIFT:
                found.append(
                    f"it became {abs(change):.0%} {'slower' if change > 0 else 'faster'} while it was measured"
                )
        if len(samples) >= 4:
            p50, p90 = np.percentile(samples, [50, 90])
            if p90 > _SPREAD * p50:
                found.append(f"p90 is {p90 / p50:.1f} times p50")
        if not self.warmup_stable:
            found.append("its time was still changing when the warm-up ended")
        return "; ".join(found) or None


_PATIENCE = 3
_WATCHED_SECONDS = 1.0
_DRIFT = 0.10  # last third against first third of the samples
_SPREAD = 1.5  # p90 against p50
_UNSTEADY = 2.0  # p90 against p50 of the baseline
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
        meter: begins to watch what other programs do, where that can be told.
        on_gpu: names of the forms that run on a GPU: they are warmed up for `gpu_warmup_seconds` at least, and
            `keep_gpu_busy` is about them.
        gpu_clock: gives the GPU's clock in MHz, None where it can't be told.

    Rounds in which other programs used more than `BUSY` of the processor are made again, within the settings' time and
    up to `_PATIENCE` times as many rounds. They are left out if enough quiet ones were made; otherwise `busy` says why
    no two of these times should be compared. `other_share` is what other programs used in the rounds that were kept.
    """

    def __init__(
        self,
        calls: Mapping[str, Call],
        settings: BenchSettings | None = None,
        *,
        clock: Clock | None = None,
        title: str = "Measuring latency",
        between: Callable[[], None] = lambda: None,
        meter: Callable[[], Meter] | None = None,
        on_gpu: Collection[str] = (),
        gpu_clock: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._calls = dict(calls)
        self._settings = settings or BenchSettings()
        self._clock = clock or WallClock()
        self._title = title
        self._between = between
        self._meter = meter
        self._on_gpu, self._gpu_clock = frozenset(on_gpu), gpu_clock
        self._watching: Meter | None = None
        self._shares: dict[int, float | None] = {}  # of other programs, by round
        self._watched: list[int] = []  # rounds since the meter began
        self.busy: str | None = None
        self.other_share: float | None = None
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
            try:
                self._rounds()
            finally:
                self._settle()

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
        least = self._settings.gpu_warmup_seconds if name in self._on_gpu else 0.0
        stable = False
        while not stable or self._clock.now() - began < least:
            times.append(self._timed(name, len(times)))
            enough = len(times) >= 2 * _WINDOW
            if enough:
                now, before = median(times[-_WINDOW:]), median(times[-2 * _WINDOW : -_WINDOW])
                stable = abs(now - before) <= _STABLE * before
            late = self._clock.now() - began > max(self._settings.warmup_seconds, least)
            if late and len(times) >= 3:
                # A form too slow for two whole windows is judged by its last two calls.
                stable = stable or (not enough and abs(times[-1] - times[-2]) <= 2 * _STABLE * times[-2])
                break
        self.tracks[name] = Track(name, warmup_calls=len(times), warmup_stable=stable)

    def _rounds(self) -> None:
        settings, began = self._settings, self._clock.now()
        order = np.random.default_rng(settings.seed)
        since = began
        self._watching = self._meter() if self._meter else None
        with progress.task(self._title, total=settings.rounds, unit="rounds") as step:
            for index in range(_PATIENCE * settings.rounds):
                late = index >= settings.min_rounds and self._clock.now() - began > settings.max_seconds
                if late or len(self._quiet()) >= settings.rounds:
                    break
                if index >= settings.rounds:  # in place of busy ones
                    step.update(total=index + 1)
                self._between()
                names = sorted(self._calls)
                for position in order.permutation(len(names)):
                    self._guard(names[int(position)], lambda name, index=index: self._visit(name, index))  # type: ignore[misc]
                step.advance()
                self._watched.append(index)
                self._shares[index] = None
                # The system counts in hundredths of a second, so a short round alone says little.
                if index + 1 >= settings.rounds or self._clock.now() - since >= _WATCHED_SECONDS:
                    self._look()
                    since = self._clock.now()

    def _look(self) -> None:
        """Note what other programs used in the rounds since the last look."""
        if self._watching is not None and self._meter is not None:
            share = self._watching.other_share()
            self._shares.update(dict.fromkeys(self._watched, share))
            self._watching = self._meter()
        self._watched = []

    def _quiet(self) -> list[int]:
        return [index for index, share in self._shares.items() if share is None or share <= BUSY]

    def _settle(self) -> None:
        """Leave the busy rounds out, or say that the machine was busy."""
        self._look()
        kept = self._quiet()
        if len(kept) >= min(self._settings.min_rounds, self._settings.rounds, len(self._shares)):
            for track in self.tracks.values():
                track.rounds = {index: visit for index, visit in track.rounds.items() if index in {*kept}}
        else:
            kept = list(self._shares)
        known = [share for index in kept if (share := self._shares[index]) is not None]
        self.other_share = float(np.mean(known)) if known else None
        if self.other_share is not None and max(known) > BUSY:
            self.busy = f"other programs used {self.other_share:.0%} of the processor"

    def _visit(self, name: str, index: int) -> None:
        track, steady = self.tracks[name], self._settings.steady_calls
        first = index * (1 + steady)
        self._calls[name](first)
        self._rest(name, first)
        device: list[float] = []
        on_demand = self._timed(name, first, device)
        after = tuple(self._timed(name, first + 1 + call, device) for call in range(steady))
        gpu_mhz = self._gpu_clock() if name in self._on_gpu else None
        track.rounds[index] = Visit(on_demand, after, tuple(device), gpu_mhz)

    def _rest(self, name: str, number: int) -> None:
        if not (self._settings.keep_gpu_busy and name in self._on_gpu):
            self._clock.rest(self._settings.rest_seconds)
            return
        began = self._clock.now()
        while self._clock.now() - began < self._settings.rest_seconds:
            self._calls[name](number)

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
