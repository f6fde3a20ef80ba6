"""What to build an engine for, and which wishes each TensorRT can fulfil: refused here, before minutes are spent."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Manifest
from vitdeploy.errors import InputError
from vitdeploy.specs import ShapeRange

__all__ = ["FLAVOURS", "EngineOptions", "Profile"]

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # flavour: module

# Options that one flavour can't fulfil, and why. {option: {flavour: (reason, next step)}}
_REFUSED: dict[str, dict[str, tuple[str, str]]] = {
    "compute_capabilities": {
        "tensorrt": (
            "TensorRT builds for the GPU of the machine it runs on",
            "leave --compute-capability out and build on the target machine, or use --target tensorrt-rtx",
        )
    },
    "hardware_compatible": {
        "tensorrt-rtx": (
            "every TensorRT-RTX engine already runs on all GPUs of its compute capabilities",
            "leave --hardware-compatible out; --compute-capability names the GPUs",
        )
    },
    "version_compatible": {
        "tensorrt-rtx": (
            "TensorRT-RTX has no lean runtime that could run the engine of another version",
            "leave --version-compatible out and rebuild the engine when TensorRT-RTX is updated: it takes seconds",
        )
    },
    "optimization_level": {
        "tensorrt-rtx": (
            "TensorRT-RTX chooses kernels on the device and not when it builds, so no level has an effect",
            "leave --optimization-level out",
        )
    },
    "strip_weights": {
        "tensorrt-rtx": (
            "TensorRT-RTX makes refittable engines on a GPU only, and vitdeploy builds its engines ahead of time",
            "leave --strip-weights out, or use --target tensorrt on the device",
        )
    },
    "timing_cache": {
        "tensorrt-rtx": (
            "TensorRT-RTX times nothing when it builds, so a timing cache has no effect",
            "leave --timing-cache out",
        )
    },
}
_LARGEST_IMAGE = (1080, 1920)  # (height, width): a full HD camera
_LEVELS = range(6)


@dataclass(frozen=True)
class Profile:
    """What one optimization profile of an engine covers, and what it is tuned for.

    Args:
        batch: images in one call; None: what the graph says where it is static, otherwise 1 to 8, fastest at 1.
        height, width: of the raw images in pixels; None: what the graph says where it is static, otherwise needed
            (`EngineOptions.for_manifest` fills them).
    """

    batch: ShapeRange | None = None
    height: ShapeRange | None = None
    width: ShapeRange | None = None

    def to_json(self) -> dict[str, list[int] | None]:
        return {name: None if extent is None else extent.to_json() for name, extent in vars(self).items()}


@dataclass(frozen=True)
class EngineOptions:
    """How to build one engine.

    Args:
        flavour: "tensorrt" or "tensorrt-rtx".
        profiles: the ranges of batch and image sizes; an engine with several is tuned for each of them, and a call
            runs in the one that fits it best.
        workspace_mib: the most memory that kernels may use for their scratch data; None: TensorRT's own limit.
        optimization_level: 0 (builds fast) to 5 (tries most kernels); None: TensorRT's own, 3.
        max_aux_streams: the most CUDA streams beside the main one; None: TensorRT decides.
        compute_capabilities: GPUs that a TensorRT-RTX engine is for, as "8.6"; empty: all from Ampere on.
        timing_cache: file with kernel timings of earlier builds, read if it is there and written afterwards.
        hardware_compatible: the engine runs on all GPUs from Ampere on, at some cost in speed.
        version_compatible: the engine runs on later TensorRT versions of the same major version.
        strip_weights: the engine is written without its weights, and takes them from the bundle's graph when loaded.

    Raises:
        InputError: a value out of range, or an option that the flavour can't fulfil.
    """

    flavour: str = "tensorrt-rtx"
    profiles: tuple[Profile, ...] = (Profile(),)
    workspace_mib: int | None = None
    optimization_level: int | None = None
    max_aux_streams: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    strip_weights: bool = False

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise InputError(f"{self.flavour!r} is no kind of TensorRT", hint=f"one of {', '.join(FLAVOURS)}")
        for option, by_flavour in _REFUSED.items():
            if self._given(option) and self.flavour in by_flavour:
                reason, hint = by_flavour[self.flavour]
                raise InputError(f"--{_OPTION_NAMES.get(option, option).replace('_', '-')}: {reason}", hint=hint)
        if self.optimization_level is not None and self.optimization_level not in _LEVELS:
            raise InputError(f"optimization level {self.optimization_level} is not known", hint="0 to 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise InputError(f"a workspace of {self.workspace_mib} MiB is none", hint="give at least 1")
        if self.max_aux_streams is not None and self.max_aux_streams < 0:
            raise InputError(f"{self.max_aux_streams} auxiliary streams are not possible", hint="0 or more")
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise InputError(f"{capability!r} is no compute capability", hint="write it as NVIDIA does: 8.6")
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise InputError("a compute capability is named twice", hint="name each once")
        if not self.profiles:
            raise InputError("an engine needs at least one profile", hint="leave profiles out for the usual one")

    def for_manifest(self, manifest: Manifest, flavour: str | None = None) -> EngineOptions:
        """These options with the image sizes that suit a bundle where none were given, and another flavour if given.

        The optimum is the size that the model itself works on, since its own images are the ones that need no
        resizing; from one pixel up to a full HD picture can be sent.
        """
        flavour = self.flavour if flavour is None else flavour
        shape = manifest.inputs[0].shape
        sizes: dict[str, ShapeRange] = {}
        for name, axis, model, largest in zip(
            ("height", "width"), (1, 2), _model_size(manifest), _LARGEST_IMAGE, strict=True
        ):
            if not isinstance(shape[axis], int):
                sizes[name] = ShapeRange(1, model, max(model, largest))
        profiles = tuple(
            replace(profile, **{name: size for name, size in sizes.items() if getattr(profile, name) is None})
            for profile in self.profiles
        )
        return replace(self, flavour=flavour, profiles=profiles)

    def _given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False and value != ()

    def to_json(self) -> dict[str, Any]:
        """The options that were given, as they go into the manifest; a file by its name only."""
        shown: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name in ("flavour", "profiles") or not self._given(name):
                continue
            shown[name] = value.name if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        return shown


_OPTION_NAMES = {"compute_capabilities": "compute_capability"}


def _model_size(manifest: Manifest) -> tuple[int, int]:
    """(height, width) of the pictures that the model works on."""
    spec = manifest.preprocess
    if spec.crop is not None:
        return spec.crop
    resize = spec.resize
    if resize is not None and resize.height is not None and resize.width is not None:
        return resize.height, resize.width
    edge = (resize.shortest_edge if resize is not None else None) or 224
    return edge, edge
