"""Settings of a run as TOML: read for `--config`, written beside the checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.core.settings import INPUT, marked, read_toml
from vitdeploy.data.load import KNOWN_DATASETS
from vitdeploy.training.config import ONCE, FinetuneConfig

__all__ = ["read_settings", "repeatable", "to_toml"]


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a TOML file, by their names in FinetuneConfig: see `core.settings.read_toml`."""
    return read_toml(path, FinetuneConfig, without=ONCE)


def repeatable(config: FinetuneConfig, folder: Path) -> dict[str, Any]:
    """The settings as a file in `folder` must have them to repeat the run: local data and models as paths from there,
    the output as it was given."""
    paths = {name: _from_folder(getattr(config, name), folder) for name in marked(FinetuneConfig, INPUT)}
    return {**config.to_json(), **paths, "output": os.fspath(config.output)}


def _from_folder(value: str | os.PathLike[str] | None, folder: Path) -> str | None:
    if value is None or value in KNOWN_DATASETS or not Path(value).expanduser().exists():
        return None if value is None else os.fspath(value)  # a name that is looked up elsewhere
    relative = os.path.relpath(Path(value).expanduser().resolve(), folder.resolve())
    return relative if relative.startswith(os.pardir + os.sep) else os.path.join(os.curdir, relative)


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
