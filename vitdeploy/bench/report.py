"""The result of a benchmark as data, and its JSON form with a versioned schema (docs/bench.md describes it)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vitdeploy.bench.accuracy import Accuracy
from vitdeploy.bench.statistics import Interval
from vitdeploy.errors import InputError
from vitdeploy.storage import write_atomically

__all__ = ["SCHEMA_VERSION", "ArtifactRef", "BenchReport", "Disagreement", "Latency", "Row"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ArtifactRef:
    """The file behind a row: its path in the bundle (or its name), and its SHA-256 where it has one."""

    path: str
    sha256: str | None = None


@dataclass(frozen=True)
class Latency:
    """Times of one form at one batch size, from uint8 pixels to logits, in milliseconds per call.

    `samples` are all kept times in the order they were taken, `calls_per_round` of them in each round.
    `speedup` is the ratio to the baseline at the same batch size; None where no baseline was measured.
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
    speedup: float | None = None
    speedup_ci95: Interval | None = None
    noise: str | None = None

    @property
    def images_per_s(self) -> float:
        """Images per second of one caller who sends batch after batch: batch size / mean time."""
        return 1000 * self.batch_size / self.mean


@dataclass(frozen=True)
class Row:
    """One form on one backend. `status` is ok, skipped or failed; `reason` says why it is not ok."""

    key: str  # form/backend, unique in a report
    form: str  # fp32, fp16, int8 ...
    backend: str  # pytorch, onnxruntime, openvino, tensorrt, tensorrt-rtx
    status: str
    reason: str | None = None
    artifact: ArtifactRef | None = None
    size_bytes: int | None = None
    cold_start_ms: float | None = None
    latencies: tuple[Latency, ...] = ()
    accuracy: Accuracy | None = None

    @property
    def latency(self) -> Latency | None:
        """The first batch size that was measured: the one that tables and sentences speak of."""
        return self.latencies[0] if self.latencies else None


