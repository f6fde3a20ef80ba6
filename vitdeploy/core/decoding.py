"""JSON into frozen dataclasses by their declared types: what is missing or of another type is refused by its place.

Files come from strangers, so nothing is converted: a boolean is not a number, a number is not text, and NaN and
infinity are not measurements, nor is a share above 1 or a time before 0 (`BOUNDS`), and whole numbers have 64 bits.
Fields that a dataclass does not know come from a later version and are left out.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["BOUNDS", "decode", "schema_version"]

BOUNDS = {  # of Annotated[float, name], as a JSON schema says it
    "0..1": {"minimum": 0, "maximum": 1},
    "-1..1": {"minimum": -1, "maximum": 1},
    "ms": {"minimum": 0},
}
_ROUNDING = 1e-6  # sums of shares may end this far beyond their bound
_LARGEST = 2**63

_PLAIN: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def schema_version(data: Any) -> int:
    """The version that a file of ours says it has.

    Raises:
        ValueError: it says none, or none that there can be.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError(f"schema_version is {version!r}")
    return version


def decode(kind: Any, value: Any, place: str = "") -> Any:
    """`value`, as `json.loads` gave it, as an object of type `kind`.

    Args:
        kind: a dataclass, str, int, float, bool, Any, Literal, a typed dict, a union of them, tuple[...],
            list[...], a mapping of text, or Annotated[...] of one.
        place: where the value stands, for messages: "artifacts[3].path".

    Raises:
        ValueError: it is not such a value; the message says where and what.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _bounded(inner, value, place)
    if origin in (Union, types.UnionType):
        return _one_of(inner, value, place)
    if origin is Literal:
        if value in inner and type(value) in {type(each) for each in inner}:
            return value
        raise _wrong(value, place, f"one of {', '.join(map(repr, inner))}")
    if is_dataclass(kind):
        return _dataclass(kind, value, place)
    if is_typeddict(kind):
        return _typed_dict(kind, value, place)
    if origin is tuple:
        return _tuple(inner, value, place)
    if origin is list:
        return list(_tuple((*inner, ...), value, place))
    if kind is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, dict):
            raise _wrong(value, place, "an object")
        return {key: decode(inner[1], item, f"{place}.{key}") for key, item in value.items()} if inner else value
    return _plain(kind, value, place)


def _bounded(inner: tuple[Any, ...], value: Any, place: str) -> Any:
    """`value` as the annotated type, and within the bounds of its marks."""
    made = decode(inner[0], value, place)
    for mark in inner[1:]:
        ends = BOUNDS.get(mark, {}) if isinstance(mark, str) else {}
        low, high = ends.get("minimum", -math.inf), ends.get("maximum", math.inf)
        if isinstance(made, float) and not low - _ROUNDING <= made <= high + _ROUNDING:
            raise _wrong(value, place, f"{low:g} or more" if math.isinf(high) else f"within {low:g} and {high:g}")
    return made


def _plain(kind: Any, value: Any, place: str) -> Any:
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise _wrong(value, place, "a finite number") from error
    if type(value) is not kind:
        raise _wrong(value, place, _PLAIN[kind])
    if kind is int and not -_LARGEST <= value < _LARGEST:
        raise _wrong(value, place, "a whole number of 64 bits")
    if kind is float and not math.isfinite(value):
        raise _wrong(value, place, "a finite number")
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None:
        if type(None) in kinds:
            return None
        raise ValueError(f"{place or 'it'} is null")
    options = [kind for kind in kinds if kind is not type(None)]
    for kind in options[:-1]:
        try:
            return decode(kind, value, place)
        except ValueError:
            continue
    return decode(options[-1], value, place)


def _tuple(kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(value, place, "a list")
    if kinds[1:] == (...,):
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{place or 'the list'} has {len(value)} entries, not {len(kinds)}")
    return tuple(decode(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _dataclass(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, place, "an object")
    made, prefix = {}, f"{place}." if place else ""
    for name, (hint, required) in _fields(kind).items():
        if name in value:
            made[name] = decode(hint, value[name], prefix + name)
        elif required:
            raise ValueError(f"{prefix}{name} is missing")
    return kind(**made)


def _typed_dict(kind: Any, value: Any, place: str) -> dict[str, Any]:
    """What it knows is of the right type; what it does not know is left as it is."""
    if not isinstance(value, dict):
        raise _wrong(value, place, "an object")
    missing = sorted(kind.__required_keys__ - value.keys())
    if missing:
        raise ValueError(f"{f'{place}.' if place else ''}{missing[0]} is missing")
    hints = _hints(kind)
    return {key: decode(hints[key], item, f"{place}.{key}") if key in hints else item for key, item in value.items()}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """{name: (type, whether it has no default)}"""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: (hints[field.name], field.default is MISSING and field.default_factory is MISSING)
        for field in fields(kind)
        if field.init
    }


def _wrong(value: Any, place: str, wanted: str) -> ValueError:
    shown = ascii(value)
    return ValueError(f"{place or 'the top'} is {shown if len(shown) <= 60 else shown[:57] + '...'}, not {wanted}")
