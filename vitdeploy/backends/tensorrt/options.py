"""What to build an engine for, and which wishes each TensorRT can fulfil: refused here, before minutes are spent."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from vitdeploy.bundle import Manifest
from vitdeploy.core.errors import InputError
from vitdeploy.core.settings import (
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    DIFFERENT,
    OneOf,
    Range,
    check,
    field_names,
    frozen,
    notes,
)
from vitdeploy.core.specs import ShapeRange

__all__ = ["FLAVOURS", "EngineOptions", "Option", "Profile", "options"]


@dataclass(frozen=True)
class Option:
    """Beside a field: its option of build-engine, and the flavour that can't fulfil it, why, and the next step."""

    name: str
    not_for: str | None = None
    reason: str = ""
    hint: str = "leave it out"


_CAPABILITY = Option(
    "--compute-capability",
    "tensorrt",
    "TensorRT builds for the GPU of the machine it runs on",
    "leave it out and build on the target machine, or use --target tensorrt-rtx",
)
_LEVEL = Option(
    "--optimization-level",
    "tensorrt-rtx",
    "TensorRT-RTX chooses kernels on the device and not when it builds, so no level has an effect",
)
_CACHE = Option(
    "--timing-cache",
    "tensorrt-rtx",
    "TensorRT-RTX times nothing when it builds, so a timing cache has no effect",
)
_HARDWARE = Option(
    "--hardware-compatible",
    "tensorrt-rtx",
    "every TensorRT-RTX engine already runs on all GPUs of its compute capabilities",
    "leave it out; --compute-capability names the GPUs",
)
_VERSION = Option(
    "--version-compatible",
    "tensorrt-rtx",
    "TensorRT-RTX has no lean runtime that could run the engine of another version",
    "leave it out and rebuild the engine when TensorRT-RTX is updated: it takes seconds",
)
_STRIPPED = Option(
    "--strip-weights",
    "tensorrt-rtx",
    "TensorRT-RTX makes refittable engines on a GPU only, and vitdeploy builds its engines ahead of time",
    "leave it out, or use --target tensorrt on the device",
)
_OPTIMIZATION = Range("from 0 to 5", lambda value: 0 <= value <= 5)
FLAVOURS = ("tensorrt", "tensorrt-rtx")
"""The kinds of engines that can be built."""

_LARGEST_IMAGE = (1080, 1920)  # (height, width): a full HD camera


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

    flavour: Annotated[str, OneOf("TensorRT flavour", FLAVOURS)] = "tensorrt-rtx"
    profiles: tuple[Profile, ...] = (Profile(),)
    workspace_mib: Annotated[int | None, AT_LEAST_ONE, Option("--workspace")] = None
    optimization_level: Annotated[int | None, _OPTIMIZATION, _LEVEL] = None
    max_aux_streams: Annotated[int | None, AT_LEAST_ZERO, Option("--max-aux-streams")] = None
    compute_capabilities: Annotated[tuple[str, ...], _CAPABILITY, DIFFERENT] = ()
    timing_cache: Annotated[Path | None, _CACHE] = None
    hardware_compatible: Annotated[bool, _HARDWARE] = False
    version_compatible: Annotated[bool, _VERSION] = False
    strip_weights: Annotated[bool, _STRIPPED] = False

    def __post_init__(self) -> None:
        frozen(self)
        check(self)
        for name, option in options().items():
            if option.not_for == self.flavour and self._given(name):
                raise InputError(f"{option.name}: {option.reason}", hint=option.hint)
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise InputError(f"{capability!r} is not a compute capability", hint="write it as NVIDIA does: 8.6")
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
        given = {name: getattr(self, name) for name in options() if self._given(name)}
        return {
            name: value.name if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in given.items()
        }


def options() -> dict[str, Option]:
    """The options of build-engine that are fields of `EngineOptions`, by field."""
    found = {
        name: [note for note in notes(EngineOptions, name) if isinstance(note, Option)]
        for name in field_names(EngineOptions)
    }
    return {name: notes[0] for name, notes in found.items() if notes}


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
