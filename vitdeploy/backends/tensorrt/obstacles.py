"""What about a machine itself forbids to build or run engines, whatever is installed."""

from __future__ import annotations

import platform

from vitdeploy.core import machine

__all__ = ["USE_TENSORRT", "engine_obstacle", "not_for_rtx"]

USE_TENSORRT = "build an engine for it: vitdeploy build-engine BUNDLE --fp16 --target tensorrt"
_X86 = ("x86_64", "AMD64")
_RTX, _RTX_FROM = ("7.5", "8.6", "8.9"), 12.0  # compute capabilities that NVIDIA's support matrix has


def engine_obstacle(flavour: str, *, run: bool) -> tuple[str, str] | None:
    """What about the machine itself, whatever is installed, forbids to build (or `run`) engines of "tensorrt" or
    "tensorrt-rtx", and the next step; None if nothing does.

    TensorRT builds on the GPU that the engine is for; TensorRT-RTX exists for x86-64 only, and builds without one.
    """
    if flavour == "tensorrt-rtx" and platform.machine() not in _X86:
        return (
            f"TensorRT-RTX exists for x86-64 only, and this machine is {platform.machine()}",
            "use --target tensorrt on the device, or --target onnx",
        )
    if (flavour == "tensorrt-rtx" and not run) or machine.gpus():
        return None
    problem = machine.problem_with_gpu()
    if problem is not None:
        reason, _, step = problem.partition(": ")
        return reason, step
    if run:
        return "there is no NVIDIA GPU here", "copy the bundle to a machine with an NVIDIA GPU"
    return (
        "TensorRT builds on the GPU that the engine is for, and there is no NVIDIA GPU here",
        "run build-engine on the target machine, or use --target tensorrt-rtx or --target onnx here",
    )


def not_for_rtx(gpu: machine.Gpu) -> str | None:
    """Why TensorRT-RTX does not run on a GPU; None if it does."""
    if gpu.compute_capability in _RTX or float(gpu.compute_capability) >= _RTX_FROM:
        return None
    return (
        f"TensorRT-RTX is for compute capability {', '.join(_RTX)} and {_RTX_FROM:g}, and the {gpu.name} here has"
        f" {gpu.compute_capability}"
    )
