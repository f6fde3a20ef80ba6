"""PyTorch, which runs no form of a bundle: bench's baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.backends.pytorch.variants import VARIANTS
from vitdeploy.backends.registry import BackendSpec, Need, Offer, RunnerSpec, register
from vitdeploy.models.tasks import CLASSES, TaskRequest

if TYPE_CHECKING:
    from vitdeploy.backends.base import Runner


def _open(spec: RunnerSpec) -> Runner:
    from vitdeploy.backends.pytorch.runner import PyTorchRunner

    return PyTorchRunner(
        spec.path,
        threads=spec.threads,
        device=spec.device,
        **VARIANTS[spec.variant].options,
        trust_remote_code=spec.trust_remote_code,
        request=CLASSES if spec.request is None else TaskRequest.from_json(spec.request),
    )


register(
    BackendSpec(
        name="pytorch",
        title="PyTorch",
        takes="checkpoint",
        offers=(Offer("cpu", ()), Offer("cuda", ())),
        needs=(Need("torch", "torch"), Need("transformers", "transformers")),
        extra="build",
        open=_open,
        listed=0,
        order=None,
        answers=("torch", "torchvision", "transformers", "pillow", "numpy"),
        mark=(),
    )
)
