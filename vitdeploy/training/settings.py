"""Settings of a run as TOML: read for `--config`, written beside the checkpoint."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError
from vitdeploy.training.config import FinetuneConfig

__all__ = ["read_settings", "to_toml"]

_NOT_IN_FILES = ("resume", "overwrite")
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "bool": (bool,), "str": (str,), "float": (int, float)}


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a TOML file, by their names in FinetuneConfig (`-` counts as `_`).

    A model or dataset that starts with ./ or ../ is taken from the file's folder.

    Raises:
        InputError: the file is missing, is no TOML, or has a key or value that is not known.
    """
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        with open(path, "rb") as file:
            data = toml.load(file)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}", hint="give --config a TOML file") from error
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}", hint="each line is `setting = value`") from error
    known = {field.name: str(field.type) for field in dataclasses.fields(FinetuneConfig)}
    settings: dict[str, Any] = {}
    for given, value in data.items():
        name = given.replace("-", "_")
        if name not in known or name in _NOT_IN_FILES:
            close = difflib.get_close_matches(name, set(known) - set(_NOT_IN_FILES), n=1)
            raise InputError(
                f"{path}: there is no setting {given!r}",
                hint=f"did you mean {close[0]}?" if close else "settings are the long options of vitdeploy finetune",
            )
        wanted = known[name].partition(" ")[0]
        allowed = _TYPES.get(wanted, (str,))
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise InputError(f"{path}: {given} is {value!r}", hint=f"it must be of type {known[name].split(' |')[0]}")
        if name in ("model", "dataset", "distill") and str(value).startswith(("./", "../")):
            value = str((Path(path).parent / str(value)).resolve())
        settings[name] = value
    return settings


def to_toml(settings: Mapping[str, Any], heading: str) -> str:
    """Text that `read_settings` reads back; settings without a value are left out."""
    lines = [f"# {heading}"]
    lines += [f"{name} = {_value(value)}" for name, value in settings.items() if value is not None]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # JSON's strings are TOML's basic strings; a float must not lose its point
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
