"""What to measure and how, and what the form to ship must keep to: one frozen spec, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitdeploy.errors import InputError

__all__ = ["BACKENDS", "DEVICES", "PREFERENCES", "VARIANTS", "BenchSettings", "Wish"]

BACKENDS = ("pytorch", "onnxruntime", "openvino", "native", "tensorrt", "tensorrt-rtx")
DEVICES = ("auto", "cpu", "cuda")
PREFERENCES = ("latency", "throughput", "size")
VARIANTS = ("bf16", "fp16", "compile", "bf16-compile")


@dataclass(frozen=True)
class Wish:
    """What the form to ship must keep to, and what it shall be best at; a limit of None is none.

    `max_drop_points` is top-1 against the baseline; `max_latency_ms` holds for p95 at the first batch and image size;
    `max_memory_bytes` for the peak of the process and of the GPU together.
    """

    max_drop_points: float = 1.0
    max_latency_ms: float | None = None
    max_memory_bytes: int | None = None
    prefer: str = "latency"


@dataclass(frozen=True)
class BenchSettings:
    """What to measure; sequences may be given as lists.

    Args:
        limit: how many images to compare, drawn so that each class keeps its share; None: all.
        batch_sizes: images per timed call; tables and sentences speak of the first.
        image_sizes: (height, width) to which images are resized for timing; none: the dataset's most common size.
        backends: of `BACKENDS`; None: all. The baseline always runs.
        precisions: fp32, fp16, bf16, int8, or int8-tensorrt for the graph that engines are built from; None: all.
        baselines: further PyTorch rows, of `VARIANTS`: autocast in bf16 or fp16, torch.compile, both.
        device: where PyTorch runs: "cuda", "cpu", or "auto" for a GPU where there is one.
        threads: CPU threads, the same for every backend; None: as many as there are usable cores.
        rounds: how often each form has its turn; fewer, but not under 10, once `max_seconds` are over.
        latency: measure times.
        accuracy: compare answers.
        memory: measure memory and cold start, each form in a process of its own (with `latency` only).
        phases: measure decoding, preprocessing, model and what follows apart (with `latency` only).
        callers: for each number, throughput with that many callers who send one request after another.
        rates: for each number, latency while that many requests per second arrive.
        load_seconds: how long each form is under each such load.
        max_drop_points, max_latency_ms, max_memory_bytes, prefer: see `Wish`.
        seed: orders the rounds, draws the `limit` images and the arrivals.

    Raises:
        InputError: a value out of range; the hint names the option.
    """

    limit: int | None = None
    batch_sizes: tuple[int, ...] = (1,)
    image_sizes: tuple[tuple[int, int], ...] = ()
    backends: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    baselines: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    rounds: int = 50
    max_seconds: float = 120.0
    latency: bool = True
    accuracy: bool = True
    memory: bool = True
    phases: bool = True
    callers: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    load_seconds: float = 6.0
    max_drop_points: float = 1.0
    max_latency_ms: float | None = None
    max_memory_bytes: int | None = None
    prefer: str = "latency"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "image_sizes", "backends", "precisions", "baselines", "callers", "rates"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        object.__setattr__(self, "image_sizes", tuple(_pair(size) for size in self.image_sizes))
        self._check_lists()
        for name in ("limit", "threads", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}", hint=f"--{name} 1 or more")
        for name in ("max_latency_ms", "max_memory_bytes", "load_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} must be above 0, got {value}", hint="leave it out to set no limit")
        _known("backend", self.backends or (), BACKENDS)
        _known("baseline", self.baselines, VARIANTS)
        _known("device", (self.device,), DEVICES)
        _known("preference", (self.prefer,), PREFERENCES)
        if not (self.latency or self.accuracy):
            raise InputError("neither latency nor accuracy is to be measured", hint="leave one of the two on")
        if self.max_latency_ms is not None and not self.latency:
            raise InputError("a limit on latency needs latency to be measured", hint="leave --no-latency out")
        if self.max_memory_bytes is not None and not (self.latency and self.memory):
            raise InputError("a limit on memory needs memory to be measured", hint="leave --no-memory out")

    def _check_lists(self) -> None:
        sizes = self.batch_sizes
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise InputError(
                f"batch sizes must be different and at least 1, got {list(sizes)}", hint="--batch-size 1,8"
            )
        if any(min(size) < 1 for size in self.image_sizes) or len(set(self.image_sizes)) < len(self.image_sizes):
            raise InputError(
                f"image sizes must be different and at least 1, got {list(self.image_sizes)}",
                hint="--image-size 224,480x640 (height x width)",
            )
        for name, values in (("callers", self.callers), ("rates", self.rates)):
            if any(value <= 0 for value in values) or len(set(values)) < len(values):
                raise InputError(f"{name} must be different and above 0, got {list(values)}", hint="--callers, --rate")

    @property
    def wish(self) -> Wish:
        """What the form to ship must keep to."""
        return Wish(self.max_drop_points, self.max_latency_ms, self.max_memory_bytes, self.prefer)


def _pair(size: Any) -> tuple[int, int]:
    height, width = size
    return int(height), int(width)


def _known(what: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise InputError(f"there is no {what} {value!r}", hint=f"one of {', '.join(known)}")
