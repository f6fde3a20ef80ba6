"""The result of a benchmark as data: the records are its JSON, name by name. docs/bench.md says what each means."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from vitdeploy.bundle.measurements import HINT, SCHEMA_VERSION, upgraded
from vitdeploy.core.decoding import decode
from vitdeploy.core.errors import InputError
from vitdeploy.core.storage import read_json, write_atomically
from vitdeploy.evaluation.accuracy import Accuracy
from vitdeploy.evaluation.changes import Disagreement
from vitdeploy.evaluation.multi_label import MultiLabelAccuracy
from vitdeploy.evaluation.statistics import Interval, Milliseconds, Share
from vitdeploy.evaluation.vectors import VectorQuality
from vitdeploy.models.tasks import SINGLE_LABEL, TASKS
from vitdeploy.report.circumstances import (
    Baseline,
    Data,
    LayerAnalysis,
    Machine,
    MeasuredBundle,
    Picture,
    Reading,
    Recommendation,
    Sha256,
)
from vitdeploy.report.serial import as_text, plain
from vitdeploy.report.settings import BenchSettings

__all__ = [
    "ArtifactRef",
    "BenchReport",
    "ClosedLoad",
    "ColdStart",
    "CudaGraphs",
    "Latency",
    "Load",
    "Memory",
    "OpenLoad",
    "Phases",
    "Quality",
    "Ratio",
    "Row",
    "Samples",
    "Status",
    "Times",
]


Status = Literal["ok", "skipped", "failed"]


@dataclass(frozen=True)
class ArtifactRef:
    """The file behind a row: its path in the bundle (or its name), and its SHA-256 where it has one."""

    path: str
    sha256: Sha256 | None = None


@dataclass(frozen=True)
class Times:
    """Percentiles of `count` times; one is None where fewer than two of them lie beyond it."""

    p50: Milliseconds
    p90: Milliseconds | None
    p95: Milliseconds | None
    p99: Milliseconds | None
    min: Milliseconds
    mean: Milliseconds
    count: int


@dataclass(frozen=True)
class Samples(Times):
    """Times with all kept samples in the order in which they were taken, `calls_per_round` of them in each round."""

    calls_per_round: int = 1
    samples: tuple[Milliseconds, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline: the median over rounds, and its interval where the rounds suffice."""

    ratio: float
    ci95: Interval | None


@dataclass(frozen=True)
class ColdStart:
    """A fresh process: importing the backend, loading the file, the first answer."""

    import_ms: Milliseconds
    load_ms: Milliseconds
    first_ms: Milliseconds

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
class CudaGraphs:
    """Whether an engine's calls run as CUDA graphs: `by` who captures them ("vitdeploy", "TensorRT"; None: nobody),
    `kept` how many are vitdeploy's, `why_not` why a shape that should have one has none, if one has."""

    by: str | None
    kept: int
    why_not: str | None


@dataclass(frozen=True)
class Phases:
    """Medians of one call; `decode_ms` is None for images that have no file.

    `preprocess_share` is the preprocessing's share of the call (preprocess + model), with its interval.
    """

    decode_ms: Milliseconds | None
    preprocess_ms: Milliseconds
    model_ms: Milliseconds
    post_ms: Milliseconds
    preprocess_share: Share
    preprocess_share_ci95: Interval | None


@dataclass(frozen=True)
class Latency:
    """Times of one form at one batch and image size, from uint8 pixels to logits, per call.

    `on_demand_ms` is a call after a rest, as a single request sees it; reports of a schema before 3 have none.
    `steady_ms` are calls that follow each other. The ratios are to the baseline at the same sizes, None where there
    is none. `device_ms` is what the GPU says of the same calls by CUDA events, copies included; None on a CPU.
    `device_speedup` is the ratio of those; `gpu_mhz` the GPU's median clock behind these calls.
    `images_per_s` is what one caller gets who sends batch after batch: batch size / mean of `steady_ms`.
    """

    batch_size: int
    image_size: Annotated[tuple[int, int], "height, width"] | None
    on_demand_ms: Samples | None
    steady_ms: Samples
    images_per_s: float
    on_demand_speedup: Ratio | None = None
    steady_speedup: Ratio | None = None
    device_ms: Times | None = None
    device_speedup: Ratio | None = None
    gpu_mhz: float | None = None
    memory: Memory | None = None
    noise: str | None = None
    busy: str | None = None  # why no ratio is given: the machine was busy

    @property
    def ms(self) -> Samples:
        """The times that tables and sentences speak of: on demand, where that was measured."""
        return self.on_demand_ms or self.steady_ms

    @property
    def speedup(self) -> Ratio | None:
        """The ratio of those times."""
        return self.steady_speedup if self.on_demand_ms is None else self.on_demand_speedup


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
class Load:
    """A form under load."""

    closed: tuple[ClosedLoad, ...] = ()
    open: tuple[OpenLoad, ...] = ()


