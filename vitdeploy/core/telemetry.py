"""Nothing leaves the machine unasked: the telemetry of packages is off unless VITDEPLOY_TELEMETRY=1 is set.

ONNX Runtime (1.32) sends events and keeps an id and an event file in ~/.cache/Microsoft; its thread for that also hangs
forked processes that end. OpenVINO (2026.4) sends an event when it is imported, and writes an id to ~/intel.
Ray (2.60) reports what a cluster does that it starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SWITCH", "silenced"]

SWITCH = "VITDEPLOY_TELEMETRY"
_OPENVINO = "openvino_telemetry"  # without this package OpenVINO uses a stub of its own


@contextmanager
def silenced() -> Iterator[None]:
    """What is imported inside the block sends nothing, nor do the processes that this one starts; see `SWITCH`."""
    if os.environ.get(SWITCH) == "1":
        yield
        return
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    hidden = sys.modules.setdefault(_OPENVINO, None) is None  # type: ignore[arg-type]
    try:
        yield
    finally:
        if hidden:
            sys.modules.pop(_OPENVINO, None)
