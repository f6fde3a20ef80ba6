"""Our own INT8 kernels, for plain ViTs on CPUs that they are compiled for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.backends.native.library import chosen_isa, kernels_obstacle
from vitdeploy.backends.registry import BackendSpec, Need, Offer, RunnerSpec, register
from vitdeploy.core import machine
from vitdeploy.core.errors import ModelError

if TYPE_CHECKING:
    from vitdeploy.backends.base import Runner


def _open(spec: RunnerSpec) -> Runner:
    from vitdeploy.backends.native.runner import NativeRunner

    return NativeRunner(spec.path, threads=spec.threads, hashes=spec.hashes)


def _order() -> int:
    """Before the others where that was measured to be faster: with AVX-512 VNNI, unless there is AMX for the others."""
    flags = machine.cpu_flags()
    return 10 if "avx512_vnni" in flags and "amx_int8" not in flags else 40


def _unfit(graph: Path) -> str | None:
    from vitdeploy.backends.native.runner import check_plain_vit

    try:
        check_plain_vit(graph)
    except ModelError as error:
        return error.message
    return None


register(
    BackendSpec(
        name="native",
        title="vitdeploy's kernels",
        takes="onnx",
        offers=(Offer("cpu", ("cpu",), precisions=lambda: ("int8",)),),
        needs=(Need("onnxruntime", "onnxruntime"),),
        extra="native",
        open=_open,
        listed=30,
        order=_order,
        obstacle=kernels_obstacle,
        unfit=_unfit,
        answers=("vitdeploy", "onnxruntime", "onnxruntime-gpu"),
        note=lambda: f"compiled for {chosen_isa().name}",
        job="Run INT8 on the CPU: own kernels",
        mark=((0, -1.3), (1.24, -0.4), (0.76, 1.05), (-0.76, 1.05), (-1.24, -0.4)),
    )
)
