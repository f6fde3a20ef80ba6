"""The JSON schema of a report, made from its records.

python -m vitdeploy.report.schema > docs/bench.schema.json
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from vitdeploy.backends.registry import PERFORMANCES, names
from vitdeploy.bundle.measurements import SCHEMA_VERSION
from vitdeploy.core.decoding import BOUNDS
from vitdeploy.report.records import BenchReport

__all__ = ["schema"]

_PLAIN: dict[Any, dict[str, Any]] = {
    Any: {},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    type(None): {"type": "null"},
}
_MARKS: dict[str, dict[str, Any]] = {  # what an annotation adds
    **BOUNDS,
    "ms": {**BOUNDS["ms"], "description": "milliseconds"},
    "sha256": {"pattern": "^[0-9a-f]{64}$"},
    "date-time": {"format": "date-time"},
    "height, width": {"description": "height, width"},
    "performance": {"enum": list(PERFORMANCES)},
}


def schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of what `BenchReport.to_json` gives."""
    known: dict[str, Any] = {}
    report = _record(BenchReport, known)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vitdeploy bench report, schema version {SCHEMA_VERSION}",
        **report,
        "description": "What vitdeploy bench --json writes. Shares are 0..1, times milliseconds, sizes bytes; what was"
        " not measured is null. docs/bench.md says what each field means.",
        "properties": {"schema_version": {"const": SCHEMA_VERSION}, **report["properties"]},
        "required": ["schema_version", *report["required"]],
        "$defs": dict(sorted(known.items())),
    }


def _record(kind: Any, known: dict[str, Any]) -> dict[str, Any]:
    """A dataclass has all its fields and no others; a typed dict may lack some and have more."""
    hints = get_type_hints(kind, include_extras=True)
    exact = is_dataclass(kind)
    return {
        "type": "object",
        "description": " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split()),
        "properties": {name: _of(hint, known) for name, hint in hints.items()},
        "required": list(hints) if exact else sorted(kind.__required_keys__),
        "additionalProperties": not exact,
    }


def _of(kind: Any, known: dict[str, Any]) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        marks = _MARKS | {"backend": {"enum": list(names())}}
        added = [marks[note] for note in inner[1:] if isinstance(note, str) and note in marks]
        return {**_of(inner[0], known), **(added[0] if added else {})}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(option, known) for option in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple and inner[1:] != (...,):
        items = [_of(item, known) for item in inner]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin in (tuple, list):
        return {"type": "array", "items": _of(inner[0], known)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(inner[1], known)}
    if is_dataclass(kind) or is_typeddict(kind):
        if kind.__name__ not in known:
            known[kind.__name__] = {}  # it may hold itself
            known[kind.__name__] = _record(kind, known)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    return dict(_PLAIN[kind])


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
