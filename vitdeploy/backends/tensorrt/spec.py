"""TensorRT and TensorRT-RTX: engines on NVIDIA GPUs, by one code path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.backends.registry import BackendSpec, Need, Offer, RunnerSpec, register
from vitdeploy.backends.tensorrt.obstacles import USE_TENSORRT, engine_obstacle, not_for_rtx
from vitdeploy.core import machine

if TYPE_CHECKING:
    from vitdeploy.backends.base import Runner

_CUDA = Need("cuda", "cuda-python")  # its old versions have no cuda.bindings


def _open(spec: RunnerSpec) -> Runner:
    from vitdeploy.backends.tensorrt.runner import TensorRTRunner

    return TensorRTRunner(spec.path, flavour=spec.backend)


def _obstacle() -> tuple[str, str] | None:
    return engine_obstacle("tensorrt", run=True)


def _rtx_obstacle() -> tuple[str, str] | None:
    obstacle = engine_obstacle("tensorrt-rtx", run=True)
    reason = not_for_rtx(machine.gpus()[0]) if obstacle is None else None
    return obstacle if reason is None else (reason, USE_TENSORRT)


register(
    BackendSpec(
        name="tensorrt",
        title="TensorRT",
        takes="engine",
        offers=(Offer("cuda", ("tensorrt",)),),
        needs=(Need("tensorrt", "tensorrt"), _CUDA),
        extra="gpu",
        open=_open,
        tf32=True,
        listed=40,
        obstacle=_obstacle,
        mark=((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
    )
)
register(
    BackendSpec(
        name="tensorrt-rtx",
        title="TensorRT-RTX",
        takes="engine",
        offers=(Offer("cuda", ("tensorrt-rtx",)),),
        needs=(Need("tensorrt_rtx", "tensorrt-rtx"), _CUDA),
        extra="rtx",
        open=_open,
        tf32=True,
        listed=41,
        obstacle=_rtx_obstacle,
        mark=((0, 1.2), (1.15, -0.85), (-1.15, -0.85)),
    )
)
