"""Measure a set of forms: open them, time them against each other, compare their answers, note what failed.

All forms are open at once where memory allows. Where it does not, they are taken in groups, and the reference form is
open in every group, so that each form is still timed in turns with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from vitdeploy import progress
from vitdeploy.bench.accuracy import AccuracyRun, Images, Infers, Pixels, Verdicts, check_repeatable, classify
from vitdeploy.bench.forms import Form
from vitdeploy.bench.latency import Clock, LatencyRun, LatencySettings, Track, WallClock
from vitdeploy.bench.machine import BusyMeter, memory_bytes
from vitdeploy.errors import VitdeployError

__all__ = ["Finding", "Judge", "JudgeSettings"]

_KEPT_IMAGES = 16  # different images that latency is measured with
_LOOKED_AT = 64  # images whose size is looked at to find the typical one
_MEMORY_SHARE = 0.6  # of the free memory that open forms may take
_MEMORY_FACTOR = 4  # bytes in memory per byte of file: FP16 and INT8 weights may be widened, and packed copies kept


@dataclass(frozen=True)
class JudgeSettings:
    """What to measure. `latency` None: no times; `accuracy` False: no answers compared."""

    batch_sizes: tuple[int, ...] = (1,)
    latency: LatencySettings | None = field(default_factory=LatencySettings)
    accuracy: bool = True
    accuracy_batch: int = 16
    memory_bytes: int | None = None  # what open forms may take; None: a share of what is free


@dataclass
class Finding:
    """What was found about one form; `tracks` and `reference` (its times in the same rounds) are per batch size."""

    form: Form
    cold_start_ms: float | None = None
    tracks: dict[int, Track] = field(default_factory=dict)
    reference: dict[int, Track] = field(default_factory=dict)
    verdicts: Verdicts | None = None
    failure: str | None = None


class Judge:
    """One benchmark under way; what was found survives an interruption of `run`.

    Args:
        forms: in the order of preference for the reference: the first that opens is what others are compared with.
        images: the dataset.
        classes: how many scores each form must give.
    """

    def __init__(
        self,
        forms: Sequence[Form],
        images: Images,
        classes: int,
        settings: JudgeSettings,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.findings = {form.key: Finding(form) for form in forms}
        self.reference: str | None = None
        self.other_share: float | None = None
        self.image_size: tuple[int, int] | None = None
        self._images = images
        self._classes = classes
        self._settings = settings
        self._clock = clock or WallClock()
        self._sample: list[Pixels] = []

    def run(self) -> None:
        """Measure everything; KeyboardInterrupt passes through and leaves the findings so far."""
        self._sample = typical_images(self._images)
        self.image_size = (self._sample[0].shape[0], self._sample[0].shape[1])
        waiting = [finding.form for finding in self.findings.values() if finding.form.reason is None]
        with ExitStack() as stack:
            runners: dict[str, Infers] = {}
            while waiting and not runners:
                runners = self._open(waiting[:1], stack)
                self.reference = next(iter(runners), None)
                waiting = waiting[1:]
            if self.reference is None:
                return
            for number, group in enumerate(self._groups(waiting)):
                with ExitStack() as inner:
                    opened = {**runners, **self._open(group, inner)}
                    self._measure(opened, again=number > 0)

    def _groups(self, forms: list[Form]) -> list[list[Form]]:
        free = self._settings.memory_bytes
        if free is None:
            free = int((memory_bytes("MemAvailable") or 1 << 62) * _MEMORY_SHARE)
        groups: list[list[Form]] = [[]]
        taken = 0
        for form in forms:
            need = _MEMORY_FACTOR * (form.size_bytes or 0)
            if groups[-1] and taken + need > free:
                groups.append([])
                taken = 0
            groups[-1].append(form)
            taken += need
        return groups

    def _open(self, forms: list[Form], stack: ExitStack) -> dict[str, Infers]:
        """Open forms and ask each for an answer, twice; the time to the first is the cold start."""
        runners: dict[str, Infers] = {}
        if not forms:
            return runners
        title = "Loading forms" if self.reference is not None else "Loading the baseline"
        with progress.task(title, total=len(forms), unit="forms") as step:
            for form in forms:
                step.update(detail=form.key)
                finding = self.findings[form.key]
                began = self._clock.now()
                own = ExitStack()
                try:
                    runner = own.enter_context(form.open())
                    first = classify(runner, self._sample[0][np.newaxis], self._classes)
                    cold_start_ms = (self._clock.now() - began) * 1000
                    again = classify(runner, self._sample[0][np.newaxis], self._classes)
                    check_repeatable(first, again)
                except Exception as error:
                    own.close()
                    finding.failure = in_words(error)
                else:
                    finding.cold_start_ms = cold_start_ms
                    stack.push(own)
                    runners[form.key] = runner
                step.advance()
        return runners

    def _measure(self, runners: dict[str, Infers], *, again: bool) -> None:
        if self._settings.latency is not None:
            # What other programs do can only disturb a clock that runs by itself.
            meter = BusyMeter() if isinstance(self._clock, WallClock) else None
            for batch_size in self._settings.batch_sizes:
                self._time(runners, batch_size, self._settings.latency)
            share = None if meter is None else meter.other_share()
            if share is not None:
                self.other_share = max(share, self.other_share or 0.0)
        if self._settings.accuracy:
            # In later groups the reference has seen the images already.
            fresh = {k: r for k, r in runners.items() if not (again and k == self.reference) and self._alive(k)}
            self._compare(fresh)

    def _alive(self, key: str) -> bool:
        return self.findings[key].failure is None

    def _time(self, runners: Mapping[str, Infers], batch_size: int, settings: LatencySettings) -> None:
        feeds = batch_feeds(self._sample, batch_size)
        calls = {key: _call(runner, feeds) for key, runner in runners.items() if self._alive(key)}
        title = "Measuring latency" if self._settings.batch_sizes == (1,) else f"Measuring latency, batch {batch_size}"
        run = LatencyRun(calls, settings, clock=self._clock, title=title)
        try:
            run.run()
        finally:
            reference = run.tracks.get(self.reference or "")
            for key, track in run.tracks.items():
                if not track.rounds:
                    continue
                self.findings[key].tracks.setdefault(batch_size, track)
                if reference is not None and reference.rounds:
                    self.findings[key].reference.setdefault(batch_size, reference)
            for key, error in run.failures.items():
                self.findings[key].failure = f"batch {batch_size}: {in_words(error)}"

    def _compare(self, runners: Mapping[str, Infers]) -> None:
        run = AccuracyRun(runners, self._images, self._classes, self._settings.accuracy_batch)
        try:
            run.run()
        finally:
            for key, verdicts in run.verdicts.items():
                self.findings[key].verdicts = verdicts
            for key, error in run.failures.items():
                self.findings[key].failure = in_words(error)


def typical_images(images: Images) -> list[Pixels]:
    """Real images of the dataset's most common size, for timing."""
    places = np.unique(np.linspace(0, len(images) - 1, num=min(len(images), _LOOKED_AT)).astype(int))
    looked_at = [images.image(int(index)) for index in places]
    size, _ = Counter(pixels.shape for pixels in looked_at).most_common(1)[0]
    return [pixels for pixels in looked_at if pixels.shape == size][:_KEPT_IMAGES]


def batch_feeds(sample: list[Pixels], batch_size: int) -> list[Pixels]:
    """Batches (batch_size, height, width, 3) that walk through the sample; a few, so that memory stays small."""
    count = max(1, min(len(sample), 64 // batch_size))
    return [
        np.stack([sample[(number * batch_size + place) % len(sample)] for place in range(batch_size)])
        for number in range(count)
    ]


def in_words(error: Exception) -> str:
    """An error as one line of a table."""
    text = error.message if isinstance(error, VitdeployError) else f"{type(error).__name__}: {error}"
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"


def _call(runner: Infers, feeds: list[Pixels]) -> Callable[[int], object]:
    return lambda number: runner.infer({"image": feeds[number % len(feeds)]})
