"""OpenVINO, the first choice on CPUs, but on those where its INT8 is not exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.backends.registry import BackendSpec, Need, Offer, RunnerSpec, register
from vitdeploy.core import machine

if TYPE_CHECKING:
    from vitdeploy.backends.base import Runner


def _open(spec: RunnerSpec) -> Runner:
    from vitdeploy.backends.openvino.runner import OpenVinoRunner

    return OpenVinoRunner(spec.path, threads=spec.threads, performance=spec.performance, hashes=spec.hashes)


register(
    BackendSpec(
        name="openvino",
        title="OpenVINO",
        takes="onnx",
        offers=(Offer("cpu", studied=("tensorrt",)),),
        needs=(Need("openvino", "openvino"),),
        extra="cpu",
        open=_open,
        listed=20,
        order=lambda: 35 if machine.saturates() else 20,
        performance=True,
        mark=((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    )
)
