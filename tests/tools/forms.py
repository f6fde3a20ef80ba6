"""Runners whose times and answers are known, on a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from vitdeploy.bench import latency
from vitdeploy.bench.forms import Form
from vitdeploy.bench.measurement import Benchmark
from vitdeploy.bench.run import assemble
from vitdeploy.core.errors import InputError
from vitdeploy.models.tasks import EMBEDDING, SINGLE_LABEL, Task
from vitdeploy.report.records import ArtifactRef, BenchReport
from vitdeploy.report.settings import BenchSettings

CLASSES = 10


class Clock:
    """A clock that stands still until a runner takes its time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def rest(self, seconds: float) -> None:
        self.seconds += seconds


class KnownRunner:
    """Reads the class that `Pictures` wrote into an image's first pixel, and takes as long as it is told to."""

    def __init__(
        self,
        clock: Clock,
        classes: int,
        *,
        takes_ms: Callable[[], float] = lambda: 10.0,
        flip: Callable[[int], bool] = lambda number: False,
        max_batch: int = 1000,
        breaks_after: int | None = None,
        raises: BaseException | None = None,
    ) -> None:
        self.clock, self.classes, self.takes_ms, self.flip = clock, classes, takes_ms, flip
        self.max_batch, self.breaks_after, self.raises = max_batch, breaks_after, raises
        self.calls = 0
        self.open = 0

    def __enter__(self) -> KnownRunner:
        self.open += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self.open -= 1

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]], /) -> dict[str, npt.NDArray[np.float32]]:
        assert self.open == 1
        images = feeds["image"]
        self.calls += 1
        if self.breaks_after is not None and self.calls > self.breaks_after:
            raise self.raises or RuntimeError("the device went away")
        if len(images) > self.max_batch:
            raise InputError(f"a batch of {len(images)} is outside 1..{self.max_batch}")
        self.clock.seconds += self.takes_ms() / 1000
        logits = np.zeros((len(images), self.classes), np.float32)
        for place, pixels in enumerate(images):
            number, answer = int(pixels[0, 0, 0]) * 256 + int(pixels[0, 0, 1]), int(pixels[0, 0, 2])
            logits[place, (answer + 1) % self.classes if self.flip(number) else answer] = 4.0
        return {"logits": logits}


class Pictures:
    """A dataset whose images carry their number and their class in the first pixel; sizes may be mixed."""

    name, split, fingerprint = "pictures", "test", "f" * 64

    def __init__(
        self, count: int, classes: int, sizes: tuple[tuple[int, int], ...] = ((4, 4),), order: Any = None
    ) -> None:
        self.sizes = sizes
        self.labels = tuple(f"class {i}" for i in range(classes))
        self.numbers = np.arange(count) if order is None else np.asarray(order)

    @property
    def label_ids(self) -> npt.NDArray[np.int64]:
        return (self.numbers * 7 % len(self.labels)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        number = int(self.numbers[index])
        pixels = np.zeros((*self.sizes[number % len(self.sizes)], 3), np.uint8)
        pixels[0, 0] = number // 256, number % 256, number * 7 % len(self.labels)
        return pixels

    def subset(self, indices: Any) -> Pictures:
        return Pictures(0, len(self.labels), self.sizes, self.numbers[np.asarray(indices)])

    def describe(self) -> dict[str, Any]:
        return {"name": "pictures", "split": "test", "source": "/home/ada/pictures"}


def form(name: str, backend: str, runner: Any, **changes: Any) -> Form:
    """A form around a runner that already exists."""

    def open_it() -> AbstractContextManager[Any]:
        return runner if hasattr(runner, "__enter__") else nullcontext(runner)

    return Form(name, backend, open_it, ArtifactRef(f"{name}.onnx", "0" * 64), 1000, **changes)


def noisy(milliseconds: float, seed: int) -> Any:
    """Times around a mean, a few per cent apart."""
    draw = np.random.default_rng(seed)
    return lambda: milliseconds * float(draw.lognormal(0, 0.03))


def report_on(
    forms: list[Any],
    clock: Clock,
    images: Pictures | None = None,
    gpu_clock: Callable[[], float | None] = lambda: None,
    task: Task = SINGLE_LABEL,
    **settings: Any,
) -> BenchReport:
    """The report of a benchmark of these forms, `partial` where a runner raises KeyboardInterrupt.

    Their answers are scores, or vectors of images without classes where `task` is an embedding.
    The garbage collector is left alone: it cannot disturb a known clock, and to collect all that tests load takes long.
    """
    images = images or Pictures(400, CLASSES)
    wanted = BenchSettings(**{"rounds": 40, **settings})
    benchmark = Benchmark(forms, images, CLASSES, wanted, clock=clock, gpu_clock=gpu_clock)
    partial = False
    try:
        with mock.patch.object(latency, "_quiet_garbage_collector", nullcontext):
            benchmark.run()
    except KeyboardInterrupt:
        partial = True
    facts = {
        **{key: {} for key in ("machine", "versions", "dataset", "bundle")},
        "created": "2026-01-01T00:00:00+00:00",
        "labels": images.labels,
        "readings": (),
        "settings": wanted,
        "partial": partial,
    }
    return assemble(benchmark, images, None if task.kind is EMBEDDING else images.label_ids, facts, task)


def report_of(
    int8_ms: float = 10.0, flip: int = 0, seed: int = 0, base_ms: float = 20.0, images: int = 1000, **changes: Any
) -> BenchReport:
    """A benchmark of known runners: PyTorch and INT8, which flips `flip` of each 100 answers."""
    facts = {"dataset": {"fingerprint": "f"}, "machine": {"cpu": "A"}, "versions": {"openvino": "1"}, **changes}
    return replace(_report_of(int8_ms, flip, seed, base_ms, images), **facts)


@cache
def _report_of(int8_ms: float, flip: int, seed: int, base_ms: float, images: int) -> BenchReport:
    clock = Clock()
    forms = [
        form("fp32", "pytorch", KnownRunner(clock, CLASSES, takes_ms=noisy(base_ms, seed))),
        form("int8", "openvino", KnownRunner(clock, CLASSES, takes_ms=noisy(int8_ms, seed + 1),
                                             flip=lambda n: n % 100 < flip)),
    ]  # fmt: skip
    return report_on(forms, clock, Pictures(images, CLASSES), rounds=40)