@dataclass(frozen=True)
class Disagreement:
    """An image on which the forms do not agree: its place in the dataset, true label, and each form's answer.

    `answers` maps a row's key to (label, softmax probability); `image_png` is a small PNG in base64, or empty.
    """

    index: int
    label: str
    answers: Mapping[str, tuple[str, float]]
    image_png: str


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

    def without_pictures(self) -> BenchReport:
        """The report without copies of the dataset's images, for data that must not be passed on."""
        return replace(self, disagreements=tuple(replace(item, image_png="") for item in self.disagreements))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data: schema version 1."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": self.command,
            "created": self.created,
            "partial": self.partial,
            "machine": self.machine,
            "versions": self.versions,
            "dataset": self.dataset,
            "bundle": self.bundle,
            "baseline": self.baseline,
            "settings": self.settings,
            "noisy": self.noisy,
            "noise": list(self.noise),
            "notes": list(self.notes),
            "recommendation": self.recommendation,
            "labels": list(self.labels),
            "rows": [_row_to_json(row) for row in self.rows],
            "disagreement_count": self.disagreement_count,
            "disagreements": [
                {**asdict(item), "answers": {key: list(answer) for key, answer in item.answers.items()}}
                for item in self.disagreements
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchReport:
        """Read what `to_json` gave.

        Raises:
            InputError: it is no such report, or one of a newer schema.
        """
        try:
            version = data["schema_version"]
            if not isinstance(version, int) or version < 1:
                raise ValueError(f"schema_version is {version!r}")
            if version > SCHEMA_VERSION:
                raise InputError(
                    f"this report has schema {version}, this vitdeploy reads up to {SCHEMA_VERSION}",
                    hint="pip install --upgrade vitdeploy",
                )
            plain = (
                "created",
                "machine",
                "versions",
                "dataset",
                "bundle",
                "baseline",
                "settings",
                "partial",
                "command",
            )
            return cls(
                **{name: data[name] for name in plain},
                labels=tuple(data["labels"]),
                rows=tuple(_row_from_json(row) for row in data["rows"]),
                noise=tuple(data["noise"]),
                notes=tuple(data["notes"]),
                recommendation=data["recommendation"],
                disagreement_count=data["disagreement_count"],
                disagreements=tuple(_disagreement_from_json(item) for item in data["disagreements"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"this is no benchmark report: {type(error).__name__} {error}",
                hint="name a file that vitdeploy bench --json wrote",
            ) from error

    def write_json(self, path: Path) -> None:
        """Write the JSON form to `path`, whole or not at all."""
        write_atomically(path, self.dumps() + "\n")

    def dumps(self) -> str:
        """The JSON form as text; long lists of numbers stay on one line each."""
        return _one_line_lists(json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False))


def _row_to_json(row: Row) -> dict[str, Any]:
    first = _latency_to_json(row.latency) if row.latency else {}
    return {
        "key": row.key,
        "form": row.form,
        "backend": row.backend,
        "status": row.status,
        "reason": row.reason,
        "artifact": None if row.artifact is None else asdict(row.artifact),
        "size_bytes": row.size_bytes,
        "cold_start_ms": row.cold_start_ms,
        "batch_size": first.get("batch_size"),
        "latency_ms": first.get("latency_ms"),
        "throughput_images_per_s": first.get("throughput_images_per_s"),
        "speedup": first.get("speedup"),
        "noise": first.get("noise"),
        "other_batches": [_latency_to_json(latency) for latency in row.latencies[1:]],
        "accuracy": None if row.accuracy is None else asdict(row.accuracy),
    }


def _latency_to_json(latency: Latency) -> dict[str, Any]:
    values = asdict(latency)
    names = ("p50", "p90", "p95", "p99", "min", "mean", "calls_per_round", "samples")
    ratio = None
    if latency.speedup is not None and latency.speedup_ci95 is not None:
        ratio = {"ratio": latency.speedup, "ci95": list(latency.speedup_ci95)}
    return {
        "batch_size": latency.batch_size,
        "latency_ms": {name: values[name] for name in names},
        "throughput_images_per_s": latency.images_per_s,
        "speedup": ratio,
        "noise": latency.noise,
    }


def _latency_from_json(data: Mapping[str, Any]) -> Latency:
    times, ratio = dict(data["latency_ms"]), data["speedup"]
    times["samples"] = tuple(times["samples"])
    return Latency(
        batch_size=data["batch_size"],
        speedup=None if ratio is None else ratio["ratio"],
        speedup_ci95=None if ratio is None else _interval(ratio["ci95"]),
        noise=data["noise"],
        **times,
    )


def _row_from_json(data: Mapping[str, Any]) -> Row:
    accuracy = data["accuracy"]
    if accuracy is not None:
        accuracy = dict(accuracy, per_class=tuple(accuracy["per_class"]), ci95=_interval(accuracy["ci95"]))
        if accuracy["delta_ci95"] is not None:
            accuracy["delta_ci95"] = _interval(accuracy["delta_ci95"])
    first = [data] if data["latency_ms"] is not None else []
    return Row(
        **{name: data[name] for name in ("key", "form", "backend", "status", "reason", "size_bytes", "cold_start_ms")},
        artifact=None if data["artifact"] is None else ArtifactRef(**data["artifact"]),
        latencies=tuple(_latency_from_json(item) for item in [*first, *data["other_batches"]]),
        accuracy=None if accuracy is None else Accuracy(**accuracy),
    )


def _disagreement_from_json(data: Mapping[str, Any]) -> Disagreement:
    answers = {key: (str(label), float(score)) for key, (label, score) in data["answers"].items()}
    return Disagreement(data["index"], data["label"], answers, data["image_png"])


def _interval(values: Any) -> Interval:
    low, high = values
    return float(low), float(high)


# JSON has no raw newline inside a string, so this matches lists of numbers alone.
_NUMBERS = re.compile(r"\[\n((?:\s*(?:-?\d[\d.eE+-]*|null),?\n)+)\s*\]")


def _one_line_lists(text: str) -> str:
    """Join the lines of lists that hold nothing but numbers."""
    return _NUMBERS.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text)
