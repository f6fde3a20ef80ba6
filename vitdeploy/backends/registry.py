"""Every backend there is: what it takes, where it runs, what it needs, how it is opened and what people call it.

A backend says so once, in a `BackendSpec` that it registers. `load`, `bench`, `predict`, `doctor`, `inspect`, the
command line's choices, the report and its schema read the list. The folders here register in their `spec.py`; any
other module may call `register` before the list is asked. Nothing here imports a backend's own packages.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vitdeploy.backends
from vitdeploy.core import machine
from vitdeploy.core.errors import InputError
from vitdeploy.core.installing import extras_line

if TYPE_CHECKING:
    from vitdeploy.backends.base import Runner
    from vitdeploy.bundle import Artifact

__all__ = [
    "PERFORMANCES",
    "BackendSpec",
    "Need",
    "Offer",
    "Open",
    "RunnerSpec",
    "backend_title",
    "backends",
    "find",
    "known",
    "names",
    "on_chosen_gpu",
    "open_runner",
    "packages",
    "register",
    "runs_bundles",
]

PERFORMANCES = ("latency", "throughput")
_HEXAGON = ((1.15, 0.0), (0.58, 1.0), (-0.58, 1.0), (-1.15, 0.0), (-0.58, -1.0), (0.58, -1.0))


@dataclass(frozen=True)
class RunnerSpec:
    """What is to be opened, as data that another process can be given.

    `path` is the file, or the checkpoint's folder or Hub id; `threads` None is the backend's choice; `variant` is a way
    to run it, for backends that have several (PyTorch: one of `backends.pytorch.variants`); `performance` one of
    `PERFORMANCES`, which backends without that choice ignore; `hashes` those of a bundle's ONNX file and of the files
    with its weights (see `bundle.graphs.read_graph`), None for a file that is trusted;
    `trust_remote_code` lets code that comes with a checkpoint run; `request` is what a checkpoint is to answer, a
    `models.tasks.TaskRequest` as JSON, None: its own classes.
    """

    backend: str
    path: str
    threads: int | None
    device: str = "cpu"
    variant: str = ""
    performance: str = "latency"
    hashes: Mapping[str, str] | None = None
    trust_remote_code: bool = False
    request: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data, from which `from_json` makes the spec in another process, the backend registered."""
        return {**vars(self), "origin": find(self.backend).open.__module__}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunnerSpec:
        """The spec; the module that its backend is opened by is imported, since importing it may register it."""
        fields = dict(data)
        importlib.import_module(fields.pop("origin"))
        return cls(**fields)


Open = Callable[[RunnerSpec], "Runner"]


@dataclass(frozen=True)
class Need:
    """A package without which a backend does not run: the module to import, and what pip calls it."""

    module: str
    package: str


@dataclass(frozen=True)
class Offer:
    """The forms of a bundle that a backend runs on one device.

    Args:
        device: "cpu" or "cuda".
        targets: what such a form was made for ("any", "cpu", "tensorrt" ...), first choice first.
        precisions: gives which ones, the one to take first at the front; None: all.
        studied: targets that `bench` may run as well, to study a graph that engines are built from.
        package: what has to be installed for this device, where it is not the backend's own package.
    """

    device: str
    targets: tuple[str, ...] = ("cpu", "any")
    precisions: Callable[[], tuple[str, ...]] | None = None
    studied: tuple[str, ...] = ()
    package: str | None = None

    def takes(self, artifact: Artifact, *, study: bool = False) -> bool:
        """Whether that file is one of these forms (or one that bench may `study`)."""
        targets = (*self.targets, *self.studied) if study else self.targets
        return artifact.target in targets and (self.precisions is None or artifact.precision in self.precisions())


