"""A bundle's self-test (`bundle.selftest`) on the backends that are here: does each form answer as it did when made?

What passes is remembered for `load(verify="once")` in the user's own cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitdeploy import __version__
from vitdeploy.backends.base import Runner
from vitdeploy.backends.registry import backend_title, backends, find
from vitdeploy.backends.tensorrt.kernel_cache import cache_folder
from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.bundle.selftest import Selftest
from vitdeploy.core import progress
from vitdeploy.core.errors import BundleError, ImageError, InputError, ModelError, VitdeployError
from vitdeploy.core.machine import identity, system_name, version, versions
from vitdeploy.core.specs import TaskName
from vitdeploy.core.storage import read_json, write_atomically
from vitdeploy.models.tasks import Kind, kind_of
from vitdeploy.runtime.inputs import Several
from vitdeploy.runtime.limits import Limits
from vitdeploy.runtime.remote import open_bundle
from vitdeploy.runtime.scoring import Scorer
from vitdeploy.runtime.selection import Candidate, candidates, runner_for

__all__ = ["Answers", "Certificate", "CertificateRow", "Verifier", "answers", "verifier_for", "verify"]

SCHEMA_VERSION = 1
_MOST_REMEMBERED = 1000
_HELD_BYTES = 16 << 20  # pixels at a time: enlarged images may be large
Verifier = Callable[[Candidate, Runner], str | None]
"""Why an open form fails the self-test; None: it passes."""


@dataclass(frozen=True)
class CertificateRow:
    """One form on one backend.

    `status` is passed, failed or skipped, `reason` why not passed. `images` is how many of the self-test it takes,
    `same_class` for how many of them its best class is the reference's, or the nearest vector of an embedding is;
    `largest_difference` and `bound` are those of any number of the image that is closest to its bound, or furthest
    beyond (None: not finite); `versions` those of what decides the answer.
    """

    form: str
    backend: str
    device: str
    file: str
    sha256: str
    status: Literal["passed", "failed", "skipped"]
    reason: str | None = None
    images: int = 0
    same_class: int = 0
    largest_difference: float | None = None
    bound: float | None = None
    versions: dict[str, str] | None = None


@dataclass(frozen=True)
class Certificate:
    """What `verify` found: on which bundle, of which task, on which machine and day, by which version, and a row a form
    and backend."""

    bundle: Path
    task: TaskName
    model: dict[str, Any]
    selftest_sha256: str
    reference: str
    machine: dict[str, Any]
    created: str
    rows: tuple[CertificateRow, ...]

    def __repr__(self) -> str:
        found = Counter(row.status for row in self.rows)
        return f"<Certificate of {self.bundle}: {', '.join(f'{count} {status}' for status, count in found.items())}>"

    @property
    def passed(self) -> bool:
        """Whether some form passed and none failed."""
        found = {row.status for row in self.rows}
        return "passed" in found and "failed" not in found

    def require_passed(self) -> None:
        """
        Raises:
            ModelError: a form failed, or none could be run.
        """
        failed = [f"{row.form} on {row.backend}" for row in self.rows if row.status == "failed"]
        if failed:
            raise ModelError(
                f"{self.bundle} fails its self-test: {', '.join(failed)}",
                hint="use a form that passed (load(..., verify=True) does), another version of that backend, or build"
                " the form again",
            )
        if not self.passed:
            raise ModelError(
                f"no form of {self.bundle} could be run here", hint="vitdeploy doctor says what this machine lacks"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "type": "certificate",
            "vitdeploy": __version__,
            **asdict(self),
            "bundle": self.bundle.name,
            "passed": self.passed,
        }


def verify(
    bundle: Bundle | str | os.PathLike[str],
    backend: str = "auto",
    precision: str = "auto",
    device: str | None = None,
    threads: int | None = None,
) -> Certificate:
    """Run the bundle's self-test on every backend that is here.

    Args:
        bundle: the bundle, its folder, or `owner/name` of one on the Hub.
        backend, precision, device: only these, as `load` takes them.
        threads: CPU threads of one call; None: the backend's choice.

    Raises:
        InputError: the bundle has no self-test, or no such form.
        BundleError: it is damaged.
    """
    opened = open_bundle(bundle)
    called = opened.path if isinstance(bundle, Bundle) or Path(bundle).exists() else Path(bundle)
    selftest = Selftest.of(opened)
    found = list(_asked(opened, backend, precision, device))
    rows = []
    with progress.task("Verifying", total=len(found), unit="forms") as step:
        for candidate in found:
            rows.append(_row(opened, selftest, candidate, threads))
            step.advance()
    artifact = opened.find(kind="selftest")
    assert artifact is not None
    model = {key: opened.manifest.model.get(key) for key in ("name", "architecture", "weights_sha256")}
    machine = {**identity(), "system": system_name()}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Certificate(
        called, opened.manifest.task, model, artifact.sha256, selftest.reference, machine, now, tuple(rows)
    )


def _asked(bundle: Bundle, backend: str, precision: str, device: str | None) -> Iterator[Candidate]:
    """Every form on every backend; those that are taken by name alone where their package is installed."""
    yield from candidates(bundle, backend, precision, device, benchmark=False)
    if backend == "auto":
        for spec in backends():
            if spec.order is None and spec.takes == "onnx" and version(spec.needs[0].package) is not None:
                with contextlib.suppress(InputError):  # none of its forms is here
                    yield from candidates(bundle, spec.name, precision, device, benchmark=False)


def _row(bundle: Bundle, selftest: Selftest, candidate: Candidate, threads: int | None) -> CertificateRow:
    artifact = candidate.artifact
    row = CertificateRow(
        candidate.precision,
        candidate.backend,
        candidate.device,
        artifact.path,
        artifact.sha256,
        "skipped",
        versions=versions(find(candidate.backend).decisive),
    )
    if candidate.reason is not None:
        return replace(row, reason=candidate.reason)
    with contextlib.ExitStack() as stack:
        try:
            runner: Runner = stack.enter_context(runner_for(bundle, candidate, threads))
        except BundleError:  # a file that is not what the manifest describes
            raise
        except VitdeployError as error:
            return replace(row, reason=error.message)
        except Exception as error:  # a backend that stumbles over this form
            return replace(row, status="failed", reason=f"{type(error).__name__}: {error}")
        try:
            return _judged(row, selftest, artifact, runner)
        except VitdeployError as error:
            return replace(row, status="failed", reason=error.message)


def _judged(row: CertificateRow, selftest: Selftest, artifact: Artifact, runner: Runner) -> CertificateRow:
    bounds = selftest.bounds_of(artifact)
    if bounds is None:
        return replace(row, reason="the self-test has no bounds for it: build-engine adds them")
    found = answers(runner, selftest)
    if found is None:
        return replace(row, reason=f"no image of the self-test is of a size that it takes: {Limits(runner)}")
    logits, reference, count = found.logits, found.reference, len(found.places)
    if logits.shape != reference.shape:
        reason = f"it gives {logits.shape[1]} {found.kind.numbers} an image, not {reference.shape[1]}"
        return replace(row, status="failed", reason=reason, images=count)
    same = int(found.kind.same(logits, reference).sum())
    row = replace(row, images=count, same_class=same)
    if not np.isfinite(logits).all():
        return replace(row, status="failed", reason="its logits are not finite")
    worst = int((found.differences / bounds[found.places]).argmax())
    difference, bound = float(found.differences[worst]), float(bounds[found.places][worst])
    row = replace(row, status="passed", largest_difference=difference, bound=bound)
    if difference > bound:
        reason = f"a number of image {found.places[worst]} is off by {difference:.2g}, where {bound:.2g} is the most"
        return replace(row, status="failed", reason=reason)
    return row


@dataclass(frozen=True, eq=False)
class Answers:
    """What a form answers to the images of a self-test at `places`, and the reference: float32 (images, n)."""

    kind: Kind
    places: list[int]
    logits: npt.NDArray[np.float32]
    reference: npt.NDArray[np.float32]

    @property
    def differences(self) -> npt.NDArray[np.float32]:
        """The largest of any logit of each image, (images,)."""
        found: npt.NDArray[np.float32] = np.abs(self.logits - self.reference).max(axis=1)
        return found


def answers(runner: Runner, selftest: Selftest) -> Answers | None:
    """What an open runner answers to the images that it takes; None: it takes none of them."""
    limits = Limits(runner)
    count = range(len(selftest.images))
    taken = {size: [i for i in count if _fits(limits, selftest.shape(i, size))] for size in selftest.logits}
    size, places = max(taken.items(), key=lambda item: len(item[1]))
    if not places:
        return None
    scorer = Scorer(runner, max_pixels=1 << 31)
    most = max(1, _HELD_BYTES // max(math.prod(selftest.shape(place, size)) for place in places))
    rows: list[npt.NDArray[Any]] = []
    for start in range(0, len(places), most):
        images = [selftest.image(place, size) for place in places[start : start + most]]
        found = dict(scorer.answers(Several(images), keep=False, deadline=None))
        rows += [np.asarray(found[index]) for index in range(len(images))]
    return Answers(
        kind_of(scorer.output),
        places,
        np.stack(rows).astype(np.float32),
        selftest.logits[size][places],
    )


def _fits(limits: Limits, shape: tuple[int, ...]) -> bool:
    try:
        limits.check(shape)
    except ImageError:
        return False
    return True


def verifier_for(bundle: Bundle, wanted: bool | str) -> Verifier:
    """What `load` asks an open form: True: each time; "once": what passed on this machine is not asked again.

    Raises:
        InputError: it is neither, or the bundle has no self-test.
    """
    if wanted is not True and wanted != "once":
        raise InputError(f"verify is {wanted!r}", hint='one of False, True, "once"')
    selftest = Selftest.of(bundle)
    artifact = bundle.find(kind="selftest")
    assert artifact is not None
    memory = _Memory() if wanted == "once" else None

    def verifier(candidate: Candidate, runner: Runner) -> str | None:
        form = candidate.artifact
        decisive = versions(find(candidate.backend).decisive)
        key = [form.sha256, artifact.sha256, candidate.backend, candidate.device, __version__, decisive, identity()]
        if memory is not None and memory.has(key):
            return None
        row = CertificateRow(
            candidate.precision, candidate.backend, candidate.device, form.path, form.sha256, "skipped"
        )
        row = _judged(row, selftest, form, runner)
        if row.status == "passed":
            if memory is not None:
                memory.add(key)
            return None
        verb = "fails" if row.status == "failed" else "can't be put to"
        return f"it {verb} the self-test on {backend_title(candidate.backend)}: {row.reason}"

    return verifier


class _Memory:
    """What passed on this machine, as hashes in a file of the user's cache; where that can't be used, nothing."""

    def __init__(self) -> None:
        self._path = cache_folder() / "verified.json"

    def _known(self) -> list[str]:
        with contextlib.suppress(OSError, ValueError):
            found = read_json(self._path)
            if isinstance(found, list):
                return [entry for entry in found if isinstance(entry, str)]
        return []

    def has(self, key: list[Any]) -> bool:
        return _digest(key) in self._known()

    def add(self, key: list[Any]) -> None:
        with contextlib.suppress(OSError, VitdeployError):
            entries = [*self._known(), _digest(key)][-_MOST_REMEMBERED:]
            write_atomically(self._path, json.dumps(entries, indent=0) + "\n")


def _digest(key: list[Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
