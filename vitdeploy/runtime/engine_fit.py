"""Whether an engine can run here: what its manifest says it was built with and for, against what is here.

TensorRT itself answers a wrong engine with a line about a magic number, or with nothing; so it is asked last.
"""

from __future__ import annotations

from typing import Any

from vitdeploy.bundle import Artifact
from vitdeploy.errors import EngineError
from vitdeploy.machine import Gpu

__all__ = ["check_fit", "check_version"]

_AMPERE = (8, 0)  # hardware-compatible engines run from here on


def check_fit(artifact: Artifact, gpu: Gpu) -> None:
    """Compare what an engine was built for with a GPU.

    Raises:
        EngineError: it was built for another compute capability, or without its weights.
    """
    built = artifact.built_with
    flags = built.get("flags") or {}
    if flags.get("strip_weights"):
        raise EngineError(
            f"{artifact.path} was built without its weights", hint="build it again without --strip-weights"
        )
    listed = [str(capability) for capability in built.get("compute_capabilities") or ()]
    single = built.get("compute_capability")
    here = _pair(gpu.compute_capability)
    if listed:
        fits = any(here >= _pair(c[:-1]) if c.endswith("+") else here == _pair(c) for c in listed)
    elif single is not None:
        fits = here == _pair(str(single)) or (bool(flags.get("hardware_compatible")) and here >= _AMPERE)
    else:
        fits = True
    if not fits:
        wanted = ", ".join(listed) or single
        raise EngineError(
            f"{artifact.path} was built for compute capability {wanted}, and the {gpu.name} here has"
            f" {gpu.compute_capability}",
            hint="build an engine on this machine: vitdeploy build-engine BUNDLE --target tensorrt",
        )


def check_version(artifact: Artifact, flavour: str, installed: str) -> None:
    """Compare the TensorRT that built an engine with the one that is installed.

    Engines run on the major and minor version that built them; version-compatible ones on later ones of that major.

    Raises:
        EngineError: it was built by the other kind of TensorRT, or by another version.
    """
    maker: dict[str, Any] = artifact.built_with.get("tensorrt") or {}
    kind, version = maker.get("flavour", flavour), maker.get("version")
    again = f"build it again with this version: vitdeploy build-engine BUNDLE --target {flavour}"
    if kind != flavour:
        raise EngineError(f"{artifact.path} was built by {kind}, not by {flavour}", hint=again)
    if version is None:
        return
    built, here = _pair(str(version)), _pair(installed)
    flags = artifact.built_with.get("flags") or {}
    compatible = bool(flags.get("version_compatible")) and built[0] == here[0] and built <= here
    if built != here and not compatible:
        raise EngineError(f"{artifact.path} was built by {kind} {version}, and {installed} is installed", hint=again)


def _pair(version: str) -> tuple[int, int]:
    """The first two numbers of a version: "10.13.3.9" -> (10, 13)."""
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return (numbers[0] if numbers else 0, numbers[1] if len(numbers) > 1 else 0)
