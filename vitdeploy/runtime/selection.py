"""Which form of a bundle runs on which backend here: every candidate, best first, or why it is out.

Out is a form whose backend is not installed, whose engine does not fit the GPU, or which the bundle's own benchmark
(bench/report.json) found to fail on that backend or, where no precision was asked for, to lose more top-1 than that
benchmark's budget. The order of the others:

1. the form that `vitdeploy bench` chose on a machine like this one;
2. the forms that it timed on a machine like this one, the fastest first;
3. where it timed nothing here, or nothing on the GPU, the stated order: on a machine with an NVIDIA GPU the engines
   whose runtime is installed (INT8, FP16, BF16, FP32), then the ONNX forms on ONNX Runtime's CUDA provider (FP16,
   FP32); on the CPU the ONNX forms (INT8: the one made for CPUs; FP32, FP16, BF16), each on OpenVINO, then on ONNX
   Runtime; INT8 before both by our own kernels ("native"), or after both where the processor has AMX, which these do
   not use. 16-bit floats come last on a CPU: many compute them in float32, and then they only cost conversions.

The other providers of ONNX Runtime, "onnxruntime-tensorrt" and "onnxruntime-openvino", are taken only by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.errors import EngineError, InputError
from vitdeploy.machine import cpu_flags, gpus, has_module, kernels_obstacle, version
from vitdeploy.runtime.engine_fit import check_fit, check_version
from vitdeploy.runtime.measured import Measured

__all__ = ["BACKENDS", "DEVICES", "PRECISIONS", "Candidate", "candidates"]

PROVIDERS = ("onnxruntime-tensorrt", "onnxruntime-openvino")
BACKENDS = ("tensorrt", "tensorrt-rtx", "native", "openvino", "onnxruntime", *PROVIDERS)
PRECISIONS = ("int8", "fp16", "bf16", "fp32")
DEVICES = ("cpu", "cuda")

_MODULES = {  # backend: (module, package, extra that installs it)
    "tensorrt": ("tensorrt", "tensorrt", "gpu"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx", "rtx"),
    "native": ("onnx", "onnx", "native"),
    "openvino": ("openvino", "openvino", "cpu"),
    "onnxruntime": ("onnxruntime", "onnxruntime", "cpu"),
    "onnxruntime-tensorrt": ("onnxruntime", "onnxruntime-gpu", "gpu"),
    "onnxruntime-openvino": ("onnxruntime", "onnxruntime-openvino", "cpu"),
}
_CPU_ORDER = ("int8", "fp32", "fp16", "bf16")
_CUDA_ORDER = ("fp16", "fp32")
_ENGINE_ORDER = ("int8", "fp16", "bf16", "fp32")


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


@dataclass(frozen=True)
class _Wish:
    backend: str
    precision: str
    bundle: Path  # where


def candidates(bundle: Bundle, backend: str, precision: str, device: str | None) -> list[Candidate]:
    """Every form of the bundle that fits the wish, best first, the ones that are out with their reason.

    Raises:
        InputError: a backend, precision or device that is not known, or the bundle has no form that fits.
    """
    _known("backend", backend, ("auto", *BACKENDS))
    _known("precision", precision, ("auto", *PRECISIONS))
    if device is not None:
        _known("device", device, DEVICES)
    every = list(_ordered(bundle, device))
    if backend in PROVIDERS:
        every += _by_name(bundle, backend)
    if backend == "auto" and kernels_obstacle() is not None:  # nothing that somebody misses: doctor speaks of it
        every = [c for c in every if c.backend != "native"]
    fitting = [c for c in every if backend in ("auto", c.backend) and precision in ("auto", c.precision)]
    if not fitting:
        wish = ", ".join(w for w in (precision, backend, device) if w not in (None, "auto"))
        there = ", ".join(dict.fromkeys(c.name for c in every)) or "no graph and no engine"
        raise InputError(
            f"{bundle.path} has no form for {wish or 'this machine'}; it has {there}",
            hint=f"vitdeploy build-engine {bundle.path} --fp16 --int8 adds forms and engines",
        )
    measured = Measured(bundle)
    judged = [_judged(c, measured, _Wish(backend, precision, bundle.path)) for c in fitting]
    return sorted(judged, key=lambda c: _place(c, measured))


def _place(candidate: Candidate, measured: Measured) -> tuple[int, float]:
    """Where a candidate stands; those of one place keep the stated order."""
    row = measured.row(candidate.artifact, candidate.backend, candidate.device)
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


def _ordered(bundle: Bundle, device: str | None) -> Iterable[Candidate]:
    if device != "cpu":
        for precision in _ENGINE_ORDER:
            for artifact in bundle.select(kind="engine", precision=precision):
                flavour = "tensorrt-rtx" if artifact.target.startswith("tensorrt-rtx") else "tensorrt"
                yield Candidate(flavour, precision, "cuda", artifact)
    if device == "cuda" or (device is None and gpus()):
        for precision in _CUDA_ORDER:
            graph = _graph(bundle, precision)
            if graph is not None:
                yield Candidate("onnxruntime", precision, "cuda", graph)
    if device == "cuda":
        return
    for precision in _CPU_ORDER:
        graph = _graph(bundle, precision)
        if graph is not None:
            backends = ["openvino", "onnxruntime"]
            if precision == "int8" and graph.target == "cpu":
                backends.insert(len(backends) if "amx_int8" in cpu_flags() else 0, "native")
            yield from (Candidate(backend, precision, "cpu", graph) for backend in backends)


def _by_name(bundle: Bundle, backend: str) -> Iterable[Candidate]:
    device, order = ("cuda", _ENGINE_ORDER) if backend == "onnxruntime-tensorrt" else ("cpu", _CPU_ORDER)
    for precision in order:
        graph = _graph(bundle, precision) if device == "cpu" else _graph_for_gpu(bundle, precision)
        if graph is not None:
            yield Candidate(backend, precision, device, graph)


def _graph_for_gpu(bundle: Bundle, precision: str) -> Artifact | None:
    """The ONNX form that engines are built from."""
    graphs = bundle.select(kind="onnx", precision=precision)
    return next((graph for graph in graphs if graph.target != "cpu"), None)


def _graph(bundle: Bundle, precision: str) -> Artifact | None:
    """The ONNX form for CPUs where there is one of that precision, else the one for every target."""
    for target in ("cpu", "any"):
        found = bundle.find(kind="onnx", precision=precision, target=target)
        if found is not None:
            return found
    return None


def _judged(candidate: Candidate, measured: Measured, wish: _Wish) -> Candidate:
    module, package, extra = _MODULES[candidate.backend]
    reason, install = None, None
    obstacle = kernels_obstacle() if candidate.backend == "native" else None
    if candidate.device == "cuda" and not gpus():
        reason = "there is no NVIDIA GPU here"
    elif obstacle is not None:
        reason = f"{obstacle[0]}; {obstacle[1]}"
    elif not has_module(module):
        reason, install = f"{package} is not installed", f"pip install 'vitdeploy[{extra}]'"
    else:
        reason = _misfit(candidate, package, wish.bundle) or _against(candidate, measured, wish)
    return replace(candidate, why=_why(candidate, measured, wish), reason=reason, install=install)


def _why(candidate: Candidate, measured: Measured, wish: _Wish) -> str:
    if "auto" not in (wish.backend, wish.precision):
        return "it was asked for by name"
    choice = measured.choice(candidate.artifact, candidate.backend)
    if choice is not None:
        return f"vitdeploy bench chose it on this machine: {choice.why}"
    row = measured.row(candidate.artifact, candidate.backend, candidate.device)
    if row is not None:
        unit = "point" if measured.budget == 1 else "points"
        return (
            f"the fastest within {measured.budget:g} {unit} of top-1 in the benchmark of this machine:"
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
    loss = measured.loss(candidate.artifact, candidate.backend, candidate.device)
    if loss is None or loss <= measured.budget + 1e-9 or wish.precision != "auto" or candidate.precision == "fp32":
        return None
    return f"it lost {loss:.2f} points of top-1 in the bundle's benchmark; the budget was {measured.budget:g}"


def _misfit(candidate: Candidate, package: str, bundle: Path) -> str | None:
    """Why an engine does not fit the GPU or the TensorRT here, by what the manifest says of it, and what to do."""
    if candidate.artifact.kind != "engine":
        return None
    try:
        check_fit(candidate.artifact, gpus()[0], bundle)
        installed = version(package)
        if installed is not None:  # a system's own TensorRT is no Python distribution; it answers for itself
            check_version(candidate.artifact, candidate.backend, installed, bundle)
    except EngineError as error:
        return f"{error.message}; {error.hint}"
    return None
