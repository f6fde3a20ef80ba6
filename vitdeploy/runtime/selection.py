"""Which form of a bundle runs on which backend here: every candidate, best first, or why it is out.

Out is a form whose backend is not installed, whose engine does not fit the GPU, or which the bundle's own benchmark
(bench/report.json) found to fail on that backend or, where no precision was asked for, to break that benchmark's
limits on what is lost: of the task's metric, and of an embedding's cosine and recall. The order of the others:

1. the form that `vitdeploy bench` chose on a machine like this one;
2. the forms that it timed on a machine like this one, the fastest first;
3. where it timed nothing here, or nothing on the GPU, the stated order: on a machine with an NVIDIA GPU the engines
   whose runtime is installed (INT8, FP8, FP16, BF16, FP32), then the ONNX forms on ONNX Runtime's CUDA provider (FP16,
   FP32); on the CPU the ONNX forms (INT8: the one made for CPUs; FP32, FP16, BF16), each on OpenVINO, then on ONNX
   Runtime (the other way round where OpenVINO's INT8 saturates); INT8 before both by our own kernels ("native"), or
   after both where the processor has AMX, which these do not use. 16-bit floats come last on a CPU: many compute
   them in float32, and then they only cost conversions.

Which backend runs which forms where, and its place in that order, says its `BackendSpec`; those without a place are
taken only by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy.backends.base import Runner
from vitdeploy.backends.registry import BackendSpec, RunnerSpec, backends, find, known, names, open_runner
from vitdeploy.backends.tensorrt.compatibility import misfit
from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.core.errors import InputError
from vitdeploy.core.machine import gpus
from vitdeploy.core.precisions import engine_order, load_order, precisions
from vitdeploy.core.text import quoted
from vitdeploy.runtime.measured import Measured

__all__ = ["DEVICES", "Candidate", "candidates", "runner_for"]

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Candidate:
    """One form on one backend. `why` says what it has its place in the order from; `reason` why it is passed over,
    None where it can be tried; `install` is the pip line that would cure it, where one would."""

    backend: str
    precision: str
    device: str
    artifact: Artifact
    why: str = ""
    reason: str | None = None
    install: str | None = None

    @property
    def name(self) -> str:
        return f"{self.precision} on {self.backend}"

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "precision": self.precision,
            "device": self.device,
            "artifact": self.artifact.path,
            "reason": self.reason,
        }


def runner_for(bundle: Bundle, candidate: Candidate, threads: int | None, performance: str = "latency") -> Runner:
    """A runner that is not open yet; it compares the very bytes that it loads with the manifest's hash."""
    path, hashes = bundle.file(candidate.artifact, verify=False), bundle.hashes(candidate.artifact)
    return open_runner(
        RunnerSpec(candidate.backend, str(path), threads, candidate.device, performance=performance, hashes=hashes)
    )


@dataclass(frozen=True)
class _Wish:
    backend: str
    precision: str
    bundle: Path  # where
    benchmark: bool  # whether its benchmark may be against a form


def candidates(
    bundle: Bundle, backend: str, precision: str, device: str | None, *, benchmark: bool = True
) -> list[Candidate]:
    """Every form of the bundle that fits the wish, best first, the ones that are out with their reason; `benchmark`:
    those too that the bundle's benchmark is against.

    Raises:
        InputError: a backend, precision or device that is not known, or the bundle has no form that fits.
    """
    _known("backend", backend, ("auto", *names(bundles=True)))
    _known("precision", precision, ("auto", *precisions()))
    if device is not None:
        _known("device", device, DEVICES)
    every = list(_ordered(bundle, _tried(backend), device))
    named = known(backend)
    if named is not None and named.order is None:
        every += _by_name(bundle, named, device)
    fitting = [c for c in every if backend in ("auto", c.backend) and precision in ("auto", c.precision)]
    if not fitting:
        wished = ", ".join(w for w in (precision, backend, device) if w not in (None, "auto"))
        there = ", ".join(dict.fromkeys(c.name for c in every)) or "no graph and no engine"
        raise InputError(
            f"{bundle.path} has no form for {wished or 'this machine'}; it has {there}",
            hint=f"{_build_line(bundle, precision)} adds forms and engines",
        )
    measured = Measured(bundle)
    wish = _Wish(backend, precision, bundle.path, benchmark)
    checked = [_checked(c, measured, wish) for c in fitting]
    return sorted(checked, key=lambda c: _place(c, measured))


def _build_line(bundle: Bundle, precision: str) -> str:
    """The command that makes a form of a precision, or the usual ones."""
    options = "--fp16 --int8" if precision in ("auto", "fp32") else f"--{precision}"
    return f"vitdeploy build-engine {quoted(bundle.path)} {options}"


