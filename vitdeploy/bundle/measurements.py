"""The one reader of a benchmark's JSON: what each schema means, and what `load` and `inspect` need of a report.

`upgraded` makes a report of any older schema one of the newest; the full records in `vitdeploy.report.records` are
read from that, and so is `Measurements`, which needs neither the records nor what they need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from vitdeploy.bundle.opening import Bundle
from vitdeploy.bundle.records import Artifact
from vitdeploy.core.decoding import decode, schema_version
from vitdeploy.core.errors import BundleError, InputError
from vitdeploy.core.installing import update_words
from vitdeploy.core.storage import read_json
from vitdeploy.core.text import quoted

__all__ = ["HINT", "REPORT", "SCHEMA_VERSION", "MeasuredForm", "Measurements", "last_report", "upgraded"]

SCHEMA_VERSION = 3
REPORT = "bench/report.json"  # in a bundle
HINT = "name a file that vitdeploy bench --json wrote"


def last_report(bundle: Bundle) -> Artifact | None:
    """The JSON of a bundle's last benchmark; None before one."""
    return next((artifact for artifact in bundle.select(kind="bench") if artifact.path == REPORT), None)


def upgraded(data: Any) -> Mapping[str, Any]:
    """A report's JSON, of any schema there was, as one of `SCHEMA_VERSION`.

    Raises:
        InputError: it is not a report, or one of a newer schema.
        KeyError, TypeError, ValueError, AttributeError: it lacks what its schema says.
    """
    try:
        version = schema_version(data)
    except ValueError as error:
        raise InputError(f"this is not a benchmark report: its {error}", hint=HINT) from error
    if version > SCHEMA_VERSION:
        raise InputError(
            f"this report has schema {version}, this vitdeploy reads up to {SCHEMA_VERSION}",
            hint=update_words(),
        )
    if version < 2:
        data = _from_1(data)
    return _from_2(data) if version < 3 else data


def _from_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 had one image size, no memory, phases, loads, readings or analysis."""

    def point(old: Mapping[str, Any]) -> dict[str, Any]:
        return {**old, "image_size": size if old["latency_ms"] else None, "device_latency_ms": None, "memory": None}

    size = data["settings"].get("image_size")
    rows = []
    for row in data["rows"]:
        others = [point(other) for other in row["other_batches"]]
        rows.append({**point(row), "other_points": others, "load": {"closed": [], "open": []}})
    return {**data, "rows": rows, "readings": [], "analysis": None}


def _from_2(data: Mapping[str, Any]) -> dict[str, Any]:
    """Version 2 had the first size of a row in the row itself, and kept more calls of a fast form than of a slow one.

    Those calls followed each other, so they are steady ones; a call after a rest was not kept.
    """

    def point(old: Mapping[str, Any]) -> dict[str, Any]:
        times = old["latency_ms"]
        count = len(times["samples"])
        # As in `vitdeploy.evaluation.statistics`: beyond a percentile lie two calls or more.
        few = {name: None for name, least in (("p90", 20), ("p95", 40), ("p99", 200)) if count < least}
        return {
            **{name: old[name] for name in ("batch_size", "image_size", "memory", "noise")},
            "on_demand_ms": None,
            "steady_ms": {**times, **few, "count": count},
            "images_per_s": old["throughput_images_per_s"],
            "steady_speedup": old["speedup"],
            "device_ms": old["device_latency_ms"],
        }

    rows = []
    for row in data["rows"]:
        points = [*([row] if row["latency_ms"] is not None else []), *row["other_points"]]
        rows.append({**row, "latencies": [point(old) for old in points]})
    settings = dict(data["settings"])
    latency = settings.get("latency")
    clock = {name: latency[name] for name in _CLOCK if name in latency} if isinstance(latency, Mapping) else {}
    return {**data, "rows": rows, "settings": {**clock, **settings, "latency": latency is not None}}


_CLOCK = ("rounds", "min_rounds", "max_seconds", "seed", "warmup_seconds", "rest_seconds")


@dataclass(frozen=True)
class _File:
    path: str
    sha256: str | None = None


@dataclass(frozen=True)
class _Accuracy:
    delta: float | None = None


@dataclass(frozen=True)
class _Kept:
    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class _Vectors:
    """What a form keeps of the baseline's vectors, by 95 % intervals; the baseline itself was not compared."""

    k: int = 1
    cosine: _Kept | None = None
    recall: _Kept | None = None
    knn: _Accuracy | None = None


@dataclass(frozen=True)
class _Times:
    p50: Annotated[float, "ms"]


@dataclass(frozen=True)
class _Latency:
    batch_size: int
    on_demand_ms: _Times | None = None
    steady_ms: _Times | None = None
    busy: str | None = None


@dataclass(frozen=True)
class MeasuredForm:
    """What was found of one form on one backend: the fields of a report's row that are needed here."""

    key: str
    status: str
    backend: str
    reason: str | None = None
    device: str = "cpu"
    artifact: _File | None = None
    accuracy: _Accuracy | None = None
    multi_label: _Accuracy | None = None
    embedding: _Vectors | None = None
    latencies: tuple[_Latency, ...] = ()

    @property
    def sha256(self) -> str | None:
        """Of its file."""
        return None if self.artifact is None else self.artifact.sha256

    @property
    def loss(self) -> float | None:
        """Points that it loses of the task's `metric`, None where it was not compared with a baseline."""
        found = self.accuracy or self.multi_label or (None if self.embedding is None else self.embedding.knn)
        delta = None if found is None else found.delta
        return None if delta is None else -100 * delta

    @property
    def batch_size(self) -> int:
        """At which `time_ms` was measured."""
        return self.latencies[0].batch_size if self.latencies else 1

    @property
    def time_ms(self) -> float | None:
        """Per image, None where it was not timed, or while the machine was busy."""
        first = self.latencies[0] if self.latencies and self.status == "ok" else None
        times = None if first is None or first.busy else first.on_demand_ms or first.steady_ms
        return None if times is None else times.p50 / self.batch_size


@dataclass(frozen=True)
class _Settings:
    max_drop_points: float
    min_cosine: float | None = None
    min_recall: float | None = None
    neighbours: int | None = None
    threads: int | None = None
    performance: str = "latency"


@dataclass(frozen=True)
class _Recommendation:
    sentence: str | None = None


@dataclass(frozen=True)
class _Data:
    count: int | None = None


@dataclass(frozen=True)
class Measurements:
    """What a report says of its forms, and under which circumstances: the fields of a report that are needed here."""

    created: str
    recommendation: _Recommendation
    dataset: _Data
    machine: dict[str, Any]
    settings: _Settings
    rows: tuple[MeasuredForm, ...]

    @classmethod
    def of(cls, bundle: Bundle, artifact: Artifact | None = None) -> Measurements:
        """Read a report that a bundle holds: the last one, or the one that is named.

        Raises:
            BundleError: it is not the file that the manifest describes, or no report that can be read.
        """
        hint = f"measure again: vitdeploy bench {quoted(bundle.path)} --dataset DATA"
        artifact = artifact or last_report(bundle)
        if artifact is None:
            raise BundleError(f"{bundle.path} holds no benchmark", hint=hint)
        try:
            found: Measurements = decode(cls, upgraded(read_json(bundle.file(artifact))))
        except InputError as error:
            raise BundleError(f"{artifact.path}: {error.message}", hint=hint) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{artifact.path} is not a benchmark report: {error}", hint=hint) from error
        return found