@dataclass(frozen=True)
class Quality:
    """What a form is judged by: the value of its main metric, 0..1, and that against the baseline's."""

    metric: str  # as it is called: top-1, mAP, kNN top-1, recall@10
    value: Share
    count: int
    delta: float | None
    delta_ci95: Interval | None
    drop_bound: float | None
    agreement: Share | None


@dataclass(frozen=True)
class Row:
    """One form on one backend; `reason` says why its status is not ok.

    `tf32`: its FP32 products are in TF32; None on a CPU. `on_front`: no other row is both faster and more accurate.
    `outside`: the limits of the settings that it breaks.
    """

    key: str  # form/backend, unique in a report
    form: str  # fp32, fp16, int8 ...
    backend: Annotated[str, "backend"]  # a name in `vitdeploy.backends.registry`
    status: Status
    reason: str | None = None
    device: str = "cpu"
    artifact: ArtifactRef | None = None
    answers_sha256: Sha256 | None = None  # of its files, the model's labels and the dataset's classes
    size_bytes: int | None = None
    cold_start_ms: Milliseconds | None = None
    cold_start: ColdStart | None = None  # its parts, where it was taken in a process of its own
    latencies: tuple[Latency, ...] = ()
    phases: Phases | None = None
    load: Load = Load()
    accuracy: Accuracy | None = None
    multi_label: MultiLabelAccuracy | None = None  # in the place of `accuracy` for several labels an image
    embedding: VectorQuality | None = None  # in its place for vectors
    cuda_graphs: CudaGraphs | None = None  # of an engine
    tf32: bool | None = None
    on_front: bool = False
    outside: tuple[str, ...] = ()

    @property
    def from_pixels(self) -> bool:
        """Whether its times begin at decoded pixels; PyTorch is also timed from pixel values that are ready."""
        return not self.form.endswith("-preprocessed")

    @property
    def quality(self) -> Quality | None:
        """What tables and sentences judge it by; None where no answers were compared."""
        if self.embedding is not None:
            return _of_vectors(self.embedding)
        found = self.accuracy or self.multi_label
        if found is None:
            return None
        if isinstance(found, Accuracy):
            named = SINGLE_LABEL.metric, found.top1
        else:
            named = TASKS["multi_label"].metric, found.mean_average_precision
        return Quality(*named, found.count, found.delta, found.delta_ci95, found.drop_bound, found.agreement)

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
        seen = [latency.images_per_s for latency in self.latencies] + [load.images_per_s for load in self.load.closed]
        return max(seen, default=None)


def _of_vectors(found: VectorQuality) -> Quality:
    """An embedding is judged by a classifier of its neighbours, or where there are no classes by the neighbours found;
    these are no change of anything, so they have limits of their own."""
    knn, recall = found.knn, found.recall
    agreement = None if found.neighbour is None else found.neighbour.value
    if knn is not None:
        return Quality(
            f"{found.k}NN top-1", knn.top1, found.count, knn.delta, knn.delta_ci95, knn.drop_bound, agreement
        )
    value = 1.0 if recall is None else recall.value  # the baseline finds its own neighbours
    return Quality(f"recall@{found.k}", value, found.count, None, None, None, agreement)


