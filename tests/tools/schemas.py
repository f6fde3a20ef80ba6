"""The schemas of what commands print as JSON, and the comparison of each JSON that a test sees with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.tools.command_names import name_of

__all__ = ["FOLDER", "faults", "schema_of"]

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"
_ELSEWHERE = {"bench": FOLDER.parent / "bench.schema.json", "demo": FOLDER.parent / "bench.schema.json"}


def schema_of(command: Sequence[str]) -> str:
    """Which schema holds for the output of a command that was given --json."""
    name = name_of(command).replace(" ", ".")
    if name == "predict" and {"--output", "-o"} & {word.partition("=")[0] for word in command}:
        return "predict.output"
    if name == "finetune" and "--dry-run" in command:
        return "finetune.plan"
    if name == "finetune" and "--qat" in command:
        return "finetune.qat"
    return name


def faults(command: Sequence[str], text: str) -> list[str]:
    """What in the output of a command does not fit its schema; nothing where jsonschema is not installed."""
    try:
        import jsonschema  # noqa: F401
    except ImportError:
        return []
    data, name = json.loads(text), schema_of(command)
    if name == "inspect" and data.get("type") != "bundle":
        name = "inspect.file"
    return [f"{'/'.join(map(str, error.path))}: {error.message[:300]}" for error in _validator(name).iter_errors(data)]


@cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator

    schema = json.loads(_ELSEWHERE.get(name, FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)
