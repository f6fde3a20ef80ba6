"""What the bundle's benchmark says of its forms here: which lose too much or fail, and which is the fastest.

A measurement counts for a file only while the file's hash is the one that was measured, and a time only on a machine
like the one it was taken on (`vitdeploy.core.machine.identity`). A report that can't be read says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vitdeploy.backends.registry import known
from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.bundle.measurements import MeasuredForm, Measurements
from vitdeploy.core.errors import BundleError
from vitdeploy.core.machine import identity
from vitdeploy.core.specs import Choice

__all__ = ["Measured"]


class Measured:
    """The benchmark that a bundle holds, if it holds one.

    `here` says whether its times were taken on a machine like this one, None where there is no benchmark.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.budget = 0.0
        self.here: bool | None = None
        self.settings = ""
        self._forms: tuple[MeasuredForm, ...] = ()
        self._choice = bundle.choice
        with suppress(BundleError):
            found = Measurements.of(bundle)
            self.budget, self._forms = found.settings.max_drop_points, found.rows
            self.here = _identity(found.machine) == identity()
            threads = found.settings.threads
            self.settings = "" if threads is None else f" with {threads} thread{'' if threads == 1 else 's'}"
            if found.settings.performance != "latency":
                self.settings += f", opened for {found.settings.performance}"

    def failure(self, artifact: Artifact, backend: str, device: str) -> str | None:
        """How that file failed on that backend."""
        failed = (form for form in self._own(artifact, backend, device) if form.status == "failed")
        return next((str(form.reason) for form in failed), None)

    def loss(self, artifact: Artifact, backend: str, device: str) -> float | None:
        """Points of `metric` that the file loses: on that backend, or on any where it was not compared there."""
        same_file = (form for form in self._forms if form.sha256 == artifact.sha256)
        forms = [*self._own(artifact, backend, device), *same_file]
        return next((form.loss for form in forms if form.loss is not None), None)

    @property
    def metric(self) -> str:
        """What `loss` and the budget are of, in words."""
        return next((form.metric for form in self._forms if form.loss is not None), "top-1")

    def timed(self, artifact: Artifact, backend: str, device: str) -> MeasuredForm | None:
        """The measurement with a time on this machine."""
        own = self._own(artifact, backend, device) if self.here else []
        return next((form for form in own if form.time_ms is not None), None)

    def saw(self, device: str) -> bool:
        """Whether any form was timed on that device of this machine."""
        return bool(self.here) and any(_device(form) == device and form.time_ms is not None for form in self._forms)

    def choice(self, artifact: Artifact, backend: str) -> Choice | None:
        """The benchmark's own choice, if it was made on this machine and is this file on this backend."""
        choice = self._choice
        if choice is None or choice.machine != identity():
            return None
        return choice if (choice.sha256, choice.backend) == (artifact.sha256, backend) else None

    def _own(self, artifact: Artifact, backend: str, device: str) -> list[MeasuredForm]:
        wanted = artifact.sha256, backend, device
        return [form for form in self._forms if (form.sha256, form.backend, _device(form)) == wanted]


def _identity(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What `vitdeploy.core.machine.identity` would say of the machine that a report describes."""
    return {
        "cpu": machine.get("cpu"),
        "cores": machine.get("cores"),
        "gpu": [gpu["name"] for gpu in machine.get("gpu") or []],
        "system": machine.get("system"),
    }


def _device(form: MeasuredForm) -> str:
    """cpu or cuda; a report of an engine may not say."""
    spec = known(form.backend)
    return spec.devices[0] if spec is not None and len(spec.devices) == 1 else form.device.partition(":")[0]
