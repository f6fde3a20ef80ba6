"""What the numbers were measured on and with; nothing that names a person or a place."""

from __future__ import annotations

import os
import re
from typing import Any

from vitdeploy.bench.sensors import read_gpus
from vitdeploy.core import machine as here
from vitdeploy.core.machine import BusyMeter, memory_bytes, usable_cores, versions

__all__ = ["BusyMeter", "load_average", "machine", "memory_bytes", "public_text", "usable_cores", "versions"]

_SEGMENT = r"[^\s/:'\",;()]"
_PATH = re.compile(rf"(?<![\w:/.~-])(?:(?:~|\.\.)/(?:{_SEGMENT}+/)*|/(?:{_SEGMENT}+/)+)({_SEGMENT}*)")


def machine() -> dict[str, Any]:
    """What `vitdeploy.core.machine` knows, and its state: how busy it is, each GPU's clock, heat and power."""
    facts = here.machine()
    readings = read_gpus() if facts["gpu"] else []
    if len(readings) == len(facts["gpu"]):  # CUDA_VISIBLE_DEVICES may hide some of those that nvidia-smi lists
        facts["gpu"] = [{**gpu, **reading} for gpu, reading in zip(facts["gpu"], readings, strict=True)]
    return {**facts, "load_average": load_average()}


def load_average() -> float | None:
    """Programs that wanted a core, on average over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def public_text(value: Any) -> Any:
    """`value` (text, or lists and dicts of it) with every path that leads out of here cut to its last part.

    A report is read by others: /home/ada/models/vit says who measured and nothing about what was measured.
    """
    if isinstance(value, str):
        return _PATH.sub(lambda match: match[1] or match[0].rstrip("/").rpartition("/")[2], value)
    if isinstance(value, dict):
        return {key: public_text(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public_text(item) for item in value]
    return value
