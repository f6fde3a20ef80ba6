"""Settings that say beside each field what it may be: one frozen dataclass a command, its rules in its annotations.

    @dataclass(frozen=True)
    class Config:
        epochs: Annotated[float, ABOVE_ZERO] = 3.0
        sizes: Annotated[tuple[int, ...], ABOVE_ZERO, DIFFERENT] = (1, 8)
        device: Literal["cpu", "cuda"] = "cpu"
        model: Annotated[str, PATH]

A value of None is "not given" and keeps every rule; of a tuple each value is compared. Types are compared too.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vitdeploy.core.errors import InputError

__all__ = [
    "ABOVE_ZERO",
    "AT_LEAST_ONE",
    "AT_LEAST_ZERO",
    "BELOW_ONE",
    "BETWEEN",
    "DIFFERENT",
    "GROUP",
    "INPUT",
    "PATH",
    "SEED",
    "SHARE",
    "OneOf",
    "Range",
    "check",
    "field_names",
    "frozen",
    "marked",
    "notes",
    "read_toml",
    "shown",
    "with_options",
]

_Settings = TypeVar("_Settings")


@dataclass(frozen=True)
class Range:
    """A rule for numbers: `holds`, or the value "must be" what `text` says."""

    text: str
    holds: Callable[[float], bool]
    hint: str = "leave it out for the default"

    def check(self, name: str, value: Any) -> None:
        if not (math.isfinite(value) and self.holds(value)):
            raise InputError(f"{name} must be {self.text}, not {value}", hint=self.hint)


@dataclass(frozen=True)
class OneOf:
    """A rule for words; `choices` may be a function, where they are not known yet."""

    what: str
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]]

    def check(self, name: str, value: Any) -> None:
        known = self.choices() if callable(self.choices) else self.choices
        if value not in known:
            raise InputError(f"there is no {self.what} {value!r}", hint=f"choose one of {', '.join(known)}")


ABOVE_ZERO = Range("more than 0", lambda value: value > 0)
AT_LEAST_ONE = Range("at least 1", lambda value: value >= 1)
AT_LEAST_ZERO = Range("0 or more", lambda value: value >= 0)
BELOW_ONE = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
BETWEEN = Range("between 0 and 1", lambda value: 0 < value < 1, hint="such as 0.5")
SHARE = Range("from 0 to 1", lambda value: 0 <= value <= 1)
SEED = Range(f"from 0 to {2**32 - 1}", lambda value: 0 <= value < 2**32)  # NumPy's old generator takes 32 bits
# What stands beside a field, other than a rule for its value.
DIFFERENT = "no value of the tuple twice"
GROUP = "settings of their own, each of which may be named without the group"
PATH = "a path, or a name that is looked up elsewhere"
INPUT = "is read: one that starts with ./ or ../ in a file of settings is taken from that file's folder"

_KINDS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", bool),
    int: ("a whole number", Integral),
    float: ("a number", Real),
    str: ("text", str),
}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return {field.name: get_type_hints(kind, include_extras=True)[field.name] for field in dataclasses.fields(kind)}


def field_names(kind: Any) -> list[str]:
    """The names of a settings class's fields, or of an object's."""
    return [field.name for field in dataclasses.fields(kind)]


def notes(kind: Any, name: str) -> tuple[Any, ...]:
    """What stands beside a field of a settings class."""
    hint = _hints(kind)[name]
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def marked(kind: Any, mark: str) -> list[str]:
    """Names of the fields that have a mark beside them."""
    return [name for name in _hints(kind) if mark in notes(kind, name)]


def check(settings: Any) -> None:
    """Compare each field with its type and its rules.

    Raises:
        InputError: the first that does not keep one.
    """
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        value = getattr(settings, name)
        if value is None:
            continue
        _check_type(hint, name, value)
        for leaf in _leaves(value):
            for note in notes(kind, name):
                if isinstance(note, (Range, OneOf)):
                    note.check(name, leaf)
        if DIFFERENT in notes(kind, name) and len(set(value)) < len(value):
            raise InputError(f"{name} has a value twice: {list(value)}", hint="give each value once")


def _check_type(hint: Any, name: str, value: Any) -> None:
    """Raise InputError for a value that an annotation of plain types, fixed words and tuples does not allow."""
    if not _fits(hint, value):
        raise InputError(f"{name} is {value!r}", hint=f"give {_in_words(hint)}")


def _fits(hint: Any, value: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(inner[0], value)
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(_fits(each, value) for each in inner)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if isinstance(value, tuple) and inner[1:] == (...,) else list(inner)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, kinds, value))
    if hint in _KINDS:
        return isinstance(value, _KINDS[hint][1]) and isinstance(value, bool) == (hint is bool)
    return hint is not type(None) or value is None


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _in_words(inner[0])
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(each) for each in inner if each is not type(None))
    if origin is tuple:
        return f"a list, each {_in_words(inner[0])}" if ... in inner else f"({', '.join(map(_in_words, inner))})"
    return _KINDS[hint][0] if hint in _KINDS else "a path"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for part in value:
            yield from _leaves(part)
    elif value is not None:
        yield value


def frozen(settings: Any) -> None:
    """Make tuples of the lists among the fields, and Python's integers of NumPy's: for `__post_init__`."""
    for name in field_names(settings):
        object.__setattr__(settings, name, _plain(getattr(settings, name)))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_plain(part) for part in value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def with_options(settings: _Settings, options: Mapping[str, Any]) -> _Settings:
    """The settings with other values, by the names of fields, those of a `GROUP` included.

    Raises:
        TypeError: there is no such setting.
        InputError: a value that a setting may not have.
    """
    kind: Any = type(settings)
    homes: dict[str, str] = dict.fromkeys(field_names(kind), "")
    for group in marked(kind, GROUP):
        homes |= dict.fromkeys(field_names(getattr(settings, group)), group)
    found: dict[str, dict[str, Any]] = {"": {}}
    for name, value in options.items():
        if name not in homes:
            raise TypeError(f"there is no setting {name!r} in {kind.__name__}")
        found.setdefault(homes[name], {})[name] = value
    own = found.pop("")
    groups = {
        group: dataclasses.replace(own.get(group, getattr(settings, group)), **values)
        for group, values in found.items()
    }
    changed: _Settings = dataclasses.replace(settings, **{**own, **groups})  # type: ignore[type-var]
    return changed


def shown(settings: Any) -> dict[str, Any]:
    """All fields, JSON-ready; of paths only the last part, since what they are written into travels."""
    data = dataclasses.asdict(settings)
    for name in marked(type(settings), PATH):
        if data[name] is not None:
            path = Path(data[name])
            there = path.exists()
            data[name] = path.resolve().name if there else path.name if path.is_absolute() else str(data[name])
    return data


def read_toml(path: str | os.PathLike[str], kind: Any, *, without: str | None = None) -> dict[str, Any]:
    """The settings in a TOML file, by the names of the class's fields (`-` counts as `_`).

    A file may come from someone else, so fields with the mark `without` are not known in it.

    Raises:
        InputError: the file is missing, is not TOML, or has a key or a type that is not known.
    """
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        with open(path, "rb") as file:
            data = toml.load(file)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}", hint="give a TOML file") from error
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}", hint="each line is `setting = value`") from error
    known = [name for name in _hints(kind) if without is None or without not in notes(kind, name)]
    settings: dict[str, Any] = {}
    for given, value in data.items():
        name = given.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"settings are {', '.join(known)}"
            raise InputError(f"{path}: there is no setting {given!r}", hint=hint)
        _check_type(_hints(kind)[name], f"{path}: {given}", value)
        if INPUT in notes(kind, name) and str(value).startswith(("./", "../")):
            value = str((Path(path).parent / str(value)).resolve())
        settings[name] = value
    return settings