@dataclass(frozen=True)
class BackendSpec:
    """What the rest of vitdeploy knows of a backend.

    Args:
        name: what it is called in options, reports and bundles.
        title: what people call it.
        takes: the kind of file: "onnx", "engine" or "checkpoint" (then no bundle holds it: a baseline).
        offers: what it runs, by device; at least one, the usual device first.
        needs: packages; the first is its own.
        extra: the extra of vitdeploy that installs them.
        open: makes the runner, not yet entered; the backend's packages are imported in it or later.
        listed: its place in lists and tables, lowest first.
        order: its place among the backends that `load` tries for a form, lowest first; None: it is taken by name only.
        obstacle: why this machine can't run it whatever is installed, and the next step; None if it can.
        unfit: why it can't run a file that it should by the manifest, found without opening it; None if it can.
        performance: whether it can be opened for throughput.
        tf32: whether its FP32 products on a GPU are in TF32.
        answers: packages whose versions decide what it answers; none: its own.
        job: what the doctor calls it, where "Run on the CPU: <title>" or "Run <title> engines" won't do.
        note: what the doctor adds where it can run; None: which instructions it computes INT8 with, on a CPU.
        mark: corners of its shape in pictures, around (0, 0), about 1 in size; none: a circle.
    """

    name: str
    title: str
    takes: str
    offers: tuple[Offer, ...]
    needs: tuple[Need, ...]
    extra: str
    open: Open
    listed: int = 100
    order: Callable[[], int] | None = lambda: 100
    obstacle: Callable[[], tuple[str, str] | None] = lambda: None
    unfit: Callable[[Path], str | None] = lambda path: None
    performance: bool = False
    tf32: bool = False
    answers: tuple[str, ...] = ()
    job: str | None = None
    note: Callable[[], str | None] | None = None
    mark: tuple[tuple[float, float], ...] = _HEXAGON

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(offer.device for offer in self.offers)

    @property
    def decisive(self) -> tuple[str, ...]:
        """Packages whose versions decide what it answers."""
        return self.answers or (self.needs[0].package,)

    @property
    def install(self) -> str:
        """The pip line that installs what it needs."""
        return extras_line(self.extra)

    def offer(self, device: str) -> Offer | None:
        """What it runs on that device."""
        return next((offer for offer in self.offers if offer.device == device), None)

    def offer_of(self, artifact: Artifact) -> Offer | None:
        """The first offer that takes a file."""
        return next((offer for offer in self.offers if offer.takes(artifact)), None)

    def missing(self) -> str | None:
        """The first package it needs that is not installed."""
        return next((need.package for need in self.needs if not machine.has_module(need.module)), None)


_specs: dict[str, BackendSpec] = {}


def register(spec: BackendSpec) -> None:
    """Add a backend; importing the module that holds `spec.open` should do that too, for processes of their own.

    Raises:
        InputError: there is a backend of that name.
    """
    if spec.name in _specs:
        raise InputError(f"there is a backend {spec.name!r} already", hint="give the new one another name")
    _specs[spec.name] = spec


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(vitdeploy.backends.__path__):
        if module.ispkg:
            importlib.import_module(f"vitdeploy.backends.{module.name}.spec")


def backends() -> tuple[BackendSpec, ...]:
    """Every backend, as lists and tables show them."""
    _discover()
    return tuple(sorted(_specs.values(), key=lambda spec: spec.listed))


def names(*, bundles: bool = False) -> tuple[str, ...]:
    """The backends' names; `bundles`: of those that run what a bundle holds."""
    return tuple(spec.name for spec in backends() if not bundles or spec.takes != "checkpoint")


def known(name: str) -> BackendSpec | None:
    """The backend of that name; None where there is none, as for a report of another installation."""
    _discover()
    return _specs.get(name)


def find(name: str) -> BackendSpec:
    """The backend of that name.

    Raises:
        InputError: there is none.
    """
    spec = known(name)
    if spec is None:
        raise InputError(f"there is no backend {name!r}", hint=f"one of {', '.join(names())}")
    return spec


def open_runner(spec: RunnerSpec) -> Runner:
    """The runner of a spec, not yet entered; its backend is imported here or when it is entered."""
    return find(spec.backend).open(spec)


def packages() -> tuple[str, ...]:
    """The packages that take part anywhere, the backends' among them: their versions belong to a measurement."""
    own = (name for spec in backends() for name in (*(need.package for need in spec.needs), *spec.decisive))
    return tuple(dict.fromkeys((*machine.PACKAGES, *own)))


def backend_title(name: str) -> str:
    """What people call a backend; its name where it is not known here."""
    spec = known(name)
    return name if spec is None else spec.title


def runs_bundles(name: str) -> bool:
    """Whether a backend runs what a bundle holds, and so can be what `load` opens."""
    spec = known(name)
    return spec is None or spec.takes != "checkpoint"


def on_chosen_gpu(name: str, device: str) -> bool:
    """Whether a backend that also runs on the CPU runs on a GPU: then names say so."""
    spec = known(name)
    return device != "cpu" and (spec is None or "cpu" in spec.devices)
