"""Which form of a bundle runs on which backend here: every candidate in order of preference, or why it is out.

The order, best first:

1. on a machine with an NVIDIA GPU, the bundle's engines whose runtime is installed: INT8, FP16, FP32;
2. with `device="cuda"`, the ONNX forms on ONNX Runtime's CUDA provider: FP16, FP32;
3. on the CPU, the ONNX forms: INT8 (the one made for CPUs), FP32, FP16, each on OpenVINO, then on ONNX Runtime.

FP16 comes last on a CPU: it is computed in float32 there and only costs conversions. What the bundle's own benchmark
(bench/report.json) says goes before this order: where no precision was asked for, a reduced form that was measured to
lose more top-1 than that benchmark's budget is passed over, and so is a form that failed there on the same backend.
A measurement counts for a file only while the file's hash is the one that was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.errors import BundleError, EngineError, InputError
from vitdeploy.machine import gpus, has_module, version
from vitdeploy.runtime.engine_fit import check_fit, check_version

__all__ = ["BACKENDS", "DEVICES", "PRECISIONS", "Candidate", "candidates"]

BACKENDS = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
PRECISIONS = ("int8", "fp16", "fp32")
DEVICES = ("cpu", "cuda")

_MODULES = {  # backend: (module, package, extra that installs it)
    "tensorrt": ("tensorrt", "tensorrt", "gpu"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx", "rtx"),
    "openvino": ("openvino", "openvino", "cpu"),
    "onnxruntime": ("onnxruntime", "onnxruntime", "cpu"),
}
_CPU_ORDER = ("int8", "fp32", "fp16")
_CUDA_ORDER = ("fp16", "fp32")


@dataclass(frozen=True)
class Candidate:
    """One form on one backend. `reason` says why it is passed over, None where it can be tried; `install` is the pip
    line that would cure it, where one would."""

    backend: str
    precision: str
    device: str
    artifact: Artifact
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
    fitting = [c for c in every if backend in ("auto", c.backend) and precision in ("auto", c.precision)]
    if not fitting:
        wish = ", ".join(w for w in (precision, backend, device) if w not in (None, "auto"))
        there = ", ".join(dict.fromkeys(c.name for c in every)) or "no graph and no engine"
        raise InputError(
            f"{bundle.path} has no form for {wish or 'this machine'}; it has {there}",
            hint=f"vitdeploy build-engine {bundle.path} --fp16 --int8 adds forms and engines",
        )
    measured = _Measured(bundle)
    return [_judged(c, measured, _Wish(backend, precision)) for c in fitting]


def _known(what: str, value: object, values: tuple[str, ...]) -> None:
    if value not in values:
        raise InputError(f"there is no {what} {value!r}", hint=f"one of {', '.join(values)}")


def _ordered(bundle: Bundle, device: str | None) -> Iterable[Candidate]:
    if device != "cpu":
        for precision in PRECISIONS:
            for artifact in bundle.select(kind="engine", precision=precision):
                flavour = "tensorrt-rtx" if artifact.target.startswith("tensorrt-rtx") else "tensorrt"
                yield Candidate(flavour, precision, "cuda", artifact)
    if device == "cuda":
        for precision in _CUDA_ORDER:
            graph = _graph(bundle, precision)
            if graph is not None:
                yield Candidate("onnxruntime", precision, "cuda", graph)
        return
    for precision in _CPU_ORDER:
        graph = _graph(bundle, precision)
        if graph is not None:
            yield Candidate("openvino", precision, "cpu", graph)
            yield Candidate("onnxruntime", precision, "cpu", graph)


def _graph(bundle: Bundle, precision: str) -> Artifact | None:
    """The ONNX form for CPUs where there is one of that precision, else the one for every target."""
    for target in ("cpu", "any"):
        found = bundle.find(kind="onnx", precision=precision, target=target)
        if found is not None:
            return found
    return None


def _judged(candidate: Candidate, measured: _Measured, wish: _Wish) -> Candidate:
    module, package, extra = _MODULES[candidate.backend]
    reason, install = None, None
    if candidate.device == "cuda" and not gpus():
        reason = "there is no NVIDIA GPU here"
    elif not has_module(module):
        reason, install = f"{package} is not installed", f"pip install 'vitdeploy[{extra}]'"
    else:
        reason = _misfit(candidate, package) or measured.against(candidate, wish)
    return replace(candidate, reason=reason, install=install)


def _misfit(candidate: Candidate, package: str) -> str | None:
    """Why an engine does not fit the GPU or the TensorRT here, by what the manifest says of it."""
    if candidate.artifact.kind != "engine":
        return None
    try:
        check_fit(candidate.artifact, gpus()[0])
        installed = version(package)
        if installed is not None:  # a system's own TensorRT is no Python distribution; it answers for itself
            check_version(candidate.artifact, candidate.backend, installed)
    except EngineError as error:
        return error.message
    return None


@dataclass(frozen=True)
class _Row:
    """What a benchmark found on one file and backend; `loss` in points of top-1, None where it was not compared."""

    sha256: str
    backend: str
    failure: str | None
    loss: float | None


class _Measured:
    """What the bundle's own benchmark says against a form. A report that can't be read says nothing."""

    def __init__(self, bundle: Bundle) -> None:
        self._rows: list[_Row] = []
        self._budget = 0.0
        artifact = next((a for a in bundle.select(kind="bench") if a.path == "bench/report.json"), None)
        if artifact is None:
            return
        with suppress(BundleError, OSError, ValueError, KeyError, TypeError, AttributeError):
            report = json.loads(bundle.file(artifact).read_bytes())
            self._budget = float(report["settings"]["max_drop_points"])
            self._rows = [_row(row) for row in report["rows"] if row["artifact"] is not None]

    def against(self, candidate: Candidate, wish: _Wish) -> str | None:
        """Why a form is passed over; a form that was named in full is never."""
        rows = [row for row in self._rows if row.sha256 == candidate.artifact.sha256]
        own = [row for row in rows if row.backend == candidate.backend]
        failure = next((row.failure for row in own if row.failure is not None), None)
        if failure is not None and "auto" in (wish.backend, wish.precision):
            return f"it failed in the bundle's benchmark: {failure}"
        loss = next((row.loss for row in [*own, *rows] if row.loss is not None), None)
        if loss is None or loss <= self._budget + 1e-9 or wish.precision != "auto" or candidate.precision == "fp32":
            return None
        return f"it lost {loss:.2f} points of top-1 in the bundle's benchmark; the budget was {self._budget:g}"


def _row(row: dict[str, Any]) -> _Row:
    delta = None if row["accuracy"] is None else row["accuracy"]["delta"]
    return _Row(
        sha256=str(row["artifact"]["sha256"]),
        backend=row["backend"],
        failure=str(row["reason"]) if row["status"] == "failed" else None,
        loss=None if delta is None else -100 * float(delta),
    )
