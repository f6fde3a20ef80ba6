"""Which kind of TensorRT this machine can build engines with."""

from __future__ import annotations

from vitdeploy import machine, progress
from vitdeploy.compiler.engine.options import FLAVOURS
from vitdeploy.errors import EngineError, InputError

__all__ = ["choose_target", "why_not"]

TARGETS = ("auto", *FLAVOURS, "onnx")
_EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}


def why_not(flavour: str) -> tuple[str, str] | None:
    """Why engines of that flavour can't be built here and what to do about it; None if they can.

    Building for TensorRT needs the GPU that the engine is for; TensorRT-RTX builds on any x86-64 machine.
    """
    obstacle = machine.engine_obstacle(flavour, run=False)
    if obstacle is None and not machine.has_module(FLAVOURS[flavour]):
        return f"the package {flavour} is not installed", f"pip install 'vitdeploy[{_EXTRAS[flavour]}]'"
    return obstacle


def choose_target(target: str = "auto") -> str:
    """What to build here: "tensorrt", "tensorrt-rtx" or "onnx" (no engine).

    "auto" is TensorRT where it is installed and a GPU is there, else TensorRT-RTX where it is installed, else ONNX,
    with a note that says what to install.

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
        return target
    obstacles = {flavour: why_not(flavour) for flavour in FLAVOURS}
    for flavour, obstacle in obstacles.items():
        if obstacle is None:
            return flavour
    reasons = "; ".join(
        f"{flavour}: {obstacle[0]} ({obstacle[1]})" for flavour, obstacle in obstacles.items() if obstacle
    )
    progress.note(f"No TensorRT engine is built, only the ONNX forms. {reasons}.")
    return "onnx"
