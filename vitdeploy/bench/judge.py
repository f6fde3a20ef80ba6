"""Measure a set of forms: probe them apart, open them, time them against each other, compare their answers.

All forms are open at once where memory allows. Where it does not, they are taken in groups, and the reference form is
open in every group, so that each form is still timed in turns with it. What fails is noted, and the others go on.
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
from vitdeploy.bench.latency import Call, Clock, LatencyRun, LatencySettings, Track, WallClock
from vitdeploy.bench.load import ClosedLoop, LoadRun, OpenLoop
from vitdeploy.bench.machine import BusyMeter, memory_bytes
from vitdeploy.bench.phases import PhasesRun
from vitdeploy.bench.probe import Probe, probe
from vitdeploy.bench.report import Memory, Phases
from vitdeploy.errors import VitdeployError

__all__ = ["Finding", "Judge", "JudgeSettings", "Point"]

_KEPT_IMAGES = 16  # different images that latency is measured with
_LOOKED_AT = 64  # images whose size is looked at to find the typical one
_MEMORY_SHARE = 0.6  # of the free memory that open forms may take
_MEMORY_FACTOR = 4  # bytes in memory per byte of file: FP16 and INT8 weights may be widened, and packed copies kept


@dataclass(frozen=True)
class Point:
    """What a timed call is given: so many images of (height, width)."""

    batch_size: int
    image_size: tuple[int, int]

    @property
    def pixels(self) -> int:
        return self.batch_size * self.image_size[0] * self.image_size[1]

    def __str__(self) -> str:
        return f"batch {self.batch_size} of {self.image_size[0]}x{self.image_size[1]}"


@dataclass(frozen=True)
class JudgeSettings:
    """What to measure. `latency` None: no times; `accuracy` False: no answers compared; for the rest, BenchSettings."""

    batch_sizes: tuple[int, ...] = (1,)
    latency: LatencySettings | None = field(default_factory=LatencySettings)
    accuracy: bool = True
    accuracy_batch: int = 16
    memory_bytes: int | None = None  # what open forms may take; None: a share of what is free
    image_sizes: tuple[tuple[int, int], ...] = ()
    memory: bool = True
    phases: bool = True
    callers: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    load_seconds: float = 6.0


@dataclass
class Finding:
    """What was found about one form; `tracks` and `reference` (its times in the same rounds) are per point."""

    form: Form
    cold_start_ms: float | None = None
    probed: Probe | None = None
    memory: dict[Point, Memory] = field(default_factory=dict)
    tracks: dict[Point, Track] = field(default_factory=dict)
    reference: dict[Point, Track] = field(default_factory=dict)
    phases: Phases | None = None
    closed: list[ClosedLoop] = field(default_factory=list)
    open: list[OpenLoop] = field(default_factory=list)
    verdicts: Verdicts | None = None
    failure: str | None = None


class Judge:
    """One benchmark under way; what was found survives an interruption of `run`.

    Args:
        forms: in the order of preference for the reference: the first that opens is what others are compared with.
        images: the dataset.
        classes: how many scores each form must give.
        decode_ms: what decoding one image takes, where that is known.
        between: called now and then while nothing is timed.
    """

    def __init__(
        self,
        forms: Sequence[Form],
        images: Images,
        classes: int,
        settings: JudgeSettings,
        *,
        clock: Clock | None = None,
        decode_ms: float | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.findings = {form.key: Finding(form) for form in forms}
        self.reference: str | None = None
        self.other_share: float | None = None
        self.points: list[Point] = []
        self._images = images
        self._classes = classes
        self._settings = settings
        self._clock = clock or WallClock()
        self._decode_ms = decode_ms
        self._between = between
        self._sample: list[Pixels] = []

    def run(self) -> None:
        """Measure everything; KeyboardInterrupt passes through and leaves the findings so far."""
        self._sample = typical_images(self._images)
        sizes = self._settings.image_sizes or (self._sample[0].shape[:2],)
        self.points = [Point(batch, (height, width)) for height, width in sizes for batch in self._settings.batch_sizes]
        if self._settings.memory and self._settings.latency is not None:
            self._probe()
        waiting = [
            finding.form
            for finding in self.findings.values()
            if finding.form.reason is None and finding.failure is None
        ]
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

    def _probe(self) -> None:
        """Memory and cold start of each form in a process of its own, before anything is open in this one."""
        waiting = [f for f in self.findings.values() if f.form.reason is None and f.form.spec is not None]
        points = sorted(self.points, key=lambda point: point.pixels)
        if not waiting:
            return
        with progress.task("Memory and cold start", total=len(waiting), unit="forms") as step:
            for finding in waiting:
                step.update(detail=finding.form.key)
                try:
                    finding.form.check()
                    assert finding.form.spec is not None
                    found = probe(finding.form.spec, [self._batches(point)[0] for point in points])
                except Exception as error:
                    finding.failure = in_words(error)
                else:
                    finding.probed = found
                    finding.cold_start_ms = found.cold_start.total_ms
                    finding.memory = dict(zip(points, found.memory, strict=True))
                step.advance()

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
        """Open forms and ask each for an answer, twice; the first gives the cold start where none was probed."""
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
                    finding.cold_start_ms = finding.cold_start_ms or cold_start_ms
                    stack.push(own)
                    runners[form.key] = runner
                step.advance()
        return runners

    def _measure(self, runners: dict[str, Infers], *, again: bool) -> None:
        if self._settings.latency is not None:
            # What other programs do can only disturb a clock that runs by itself.
            meter = BusyMeter() if isinstance(self._clock, WallClock) else None
            try:
                for point in self.points:
                    self._time(runners, point, self._settings.latency)
            finally:
                share = None if meter is None else meter.other_share()
                if share is not None:
                    self.other_share = max(share, self.other_share or 0.0)
            # In later groups the reference has been through the rest already.
            self._phases(self._fresh(runners, again), self._settings.latency)
            self._load(self._fresh(runners, again), self._settings.latency)
        if self._settings.accuracy:
            self._compare(self._fresh(runners, again))

    def _fresh(self, runners: Mapping[str, Infers], again: bool) -> dict[str, Infers]:
        """The forms that have not failed, without the reference in a later group."""
        return {
            key: runner
            for key, runner in runners.items()
            if self.findings[key].failure is None and not (again and key == self.reference)
        }

    def _batches(self, point: Point) -> list[Pixels]:
        return batch_feeds([resized(pixels, point.image_size) for pixels in self._sample], point.batch_size)

    def _time(self, runners: Mapping[str, Infers], point: Point, settings: LatencySettings) -> None:
        feeds = self._batches(point)
        calls = {key: _call(runner, feeds) for key, runner in self._fresh(runners, False).items()}
        title = "Measuring latency" if len(self.points) == 1 else f"Measuring latency, {point}"
        run = LatencyRun(calls, settings, clock=self._clock, title=title, between=self._between)
        try:
            run.run()
        finally:
            reference = run.tracks.get(self.reference or "")
            for key, track in run.tracks.items():
                if not track.rounds:
                    continue
                self.findings[key].tracks.setdefault(point, track)
                if reference is not None and reference.rounds:
                    self.findings[key].reference.setdefault(point, reference)
            for key, error in run.failures.items():
                self.findings[key].failure = f"{point}: {in_words(error)}"

    def _phases(self, runners: Mapping[str, Infers], settings: LatencySettings) -> None:
        if not (self._settings.phases and runners):
            return
        forms = [self.findings[key].form for key in runners]
        batch = self._batches(self.points[0])[0]
        run = PhasesRun(forms, runners, batch, self._decode_ms, settings, self._clock)
        try:
            run.run()
        finally:
            for key, found in run.found.items():
                self.findings[key].phases = found

    def _load(self, runners: Mapping[str, Infers], settings: LatencySettings) -> None:
        if not (self._settings.callers or self._settings.rates) or not runners:
            return
        feeds = self._batches(self.points[0])
        run = LoadRun(
            {key: _call(runner, feeds) for key, runner in runners.items()},
            callers=self._settings.callers,
            rates=self._settings.rates,
            seconds=self._settings.load_seconds,
            clock=self._clock,
            seed=settings.seed,
        )
        try:
            run.run()
        finally:
            for key in run.closed:
                self.findings[key].closed = [loop for loop in run.closed[key] if loop.latency_ms]
                self.findings[key].open = [loop for loop in run.open[key] if loop.latency_ms]
            for key, error in run.failures.items():
                self.findings[key].failure = f"under load: {in_words(error)}"

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


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """An image at another (height, width)."""
    if pixels.shape[:2] == size:
        return pixels
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0])))


def in_words(error: Exception) -> str:
    """An error as one line of a table."""
    text = error.message if isinstance(error, VitdeployError) else f"{type(error).__name__}: {error}"
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"


def _call(runner: Infers, feeds: list[Pixels]) -> Call:
    """One call of a runner; what it returns is the GPU's own time of it, where the runner knows that."""

    def call(number: int) -> float | None:
        runner.infer({"image": feeds[number % len(feeds)]})
        device_ms: float | None = getattr(runner, "device_ms", None)
        return device_ms

    return call
