"""What is to be opened, as data that another process can be given, and the runner it stands for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

__all__ = ["RunnerSpec", "open_runner"]


@dataclass(frozen=True)
class RunnerSpec:
    """One form on one backend: a file, or a checkpoint for PyTorch (then `variant` is "", or one of `VARIANTS`)."""

    backend: str
    path: str
    threads: int
    device: str = "cpu"
    variant: str = ""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def open_runner(spec: RunnerSpec) -> AbstractContextManager[Any]:
    """The runner of a spec, not yet entered; its backend is imported here."""
    if spec.backend == "pytorch":
        from vitdeploy.runtime.pytorch import PyTorchRunner

        autocast = spec.variant.partition("-")[0]
        return PyTorchRunner(
            spec.path,
            threads=spec.threads,
            device=spec.device,
            autocast=autocast if autocast in ("bf16", "fp16") else None,
            compiled=spec.variant.endswith("compile"),
        )
    if spec.backend == "onnxruntime":
        from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(spec.path, threads=spec.threads, device=spec.device)
    if spec.backend == "native":
        from vitdeploy.runtime.native import NativeRunner

        return NativeRunner(spec.path, threads=spec.threads)
    if spec.backend == "openvino":
        from vitdeploy.runtime.openvino import OpenVinoRunner

        return OpenVinoRunner(spec.path, threads=spec.threads)
    from vitdeploy.runtime.tensorrt import TensorRTRunner

    return TensorRTRunner(spec.path, flavour=spec.backend)
