"""Whether an engine may and can run here: what its bundle's manifest says of it, against the file and what is here.

TensorRT itself answers a wrong engine with a line about a magic number, or with nothing; so it is asked last.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.backends.registry import BackendSpec
from vitdeploy.backends.tensorrt.command import rebuild_command
from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.core import machine
from vitdeploy.core.errors import BundleError, EngineError
from vitdeploy.core.machine import Gpu
from vitdeploy.core.storage import open_regular

__all__ = [
    "Described",
    "check_fit",
    "check_source",
    "check_version",
    "described",
    "misfit",
    "read_engine",
    "weights_of",
]

_AMPERE = (8, 0)  # hardware-compatible engines run from here on
_RTX, _RTX_FROM = ("8.6", "8.9"), (12, 0)  # of those that TensorRT-RTX is for, what it builds whole ViTs for


@dataclass(frozen=True)
class Described:
    """An engine as the manifest of the bundle around it says."""

    bundle: Bundle
    artifact: Artifact


def described(path: Path) -> Described:
    """What the manifest of the bundle around an engine says of it.

    Raises:
        EngineError: no bundle describes it.
        BundleError: the bundle is damaged.
    """
    path = Path(os.path.abspath(path))
    for folder in path.parents[:3]:
        if Bundle.is_bundle(folder):
            name = path.relative_to(folder).as_posix()
            bundle = Bundle.open(folder)
            for artifact in bundle.manifest.artifacts:
                if artifact.path == name:
                    return Described(bundle, artifact)
    raise EngineError(
        f"{path} is described by no bundle, and an engine of unknown origin is not loaded",
        hint="name the engine inside its bundle; for one that you built yourself pass trusted=True",
    )


def read_engine(path: Path, artifact: Artifact | None) -> bytes:
    """An engine's bytes, after those very bytes were compared with the manifest (None: with nothing).

    Raises:
        BundleError: they are not what the manifest describes.
    """
    with open_regular(path) as file:
        data = file.read()
    if artifact is not None and hashlib.sha256(data).hexdigest() != artifact.sha256:
        raise BundleError(
            f"{path} is not the engine that the manifest describes (its SHA-256 differs)",
            hint="copy the bundle again or rebuild the engine; do not load a file that was tampered with",
        )
    return data


def check_source(engine: Described) -> None:
    """Compare the graph that an engine was built from with the graphs of its bundle.

    Raises:
        EngineError: the bundle holds another graph in its place: the engine would answer for an older model.
    """
    artifact = engine.artifact
    graphs = [
        graph for graph in engine.bundle.select(kind="onnx", precision=artifact.precision) if graph.target != "cpu"
    ]
    if artifact.built_from is not None and graphs and artifact.built_from not in {graph.sha256 for graph in graphs}:
        raise EngineError(
            f"{artifact.path} was built from another graph than the {graphs[0].path} that the bundle holds now",
            hint=f"build it again: {rebuild_command(artifact, engine.bundle.path, artifact.target)}",
        )


def weights_of(engine: Described) -> Path | None:
    """The graph in the bundle that an engine without weights takes them from; None: it has its own.

    Raises:
        EngineError: the bundle has not the graph any more.
        BundleError: the graph is not the one that the manifest describes.
    """
    artifact = engine.artifact
    if not (artifact.built_with.get("flags") or {}).get("strip_weights"):
        return None
    for graph in engine.bundle.select(kind="onnx"):
        if graph.sha256 == artifact.built_from:
            return engine.bundle.file(graph)
    raise EngineError(
        f"{artifact.path} was built without its weights, and the graph that has them is not in the bundle",
        hint=f"build it again: {rebuild_command(artifact, engine.bundle.path, artifact.target)}",
    )


def check_fit(artifact: Artifact, gpu: Gpu, bundle: Path | None = None) -> None:
    """Compare what an engine was built for with a GPU; `bundle` is where it lies, for the command that rebuilds it.

    Raises:
        EngineError: it was built for another compute capability.
    """
    built = artifact.built_with
    flags = built.get("flags") or {}
    listed = [str(capability) for capability in built.get("compute_capabilities") or ()]
    single = built.get("compute_capability")
    here = _numbers(gpu.compute_capability, 2)
    if listed:
        fits = any(here >= _numbers(c[:-1], 2) if c.endswith("+") else here == _numbers(c, 2) for c in listed)
    elif single is not None:
        fits = here == _numbers(str(single), 2) or (bool(flags.get("hardware_compatible")) and here >= _AMPERE)
    else:
        fits = True
    if not fits:
        wanted = ", ".join(listed) or single
        raise EngineError(
            f"{artifact.path} was built for compute capability {wanted}, and the {gpu.name} here has"
            f" {gpu.compute_capability}",
            hint=f"build one for it: {_for_gpu(artifact, bundle, listed, gpu)}",
        )


def _for_gpu(artifact: Artifact, bundle: Path | None, listed: list[str], gpu: Gpu) -> str:
    """The command that builds the engine for the GPU here: TensorRT-RTX for those it has kernels for."""
    here, asked = gpu.compute_capability, (artifact.built_with.get("request") or {}).get("compute_capabilities", ())
    if listed and not gpu.integrated and here in _RTX:
        return rebuild_command(artifact, bundle, "tensorrt-rtx", compute_capabilities=[*asked, here])
    if listed and not gpu.integrated and _numbers(here, 2) >= _RTX_FROM:  # among those that no option has to name
        return rebuild_command(artifact, bundle, "tensorrt-rtx", compute_capabilities=())
    return rebuild_command(artifact, bundle, "tensorrt")


def check_version(artifact: Artifact, flavour: str, installed: str, bundle: Path | None = None) -> None:
    """Compare the TensorRT that built an engine with the one that is installed; `bundle` as above.

    Engines run on the release that built them, to the third number: NVIDIA promises no more, and TensorRT's own check
    says so (of the fourth it is asked when it loads). Version-compatible ones run on later ones of that major.

    Raises:
        EngineError: it was built by the other kind of TensorRT, or by another version.
    """
    maker: dict[str, Any] = artifact.built_with.get("tensorrt") or {}
    kind, version = maker.get("flavour", flavour), maker.get("version")
    again = f"build it again with this version: {rebuild_command(artifact, bundle, flavour)}"
    if kind != flavour:
        raise EngineError(f"{artifact.path} was built by {kind}, not by {flavour}", hint=again)
    if version is None:
        return
    built, here = _numbers(str(version), 3), _numbers(installed, 3)
    flags = artifact.built_with.get("flags") or {}
    compatible = bool(flags.get("version_compatible")) and built[0] == here[0] and built <= here
    if built != here and not compatible:
        raise EngineError(f"{artifact.path} was built by {kind} {version}, and {installed} is installed", hint=again)


def misfit(artifact: Artifact, spec: BackendSpec, bundle: Path) -> str | None:
    """Why an engine does not fit the GPU or the TensorRT here, by what the manifest says of it, and what to do; None
    for other files."""
    if artifact.kind != "engine" or not machine.gpus():
        return None
    try:
        check_fit(artifact, machine.gpus()[0], bundle)
        installed = machine.version(spec.needs[0].package)
        if installed is not None:  # a system's own TensorRT is no Python distribution; it answers for itself
            check_version(artifact, spec.name, installed, bundle)
    except EngineError as error:
        return f"{error.message}; {error.hint}"
    return None


def _numbers(version: str, count: int) -> tuple[int, ...]:
    """The first numbers of a version: "10.13.3.9" -> (10, 13, 3)."""
    numbers = [int(part) for part in version.split(".")[:count] if part.isdigit()]
    return (*numbers, *[0] * (count - len(numbers)))
