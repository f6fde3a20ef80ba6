"""The result of a benchmark as data; its JSON form is in `serial`, its meaning in docs/bench.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitdeploy.bench.accuracy import Accuracy
from vitdeploy.bench.changes import Disagreement
from vitdeploy.bench.statistics import Interval
from vitdeploy.storage import write_atomically

__all__ = [
    "ArtifactRef",
    "BenchReport",
    "ClosedLoad",
    "ColdStart",
    "Latency",
    "Memory",
    "OpenLoad",
    "Phases",
    "Row",
    "Times",
]


@dataclass(frozen=True)
class ArtifactRef:
    """The file behind a row: its path in the bundle (or its name), and its SHA-256 where it has one."""

    path: str
    sha256: str | None = None


@dataclass(frozen=True)
class Times:
    """Percentiles of times in milliseconds, and how many there were."""

    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    mean: float
    count: int


@dataclass(frozen=True)
class ColdStart:
    """Milliseconds in a fresh process: importing the backend, loading the file, the first answer."""

    import_ms: float
    load_ms: float
    first_ms: float

    @property
    def total_ms(self) -> float:
        return self.import_ms + self.load_ms + self.first_ms


@dataclass(frozen=True)
class Memory:
    """Peak of a process that did nothing but run one form: resident set, and GPU memory beyond CUDA's context."""

    host_peak_bytes: int | None
    device_peak_bytes: int | None

    @property
    def total_bytes(self) -> int | None:
        parts = [part for part in (self.host_peak_bytes, self.device_peak_bytes) if part is not None]
        return sum(parts) if parts else None


@dataclass(frozen=True)
class Phases:
    """Medians in milliseconds of one call; `decode_ms` is None for images that have no file.

    `preprocess_share` is the preprocessing's share of the call (preprocess + model), 0..1, with its interval.
    """

    decode_ms: float | None
    preprocess_ms: float
    model_ms: float
    post_ms: float
    preprocess_share: float
    preprocess_share_ci95: Interval


@dataclass(frozen=True)
class Latency:
    """Times of one form at one batch and image size, from uint8 pixels to logits, in milliseconds per call.

    `samples` are all kept times in the order they were taken, `calls_per_round` of them in each round.
    `speedup` is the ratio to the baseline at the same sizes; None where no baseline was measured. `device` is what the
    GPU says of the same calls by CUDA events, copies included; None on a CPU.
    """

    batch_size: int
    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    mean: float
    samples: tuple[float, ...]
    calls_per_round: int
    image_size: tuple[int, int] | None = None  # height, width
    speedup: float | None = None
    speedup_ci95: Interval | None = None
    noise: str | None = None
    device: Times | None = None
    memory: Memory | None = None

    @property
    def images_per_s(self) -> float:
        """Images per second of one caller who sends batch after batch: batch size / mean time."""
        return 1000 * self.batch_size / self.mean


@dataclass(frozen=True)
class ClosedLoad:
    """Throughput with `callers` who each send one request after another."""

    callers: int
    images_per_s: float
    latency_ms: Times


@dataclass(frozen=True)
class OpenLoad:
    """Latency while requests arrive at `rate` per second: from when each was due, and from when it was begun."""

    rate: float
    callers: int
    latency_ms: Times
    service_ms: Times
    keeps_up: bool


@dataclass(frozen=True)
class Row:
    """One form on one backend. `status` is ok, skipped or failed; `reason` says why it is not ok.

    `on_front`: no other row is both faster and more accurate. `outside`: the limits of the wish that it breaks.
    """

    key: str  # form/backend, unique in a report
    form: str  # fp32, fp16, int8 ...
    backend: str  # pytorch, onnxruntime, openvino, native, tensorrt, tensorrt-rtx
    status: str
    reason: str | None = None
    device: str = "cpu"
    artifact: ArtifactRef | None = None
    size_bytes: int | None = None
    cold_start_ms: float | None = None
    cold_start: ColdStart | None = None  # its parts, where it was taken in a process of its own
    latencies: tuple[Latency, ...] = ()
    phases: Phases | None = None
    closed: tuple[ClosedLoad, ...] = ()
    open: tuple[OpenLoad, ...] = ()
    accuracy: Accuracy | None = None
    on_front: bool = False
    outside: tuple[str, ...] = ()

    @property
    def latency(self) -> Latency | None:
        """The first batch and image size that was measured: the one that tables and sentences speak of."""
        return self.latencies[0] if self.latencies else None

    @property
    def memory(self) -> Memory | None:
        """The memory at those sizes."""
        return self.latency.memory if self.latency else None

    @property
    def images_per_s(self) -> float | None:
        """The most images per second that were seen, at whatever batch size and number of callers."""
        seen = [latency.images_per_s for latency in self.latencies] + [load.images_per_s for load in self.closed]
        return max(seen, default=None)


@dataclass(frozen=True)
class BenchReport:
    """Everything a benchmark found, and on what, with what and how."""

    created: str
    machine: dict[str, Any]
    versions: dict[str, str]
    dataset: dict[str, Any]
    bundle: dict[str, Any]
    baseline: dict[str, Any]
    settings: dict[str, Any]
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    noise: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    readings: tuple[dict[str, Any], ...] = ()
    analysis: dict[str, Any] | None = None
    explanation: tuple[dict[str, str], ...] = ()  # of `vitdeploy explain`: name and PNG (base64) of each picture
    disagreements: tuple[Disagreement, ...] = ()
    disagreement_count: int = 0
    recommendation: dict[str, Any] = field(default_factory=dict)
    partial: bool = False
    command: str | None = None

    @property
    def noisy(self) -> bool:
        """Whether some time should not be taken at face value; `noise` says which and why."""
        return bool(self.noise)

    def row(self, key: str) -> Row:
        """The row of that key; KeyError when there is none."""
        for row in self.rows:
            if row.key == key:
                return row
        raise KeyError(key)

    @property
    def base(self) -> Row | None:
        """The row that the others are compared with."""
        return next((row for row in self.rows if row.key == self.baseline.get("key")), None)

    @property
    def best(self) -> Row | None:
        """The recommended row."""
        return next((row for row in self.rows if row.key == self.recommendation.get("key")), None)

    def without_pictures(self) -> BenchReport:
        """The report without copies of the dataset's images, for data that must not be passed on."""
        bare = tuple(replace(item, image_png="") for item in self.disagreements)
        return replace(self, disagreements=bare, explanation=())

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data, of `serial.SCHEMA_VERSION`."""
        from vitdeploy.bench import serial

        return serial.to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchReport:
        """Read what `to_json` gave, of this schema or an older one.

        Raises:
            InputError: it is no such report, or one of a newer schema.
        """
        from vitdeploy.bench import serial

        return serial.from_json(data)

    @classmethod
    def read(cls, path: str | Path) -> BenchReport:
        """Read a file that `write_json` wrote.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        from vitdeploy.bench import serial

        return serial.read(Path(path))

    def write_json(self, path: str | Path) -> None:
        """Write the JSON form to `path`, whole or not at all."""
        write_atomically(Path(path), self.dumps() + "\n")

    def dumps(self) -> str:
        """The JSON form as text; long lists of numbers stay on one line each."""
        from vitdeploy.bench import serial

        return serial.dumps(self)
