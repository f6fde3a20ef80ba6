"""What a weight file says of itself, without loading it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vitdeploy.core.storage import open_regular

__all__ = ["tensors_of"]

_LARGEST_HEADER = 100 << 20


def tensors_of(files: Iterable[Path]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (dtype, shape)} by the headers of safetensors files; nothing for other files and damaged ones."""
    found = {}
    for file in files:
        try:
            with open_regular(file) as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size)) if size <= _LARGEST_HEADER else {}
            found.update(
                {
                    name: (str(entry["dtype"]), tuple(map(int, entry["shape"])))
                    for name, entry in header.items()
                    if name != "__metadata__"
                }
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
            continue
    return found
