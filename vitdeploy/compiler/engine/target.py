"""Which kind of TensorRT this machine can build engines with."""

from __future__ import annotations

from dataclasses import replace

from vitdeploy.backends.registry import find
from vitdeploy.backends.tensorrt.obstacles import engine_obstacle, not_for_rtx
from vitdeploy.backends.tensorrt.options import FLAVOURS, EngineOptions
from vitdeploy.core import machine, progress
from vitdeploy.core.errors import EngineError, InputError
from vitdeploy.core.precisions import FORMS, title

__all__ = ["choose_target", "for_gpus", "why_not"]

TARGETS = ("auto", *FLAVOURS, "onnx")
_RTX_FROM = {8.9: ("8.9", "12.0")}
"""What TensorRT-RTX builds for where no GPU was named, by the least compute capability of a precision."""


def why_not(flavour: str) -> tuple[str, str] | None:
    """Why engines of that flavour can't be built here and what to do about it; None if they can.

    Building for TensorRT needs the GPU that the engine is for; TensorRT-RTX builds on any x86-64 machine.
    """
    obstacle = engine_obstacle(flavour, run=False)
    if obstacle is None and not machine.has_module(find(flavour).needs[0].module):
        return f"the package {flavour} is not installed", find(flavour).install
    return obstacle


def choose_target(target: str = "auto") -> str:
    """What to build here: "tensorrt", "tensorrt-rtx" or "onnx" (no engine).

    "auto" is TensorRT where it is installed and a GPU is there, else TensorRT-RTX where it is installed and there is no
    GPU here that it is not for, else ONNX, with a note that says what to install.

    Raises:
        InputError: the target is not known.
        EngineError: it was asked for by name and can't be built here.
    """
    if target not in TARGETS:
        raise InputError(f"target {target!r} is not known", hint=f"one of {', '.join(TARGETS)}")
    if target == "onnx":
        return target
    if target != "auto":
        obstacle = why_not(target)
        if obstacle is not None:
            raise EngineError(f"no {target} engine can be built here: {obstacle[0]}", hint=obstacle[1])
        if target == "tensorrt-rtx" and (misfit := _misfit()) is not None:
            progress.note(f"Note: the engine is for other machines: {misfit}.")
        return target
    obstacles = {flavour: why_not(flavour) for flavour in FLAVOURS}
    if (misfit := _misfit()) is not None:
        obstacles["tensorrt-rtx"] = misfit, "for another machine: --target tensorrt-rtx"
    for flavour, obstacle in obstacles.items():
        if obstacle is None:
            return flavour
    reasons = "; ".join(
        f"{flavour}: {obstacle[0]} ({obstacle[1]})" for flavour, obstacle in obstacles.items() if obstacle
    )
    progress.note(f"No TensorRT engine is built, only the ONNX forms. {reasons}.")
    return "onnx"


def _misfit() -> str | None:
    """Why what TensorRT-RTX builds would not run on the GPU here."""
    gpus = machine.gpus()
    return not_for_rtx(gpus[0]) if gpus else None


def for_gpus(options: EngineOptions, precision: str) -> EngineOptions:
    """The options of an engine in a precision: for GPUs that have it, where TensorRT-RTX was given none.

    Raises:
        EngineError: the GPU here, or one that was named, does not compute in it.
    """
    least = max((spec.compute_capability for spec in FORMS.values() if spec.precision == precision), default=0.0)
    if not least:
        return options
    hint = f"use --fp16 or --int8; {title(precision)} takes a compute capability of {least:g} or more (Ada, Hopper ...)"
    if options.flavour == "tensorrt":
        gpus = machine.gpus()
        if gpus and float(gpus[0].compute_capability) < least:
            raise EngineError(
                f"{gpus[0].name} (compute capability {gpus[0].compute_capability}) has no {title(precision)}", hint=hint
            )
        return options
    lacking = [capability for capability in options.compute_capabilities if float(capability) < least]
    if lacking:
        raise EngineError(f"GPUs of compute capability {', '.join(lacking)} have no {title(precision)}", hint=hint)
    return options if options.compute_capabilities else replace(options, compute_capabilities=_RTX_FROM[least])