def _place(candidate: Candidate, measured: Measured) -> tuple[int, float]:
    """Where a candidate stands; those of one place keep the stated order."""
    row = measured.timed(candidate.artifact, candidate.backend, candidate.device)
    time_ms = row.time_ms if row is not None else None
    if measured.choice(candidate.artifact, candidate.backend) is not None:
        return 0, time_ms or 0.0
    if time_ms is not None:
        return 2, time_ms
    # A benchmark that did not see the GPU says nothing of it.
    return (1 if candidate.device == "cuda" and not measured.saw("cuda") else 3), 0.0


def _known(what: str, value: object, values: tuple[str, ...]) -> None:
    if value not in values:
        raise InputError(f"there is no {what} {value!r}", hint=f"one of {', '.join(values)}")


def _tried(wished: str) -> list[BackendSpec]:
    """The backends that `load` tries by itself, first choice first."""
    specs = [(spec.order(), spec) for spec in backends() if spec.order is not None]
    if wished == "auto":  # another backend runs the same graph: nothing that somebody misses, and doctor speaks of it
        specs = [(place, spec) for place, spec in specs if spec.takes != "onnx" or spec.obstacle() is None]
    return [spec for _, spec in sorted(specs, key=lambda item: item[0])]


def _ordered(bundle: Bundle, specs: list[BackendSpec], device: str | None) -> Iterable[Candidate]:
    if device != "cpu":
        for precision in engine_order():
            for artifact in bundle.select(kind="engine", precision=precision):
                fitting = (spec for spec in specs if spec.takes == "engine" and spec.offer_of(artifact) is not None)
                yield from (Candidate(spec.name, precision, "cuda", artifact) for spec in fitting)
    if device == "cuda" or (device is None and gpus()):
        yield from _graphs(bundle, specs, "cuda", load_order("cuda"))
    if device != "cuda":
        yield from _graphs(bundle, specs, "cpu", load_order("cpu"))


def _by_name(bundle: Bundle, spec: BackendSpec, device: str | None) -> Iterable[Candidate]:
    for offer in spec.offers:
        if device in (None, offer.device):
            order = load_order(offer.device) if offer.precisions is None else offer.precisions()
            yield from _graphs(bundle, [spec], offer.device, order)


def _graphs(bundle: Bundle, specs: list[BackendSpec], device: str, order: tuple[str, ...]) -> Iterable[Candidate]:
    for precision in order:
        for spec in specs:
            graph = _graph(bundle, precision, spec, device)
            if graph is not None:
                yield Candidate(spec.name, precision, device, graph)


def _graph(bundle: Bundle, precision: str, spec: BackendSpec, device: str) -> Artifact | None:
    """The ONNX form of that precision that the backend runs there, the best of those that the bundle has."""
    offer = spec.offer(device) if spec.takes == "onnx" else None
    if offer is None:
        return None
    graphs = [graph for graph in bundle.select(kind="onnx", precision=precision) if offer.takes(graph)]
    return min(graphs, key=lambda graph: offer.targets.index(graph.target), default=None)


def _checked(candidate: Candidate, measured: Measured, wish: _Wish) -> Candidate:
    spec = find(candidate.backend)
    reason, install = None, None
    if candidate.device == "cuda" and not gpus():
        reason = "there is no NVIDIA GPU here"
    elif (obstacle := spec.obstacle()) is not None:
        reason = f"{obstacle[0]}; {obstacle[1]}"
    elif (missing := spec.missing()) is not None:
        reason, install = f"{missing} is not installed", spec.install
    else:
        reason = misfit(candidate.artifact, spec, wish.bundle)
        if reason is None and wish.benchmark:
            reason = _against(candidate, measured, wish)
    return replace(candidate, why=_why(candidate, measured, wish), reason=reason, install=install)


def _why(candidate: Candidate, measured: Measured, wish: _Wish) -> str:
    if "auto" not in (wish.backend, wish.precision):
        return "it was asked for by name"
    choice = measured.choice(candidate.artifact, candidate.backend)
    if choice is not None:
        return f"vitdeploy bench chose it on this machine: {choice.why}"
    row = measured.timed(candidate.artifact, candidate.backend, candidate.device)
    if row is not None:
        return (
            f"the fastest{measured.budget} in the benchmark of this machine:"
            f" {row.time_ms:.3g} ms an image at batch {row.batch_size}{measured.settings}"
        )
    ground = {None: "it was not benchmarked", False: "its benchmark is of another machine"}.get(
        measured.here, "its benchmark did not time it"
    )
    return f"the first in the stated order that works here ({ground})"


def _against(candidate: Candidate, measured: Measured, wish: _Wish) -> str | None:
    """Why the benchmark passes a form over; one that was named in full it never does."""
    failure = measured.failure(candidate.artifact, candidate.backend, candidate.device)
    if failure is not None and "auto" in (wish.backend, wish.precision):
        return f"it failed in the bundle's benchmark: {failure}"
    if wish.precision != "auto" or candidate.precision == "fp32":
        return None
    broken = measured.broken(candidate.artifact, candidate.backend, candidate.device)
    return None if broken is None else f"it {broken}"
