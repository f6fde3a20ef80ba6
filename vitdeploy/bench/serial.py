"""The report as JSON: schema version 2, described by docs/bench.schema.json; version 1 can still be read."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from vitdeploy.bench.report import BenchReport, Latency, Row
from vitdeploy.errors import InputError

__all__ = ["SCHEMA_VERSION", "dumps", "from_json", "read", "to_json"]

SCHEMA_VERSION = 2
_PLAIN = ("created", "machine", "versions", "dataset", "bundle", "baseline", "settings", "partial", "command")
_PERCENTILES = ("p50", "p90", "p95", "p99", "min", "mean", "calls_per_round", "samples")
_HINT = "name a file that vitdeploy bench --json wrote"


def to_json(report: BenchReport) -> dict[str, Any]:
    """The report as JSON-ready data."""
    return {
        "schema_version": SCHEMA_VERSION,
        **{name: getattr(report, name) for name in _PLAIN},
        "noisy": report.noisy,
        "noise": list(report.noise),
        "notes": list(report.notes),
        "readings": list(report.readings),
        "recommendation": report.recommendation,
        "labels": list(report.labels),
        "rows": [_row_to_json(row) for row in report.rows],
        "analysis": report.analysis,
        "explanation": list(report.explanation),
        "disagreement_count": report.disagreement_count,
        "disagreements": [_plain(item) for item in report.disagreements],
    }


def from_json(data: Mapping[str, Any]) -> BenchReport:
    """Read what `to_json` gave, of this schema or version 1.

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
        if version == 1:
            data = _from_version_1(data)
        rest = {name: data[name] for name in ("noise", "notes", "readings", "disagreements")}
        return BenchReport(
            **{name: data[name] for name in (*_PLAIN, "recommendation", "disagreement_count", "analysis")},
            **{name: _revive(_hints(BenchReport)[name], value) for name, value in rest.items()},
            explanation=tuple(dict(picture) for picture in data.get("explanation", ())),
            labels=tuple(data["labels"]),
            rows=tuple(_row_from_json(row) for row in data["rows"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"this is no benchmark report: {type(error).__name__} {error}", hint=_HINT) from error


def read(path: Path) -> BenchReport:
    """Read a report's file.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}", hint=_HINT) from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}", hint=_HINT) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is no benchmark report", hint=_HINT)
    return from_json(data)


def dumps(report: BenchReport) -> str:
    """The JSON as text; long lists of numbers stay on one line each."""
    return _one_line_lists(json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False))


def _row_to_json(row: Row) -> dict[str, Any]:
    values = {field.name: _plain(getattr(row, field.name)) for field in fields(row) if field.name != "latencies"}
    load = {"closed": values.pop("closed"), "open": values.pop("open")}
    accuracy = values.pop("accuracy")
    empty = dict.fromkeys(_point_to_json(_NOTHING))
    first, *others = [_point_to_json(latency) for latency in row.latencies] or [empty]
    return {**values, **first, "other_points": others, "load": load, "accuracy": accuracy}


def _point_to_json(latency: Latency) -> dict[str, Any]:
    values = _plain(latency)
    ratio = None
    if latency.speedup is not None and latency.speedup_ci95 is not None:
        ratio = {"ratio": latency.speedup, "ci95": list(latency.speedup_ci95)}
    return {
        "batch_size": latency.batch_size,
        "image_size": values["image_size"],
        "latency_ms": {name: values[name] for name in _PERCENTILES},
        "device_latency_ms": values["device"],
        "throughput_images_per_s": latency.images_per_s,
        "speedup": ratio,
        "memory": values["memory"],
        "noise": latency.noise,
    }


_NOTHING = Latency(1, 1, 1, 1, 1, 1, 1, (), 1)


def _row_from_json(data: Mapping[str, Any]) -> Row:
    points = [*([data] if data["latency_ms"] is not None else []), *data["other_points"]]
    values = {
        field.name: _revive(_hints(Row)[field.name], data[field.name]) for field in fields(Row) if field.name in data
    }
    for name in ("closed", "open"):
        values[name] = _revive(_hints(Row)[name], data["load"][name])
    return Row(**{**values, "latencies": tuple(_point_from_json(point) for point in points)})


def _point_from_json(data: Mapping[str, Any]) -> Latency:
    ratio = data["speedup"] or {"ratio": None, "ci95": None}
    values = {
        **data["latency_ms"],
        **{name: data[name] for name in ("batch_size", "image_size", "memory", "noise")},
        "device": data["device_latency_ms"],
        "speedup": ratio["ratio"],
        "speedup_ci95": ratio["ci95"],
    }
    made: Latency = _made(Latency, values)
    return made


def _from_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 had one image size, no memory, phases, loads, readings or analysis."""

    def point(old: Mapping[str, Any]) -> dict[str, Any]:
        return {**old, "image_size": size if old["latency_ms"] else None, "device_latency_ms": None, "memory": None}

    size = data["settings"].get("image_size")
    rows = []
    for row in data["rows"]:
        others = [point(other) for other in row["other_batches"]]
        rows.append({**point(row), "other_points": others, "load": {"closed": [], "open": []}})
    return {**data, "rows": rows, "readings": [], "analysis": None}


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _revive(kind: Any, value: Any) -> Any:
    """`value` out of JSON as the type that a field declares: dataclasses and tuples come back."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in inner if option is not type(None)]
        return None if value is None else _revive(options[0], value) if len(options) == 1 else value
    if is_dataclass(kind) and isinstance(kind, type):
        return _made(kind, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list")
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        return tuple(_revive(each, item) for each, item in zip(kinds, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return {key: _revive(inner[1], item) for key, item in value.items()}
    return value


def _made(kind: Any, data: Mapping[str, Any]) -> Any:
    """A dataclass from its fields; fields that it does not know come from a later version and are left out."""
    hints = _hints(kind)
    return kind(**{name: _revive(hints[name], data[name]) for name in hints if name in data})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


# JSON has no raw newline inside a string, so this matches lists of numbers alone.
_NUMBERS = re.compile(r"\[\n((?:\s*(?:-?\d[\d.eE+-]*|null),?\n)+)\s*\]")


def _one_line_lists(text: str) -> str:
    """Join the lines of lists that hold nothing but numbers."""
    return _NUMBERS.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text)
