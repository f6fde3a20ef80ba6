"""Records as JSON: what a dataclass or a typed dict holds is what the JSON holds, under the same names.

`vitdeploy.core.decoding` reads it back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from vitdeploy.core.text import visible_json

__all__ = ["as_text", "plain"]


def plain(value: Any) -> Any:
    """`value` as JSON-ready data: dataclasses as dicts, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def as_text(data: Any) -> str:
    """JSON as text; long lists of numbers stay on one line each."""
    text = visible_json(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))
    return _NUMBERS.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text)


# JSON has no raw newline inside a string, so this matches lists of numbers alone.
_NUMBERS = re.compile(r"\[\n((?:\s*(?:-?\d[\d.eE+-]*|null),?\n)+)\s*\]")
