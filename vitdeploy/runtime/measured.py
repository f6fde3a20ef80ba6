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
from vitdeploy.core.errors import BundleError, InputError
from vitdeploy.core.machine import identity
from vitdeploy.core.specs import Choice
from vitdeploy.evaluation.limits import Limits, is_over
from vitdeploy.models.tasks import TASKS

__all__ = ["Measured"]


class Measured:
    """The benchmark that a bundle holds, if it holds one.

    `here` says whether its times were taken on a machine like this one, None where there is no benchmark.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.here: bool | None = None
        self.settings = ""
        self._budget, self._limits = 0.0, Limits()
        self._forms: tuple[MeasuredForm, ...] = ()
        self._choice, self._metric = bundle.choice, TASKS[bundle.manifest.task].metric
        with suppress(BundleError, InputError):
            found = Measurements.of(bundle)
            asked = found.settings
            if asked.min_cosine is not None or asked.min_recall is not None:
                self._limits = Limits(None, asked.min_cosine, asked.min_recall, asked.neighbours)
            self._budget, self._forms = asked.max_drop_points, found.rows
            self.here = _identity(found.machine) == identity()
            threads = asked.threads
            self.settings = "" if threads is None else f" with {threads} thread{'' if threads == 1 else 's'}"
            if asked.performance != "latency":
                self.settings += f", opened for {asked.performance}"

    def failure(self, artifact: Artifact, backend: str, device: str) -> str | None:
        """How that file failed on that backend."""
        failed = (form for form in self._own(artifact, backend, device) if form.status == "failed")
        return next((str(form.reason) for form in failed), None)

    def broken(self, artifact: Artifact, backend: str, device: str) -> str | None:
        """Which limit of the benchmark the file breaks, in words: on that backend, or on any where it was not compared
        there; None: none that is known."""
        same_file = (form for form in self._forms if form.sha256 == artifact.sha256)
        forms = [*self._own(artifact, backend, device), *same_file]
        loss = next((form.loss for form in forms if form.loss is not None), None)
        most = self._budget
        if loss is not None and is_over(loss, most):
            return f"lost {loss:.2f} points of {self._metric} in the bundle's benchmark; the budget was {most:g}"
        kept = next((form.embedding for form in forms if form.embedding and form.embedding.cosine), None)
        broken = [] if kept is None else self._limits.broken_by(kept)
        return f"{broken[0]}, in the bundle's benchmark" if broken else None

    @property
    def budget(self) -> str:
        """What all forms that are not `broken` keep to, as "within ..."; "" where nothing was compared or limited."""
        parts = []
        if any(form.loss is not None for form in self._forms):
            parts.append(f"{self._budget:g} point{'' if self._budget == 1 else 's'} of {self._metric}")
        if self._limits:
            parts.append(f"the limits on vectors ({self._limits})")
        return f" within {' and '.join(parts)}" if parts else ""

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