@dataclass(frozen=True)
class BenchReport:
    """Everything a benchmark found, and on what, with what and how.

    `noise` says which times should not be taken at face value, and why; `notes` what else one must know.
    `disagreement_count` images have a form whose best class is not the baseline's; the most disputed are kept.
    """

    created: Annotated[str, "date-time"]
    machine: Machine
    versions: dict[str, str]
    dataset: Data
    bundle: MeasuredBundle
    baseline: Baseline
    settings: BenchSettings
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    noise: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    analysis: LayerAnalysis | None = None
    explanation: tuple[Picture, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    disagreement_count: int = 0
    recommendation: Recommendation = field(default_factory=Recommendation)
    partial: bool = False
    command: str | None = None

    def __repr__(self) -> str:
        return f"<BenchReport of {self.created}: {', '.join(row.key for row in self.rows)}>"

    def _repr_html_(self) -> str:
        """For a notebook: the main numbers of each form, and the sentence; `render_html` makes the whole page."""
        from vitdeploy.core.notebook import cell, table

        rows = []
        for row in self.rows:
            latency, quality = row.latency, row.quality
            texts = [row.form, row.backend] if row.status == "ok" else [row.form, f"{row.backend}: {row.status}"]
            texts.append("" if latency is None else f"{latency.ms.p50:.2f}")
            texts.append("" if latency is None or latency.speedup is None else f"{latency.speedup.ratio:.2f}×")
            texts.append("" if quality is None else f"{quality.value:.2%}")
            texts.append("" if quality is None or quality.delta is None else f"{100 * quality.delta:+.2f}")
            rows.append([cell(text, bold=row is self.best) for text in texts])
        metric = next((row.quality.metric for row in self.rows if row.quality is not None), "top-1")
        head = ("form", "backend", "p50 ms", "speed-up", metric, "change, points")
        return table(rows, head, str(self.recommendation.get("sentence", "")))

    @property
    def noisy(self) -> bool:
        """Whether some time should not be taken at face value."""
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
        """The report as JSON-ready data, of `SCHEMA_VERSION`."""
        return {"schema_version": SCHEMA_VERSION, **plain(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchReport:
        """Read what `to_json` gave, of this schema or an older one.

        Raises:
            InputError: it is not such a report, or has a newer schema.
        """
        try:
            report: BenchReport = decode(cls, upgraded(data))
            _check(report)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a benchmark report: {error}", hint=HINT) from error
        return report

    @classmethod
    def read(cls, path: str | Path) -> BenchReport:
        """Read a file that `write_json` wrote.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        try:
            data = read_json(Path(path))
        except OSError as error:
            raise InputError(f"{path} can't be read: {error.strerror or error}", hint=HINT) from error
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}", hint=HINT) from error
        return cls.from_json(data)

    def write_json(self, path: str | Path) -> None:
        """Write the JSON form to `path`, whole or not at all."""
        write_atomically(Path(path), self.dumps() + "\n")

    def dumps(self) -> str:
        """The JSON form as text; long lists of numbers stay on one line each."""
        return as_text(self.to_json())


def _check(report: BenchReport) -> None:
    """What the types of a report that was read do not say, and whoever shows it relies on; raises ValueError."""
    keys, classes = {row.key for row in report.rows}, range(len(report.labels))
    if len(keys) < len(report.rows):
        raise ValueError("two rows have one key")
    if unknown := {key for item in report.disagreements for key in item.answers} - keys:
        raise ValueError(f"it has answers of {min(unknown)}, and no such row")
    for row in report.rows:
        for latency in row.latencies:
            _check_latency(latency, row.key)
        if row.cold_start_ms is not None and not _possible([row.cold_start_ms]):
            raise ValueError(f"the start of {row.key} takes {row.cold_start_ms:g} ms")
        used = [item.memory for item in row.latencies if item.memory is not None]
        sizes = [row.size_bytes, *(size for item in used for size in (item.host_peak_bytes, item.device_peak_bytes))]
        if any(size is not None and size < 0 for size in sizes):
            raise ValueError(f"a size of {row.key} is negative")
        accuracy = row.accuracy
        if row.multi_label is not None and len(row.multi_label.per_label) != len(classes):
            raise ValueError(f"the accuracy of {row.key} is not of the report's {len(classes)} labels")
        if accuracy is None:
            continue
        if accuracy.count < 1 or (accuracy.correct is not None and not _bits(accuracy.correct, accuracy.count)):
            raise ValueError(f"the accuracy of {row.key} is not of the {accuracy.count} images that it names")
        confusion, changes = accuracy.confusion, accuracy.changes
        parts = [] if confusion is None else [confusion.true, confusion.answer]
        parts += [] if changes is None else [changes.before, changes.after]
        if len(accuracy.per_class) != len(classes) or not all(index in classes for part in parts for index in part):
            raise ValueError(f"the accuracy of {row.key} is not of the report's {len(classes)} classes")


_LEAST, _MOST = 1e-9, 1e12  # of milliseconds, images per second and ratios: nothing that was measured lies beyond


def _check_latency(latency: Latency, key: str) -> None:
    """Sizes are positive, and so is all that is divided by, or whose logarithm is taken; raises ValueError."""
    if latency.batch_size < 1 or any(side < 1 for side in latency.image_size or ()):
        raise ValueError(f"a batch or image size of {key} is not positive")
    for times in filter(None, (latency.on_demand_ms, latency.steady_ms)):
        if not 1 <= times.calls_per_round <= len(times.samples):
            raise ValueError(f"{key} has {len(times.samples)} times in rounds of {times.calls_per_round}")
        ends = (times.p50, times.p90, times.p95, times.p99, times.min, times.mean)
        if not _possible([*times.samples, *(value for value in ends if value is not None)]):
            raise ValueError(f"a time of {key} is not one that can be measured: zero, or beyond all bounds")
    ratios = [item.ratio for item in (latency.on_demand_speedup, latency.steady_speedup) if item is not None]
    if not _possible([latency.images_per_s, *ratios]):
        raise ValueError(f"a rate or ratio of {key} is not positive, or beyond all bounds")


def _possible(values: Sequence[float]) -> bool:
    return all(_LEAST <= value <= _MOST for value in values)


def _bits(text: str, count: int) -> bool:
    """Whether it holds one bit for each of so many images: see `evaluation.changes.packed`."""
    return len(base64.b64decode(text, validate=True)) == (count + 7) // 8
