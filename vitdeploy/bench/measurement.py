"""Measure a set of forms: probe them apart, open them, time them against each other, compare their answers.

All forms are open at once where memory allows. Where it does not, they are taken in groups, and the reference form is
open in every group, so that each form is still timed in turns with it. What fails is noted, and the others go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitdeploy.bench.forms import Form
from vitdeploy.bench.latency import Call, Clock, LatencyRun, Track, WallClock
from vitdeploy.bench.load import ClosedLoop, LoadRun, OpenLoop
from vitdeploy.bench.machine import BusyMeter, memory_bytes
from vitdeploy.bench.phases import PhasesRun
from vitdeploy.bench.probe import Probe, probe
from vitdeploy.core import progress
from vitdeploy.core.errors import VitdeployError
from vitdeploy.core.machine import HELD_BYTES
from vitdeploy.core.parts import in_parts
from vitdeploy.evaluation.accuracy import AccuracyRun, Answers, Infers, check_repeatable, classify
from vitdeploy.evaluation.batches import Images, Pixels
from vitdeploy.report.records import CudaGraphs, Memory, Phases
from vitdeploy.report.settings import BenchSettings

__all__ = ["Benchmark", "Measurement", "Point"]

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


@dataclass
class Measurement:
    """What was found about one form; `tracks`, `reference` (its times in the same rounds) and `busy` (why
    these two should not be compared) are per point."""

    form: Form
    cold_start_ms: float | None = None
    probed: Probe | None = None
    memory: dict[Point, Memory] = field(default_factory=dict)
    tracks: dict[Point, Track] = field(default_factory=dict)
    reference: dict[Point, Track] = field(default_factory=dict)
    busy: dict[Point, str] = field(default_factory=dict)
    phases: Phases | None = None
    closed: list[ClosedLoop] = field(default_factory=list)
    open: list[OpenLoop] = field(default_factory=list)
    answers: Answers | None = None
    failure: str | None = None
    cuda_graphs: CudaGraphs | None = None  # of an engine, when it had been timed


class Benchmark:
    """One benchmark under way; what was found survives an interruption of `run`.

    Args:
        forms: in the order of preference for the reference: the first that opens is what others are compared with.
        images: the dataset.
        classes: how many scores each form must give.
        decode_ms: what decoding one image takes, where that is known.
        between: called now and then while nothing is timed.
        gpu_clock: gives the GPU's clock in MHz, None where it can't be told.
    """

    def __init__(
        self,
        forms: Sequence[Form],
        images: Images,
        classes: int,
        settings: BenchSettings,
        *,
        clock: Clock | None = None,
        decode_ms: float | None = None,
        between: Callable[[], None] = lambda: None,
        gpu_clock: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._gpu_clock = gpu_clock
        self.measurements = {form.key: Measurement(form) for form in forms}
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
        """Measure everything; KeyboardInterrupt passes through and leaves the measurements so far."""
        self._sample = typical_images(self._images)
        sizes = self._settings.image_sizes or (self._sample[0].shape[:2],)
        self.points = [Point(batch, (height, width)) for height, width in sizes for batch in self._settings.batch_sizes]
        if self._settings.memory and self._settings.latency:
            self._probe()
        waiting = [
            measurement.form
            for measurement in self.measurements.values()
            if measurement.form.reason is None and measurement.failure is None
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
        waiting = [f for f in self.measurements.values() if f.form.reason is None and f.form.spec is not None]
        points = sorted(self.points, key=lambda point: point.pixels)
        if not waiting:
            return
        with progress.task("Memory and cold start", total=len(waiting), unit="forms") as step:
            for measurement in waiting:
                step.update(detail=measurement.form.key)
                try:
                    measurement.form.check()
                    assert measurement.form.spec is not None
                    found = probe(measurement.form.spec, [self._batches(point)[0] for point in points])
                except Exception as error:
                    measurement.failure = in_words(error)
                else:
                    measurement.probed = found
                    measurement.cold_start_ms = found.cold_start.total_ms
                    measurement.memory = dict(zip(points, found.memory, strict=True))
                step.advance()

    def _groups(self, forms: list[Form]) -> list[list[Form]]:
        free = self._settings.open_bytes
        if free is None:
            free = int((memory_bytes("MemAvailable") or 1 << 62) * _MEMORY_SHARE)
        # the reference is measured without others, too
        return list(in_parts(forms, lambda form: _MEMORY_FACTOR * (form.size_bytes or 0), free)) or [[]]

    def _open(self, forms: list[Form], stack: ExitStack) -> dict[str, Infers]:
        """Open forms and ask each for an answer, twice; the first gives the cold start where none was probed."""
        runners: dict[str, Infers] = {}
        if not forms:
            return runners
        title = "Loading forms" if self.reference is not None else "Loading the baseline"
        with progress.task(title, total=len(forms), unit="forms") as step:
            for form in forms:
                step.update(detail=form.key)
                measurement = self.measurements[form.key]
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
                    measurement.failure = in_words(error)
                else:
                    measurement.cold_start_ms = measurement.cold_start_ms or cold_start_ms
                    stack.push(own)
                    runners[form.key] = runner
                step.advance()
        return runners

    def _measure(self, runners: dict[str, Infers], *, again: bool) -> None:
        if self._settings.latency:
            for point in self.points:
                self._time(runners, point)
            # In later groups the reference has been through the rest already.
            self._phases(self._fresh(runners, again))
            self._load(self._fresh(runners, again))
        if self._settings.accuracy:  # what failed while it was timed may still answer one call after the other
            self._compare({key: runner for key, runner in runners.items() if not (again and key == self.reference)})

    def _fresh(self, runners: Mapping[str, Infers], again: bool) -> dict[str, Infers]:
        """The forms that have not failed, without the reference in a later group."""
        return {
            key: runner
            for key, runner in runners.items()
            if self.measurements[key].failure is None and not (again and key == self.reference)
        }

    def _batches(self, point: Point) -> list[Pixels]:
        return batch_feeds([resized(pixels, point.image_size) for pixels in self._sample], point.batch_size)

    def _time(self, runners: Mapping[str, Infers], point: Point) -> None:
        feeds = self._batches(point)
        calls = self._calls(self._fresh(runners, False), feeds)
        title = "Measuring latency" if len(self.points) == 1 else f"Measuring latency, {point}"
        # What other programs do can only disturb a clock that runs by itself.
        meter = BusyMeter if isinstance(self._clock, WallClock) else None
        run = LatencyRun(
            calls,
            self._settings,
            clock=self._clock,
            title=title,
            between=self._between,
            meter=meter,
            on_gpu=[key for key in calls if self.measurements[key].form.device != "cpu"],
            gpu_clock=self._gpu_clock,
        )
        try:
            run.run()
        finally:
            reference = run.tracks.get(self.reference or "")
            for key, track in run.tracks.items():
                if not track.rounds:
                    continue
                measurement = self.measurements[key]
                measurement.tracks.setdefault(point, track)
                if reference is not None and reference.rounds:
                    measurement.reference.setdefault(point, reference)
                busy = run.busy or (None if reference is None else reference.unsteady())
                if busy is not None:
                    measurement.busy.setdefault(point, busy)
            if run.other_share is not None:
                self.other_share = max(run.other_share, self.other_share or 0.0)
            for key, error in run.failures.items():
                self.measurements[key].failure = f"{point}: {in_words(error)}"
            for key in run.tracks:
                graphs = getattr(runners[key], "cuda_graphs", None)
                if graphs is not None:
                    self.measurements[key].cuda_graphs = CudaGraphs(**graphs)

    def _calls(self, runners: Mapping[str, Infers], feeds: list[Pixels]) -> dict[str, Call]:
        return {
            key: _call(runner, feeds, preprocessed=self.measurements[key].form.preprocessed)
            for key, runner in runners.items()
        }

    def _phases(self, runners: Mapping[str, Infers]) -> None:
        if not (self._settings.phases and runners):
            return
        forms = [form for key in runners if not (form := self.measurements[key].form).preprocessed]
        batch = self._batches(self.points[0])[0]
        run = PhasesRun(forms, runners, batch, self._decode_ms, self._settings, self._clock)
        try:
            run.run()
        finally:
            for key, found in run.found.items():
                self.measurements[key].phases = found

    def _load(self, runners: Mapping[str, Infers]) -> None:
        if not (self._settings.callers or self._settings.rates) or not runners:
            return
        feeds = self._batches(self.points[0])
        run = LoadRun(
            self._calls(runners, feeds),
            callers=self._settings.callers,
            rates=self._settings.rates,
            seconds=self._settings.load_seconds,
            clock=self._clock,
            seed=self._settings.seed,
        )
        try:
            run.run()
        finally:
            for key in run.closed:
                self.measurements[key].closed = [loop for loop in run.closed[key] if loop.latency_ms]
                self.measurements[key].open = [loop for loop in run.open[key] if loop.latency_ms]
            for key, error in run.failures.items():
                self.measurements[key].failure = f"under load: {in_words(error)}"

    def _compare(self, runners: Mapping[str, Infers]) -> None:
        run = AccuracyRun(runners, self._images, self._classes, self._settings.accuracy_batch)
        try:
            run.run()
        finally:
            for key, answers in run.answers.items():
                self.measurements[key].answers = answers
            for key, error in run.failures.items():
                measurement = self.measurements[key]
                measurement.failure = measurement.failure or in_words(error)


def typical_images(images: Images) -> list[Pixels]:
    """Real images of the dataset's most common size, for timing."""
    places = np.unique(np.linspace(0, len(images) - 1, num=min(len(images), _LOOKED_AT)).astype(int))
    shapes: dict[int, tuple[int, ...]] = {}
    kept: dict[int, Pixels] = {}
    for index in places.tolist():
        pixels = images.image(index)
        shapes[index] = pixels.shape
        if sum(each.nbytes for each in kept.values()) + pixels.nbytes <= HELD_BYTES:
            kept[index] = pixels
    size, _ = Counter(shapes.values()).most_common(1)[0]
    chosen = [index for index, shape in shapes.items() if shape == size]
    return [kept[index] for index in chosen if index in kept][:_KEPT_IMAGES] or [images.image(chosen[0])]


def batch_feeds(sample: list[Pixels], batch_size: int) -> list[Pixels]:
    """Batches (batch_size, height, width, 3) that walk through the sample; a few, so that memory stays small."""
    count = max(1, min(len(sample), 64 // batch_size, HELD_BYTES // (batch_size * sample[0].nbytes)))
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


def _call(runner: Any, feeds: list[Pixels], *, preprocessed: bool) -> Call:
    """One call of a runner; what it returns is the GPU's own time of it, where the runner knows that."""
    ready: list[Any] = []

    def call(number: int) -> float | None:
        if preprocessed:
            if not ready:  # in the warm-up, where an error is the form's alone
                ready.extend([runner.prepare(feed) for feed in feeds])
            runner.infer_prepared(ready[number % len(ready)])
        else:
            runner.infer({"image": feeds[number % len(feeds)]})
        device_ms: float | None = getattr(runner, "device_ms", None)
        return device_ms

    return call
