"""What the bundle's benchmark says of its forms: which lose too much or fail, and which is the fastest here.

A measurement counts for a file only while the file's hash is the one that was measured, and a time only on a machine
like the one it was taken on (`vitdeploy.machine.identity`). A report that can't be read says nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.errors import BundleError
from vitdeploy.machine import identity
from vitdeploy.specs import Choice

__all__ = ["Measured", "Row"]

REPORT = "bench/report.json"


@dataclass(frozen=True)
class Row:
    """What was found of one file on one backend.

    `loss` is in points of top-1, None where it was not compared; `time_ms` per image, None where it says nothing of
    this machine; `batch_size` is that of the time.
    """

    sha256: str
    backend: str
    device: str  # cpu, cuda
    failure: str | None
    loss: float | None
    time_ms: float | None
    batch_size: int


class Measured:
    """The benchmark that a bundle holds, if it holds one.

    `here` says whether its times were taken on a machine like this one, None where there is no benchmark.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.budget = 0.0
        self.here: bool | None = None
        self.settings = ""
        self._rows: list[Row] = []
        self._choice = bundle.choice
        artifact = next((a for a in bundle.select(kind="bench") if a.path == REPORT), None)
        if artifact is not None:
            with suppress(BundleError, OSError, ValueError, KeyError, TypeError, AttributeError):
                self._read(json.loads(bundle.file(artifact).read_bytes()))

    def _read(self, report: dict[str, Any]) -> None:
        budget = float(report["settings"]["max_drop_points"])
        here = _identity(report.get("machine") or {}) == identity()
        self._rows = [_row(row, here) for row in report["rows"] if row["artifact"] is not None]
        self.budget, self.here = budget, here
        threads = report["settings"].get("threads")
        self.settings = "" if threads is None else f" with {threads} thread{'' if threads == 1 else 's'}"

    def failure(self, artifact: Artifact, backend: str, device: str) -> str | None:
        """How that file failed on that backend."""
        return next((row.failure for row in self._own(artifact, backend, device) if row.failure is not None), None)

    def loss(self, artifact: Artifact, backend: str, device: str) -> float | None:
        """Points of top-1 that the file loses: on that backend, or on any where it was not compared there."""
        rows = [*self._own(artifact, backend, device), *(row for row in self._rows if row.sha256 == artifact.sha256)]
        return next((row.loss for row in rows if row.loss is not None), None)

    def row(self, artifact: Artifact, backend: str, device: str) -> Row | None:
        """The measurement with a time on this machine."""
        return next((row for row in self._own(artifact, backend, device) if row.time_ms is not None), None)

    def saw(self, device: str) -> bool:
        """Whether any form was timed on that device of this machine."""
        return any(row.device == device and row.time_ms is not None for row in self._rows)

    def choice(self, artifact: Artifact, backend: str) -> Choice | None:
        """The benchmark's own choice, if it was made on this machine and is this file on this backend."""
        choice = self._choice
        if choice is None or choice.machine != identity():
            return None
        return choice if (choice.sha256, choice.backend) == (artifact.sha256, backend) else None

    def _own(self, artifact: Artifact, backend: str, device: str) -> list[Row]:
        wanted = artifact.sha256, backend, device
        return [row for row in self._rows if (row.sha256, row.backend, row.device) == wanted]


def _identity(machine: dict[str, Any]) -> dict[str, Any]:
    """What `vitdeploy.machine.identity` would say of the machine that a report describes."""
    return {
        "cpu": machine.get("cpu"),
        "cores": machine.get("cores"),
        "gpu": [gpu["name"] for gpu in machine.get("gpu") or []],
        "system": machine.get("system"),
    }


def _row(row: dict[str, Any], here: bool) -> Row:
    accuracy, latency = row["accuracy"], row.get("latency_ms")
    delta = None if accuracy is None else accuracy["delta"]
    batch_size = int(row.get("batch_size") or 1)
    time_ms = None
    if here and latency is not None and row["status"] == "ok":
        time_ms = float(latency["p50"]) / batch_size
    return Row(
        sha256=str(row["artifact"]["sha256"]),
        backend=row["backend"],
        device="cuda" if row["backend"].startswith("tensorrt") else row.get("device", "cpu").partition(":")[0],
        failure=str(row["reason"]) if row["status"] == "failed" else None,
        loss=None if delta is None else -100 * float(delta),
        time_ms=time_ms,
        batch_size=batch_size,
    )
