"""PyTorch with transformers' own image processor: what people run today, and the reference for everything else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from vitdeploy.errors import require
from vitdeploy.runtime.base import Array, BaseRunner
from vitdeploy.specs import TensorSpec

__all__ = ["PyTorchRunner"]


class PyTorchRunner(BaseRunner):
    """Runs a checkpoint in float32, eager, on the CPU.

    Args:
        model: Hub id or local folder.
        threads: CPU threads, of the whole process: PyTorch has no smaller unit. Leaving restores the number.
    """

    backend = "pytorch"

    def __init__(self, model: str | os.PathLike[str], threads: int | None = None) -> None:
        super().__init__()
        self._name = os.fspath(model)
        self._threads = threads
        self._checkpoint: Any = None
        self._torch: Any = None

    def _open(self, stack: ExitStack) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        from vitdeploy.checkpoints import load_checkpoint

        self._torch = require("torch", extra="build")
        self._checkpoint = load_checkpoint(self._name)
        if self._threads is not None:
            stack.callback(self._torch.set_num_threads, self._torch.get_num_threads())
            self._torch.set_num_threads(self._threads)
        stack.callback(self._release)
        return (
            (TensorSpec("image", "uint8", ("batch", "height", "width", 3)),),
            (TensorSpec("logits", "float32", ("batch", len(self._checkpoint.labels))),),
        )

    def _release(self) -> None:
        self._checkpoint = None

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        inputs = self._checkpoint.processor(
            list(feeds["image"]), return_tensors="pt", input_data_format="channels_last"
        )
        with self._torch.inference_mode():
            logits = self._checkpoint.module(pixel_values=inputs["pixel_values"]).logits
        return {"logits": np.asarray(logits.numpy(), dtype=np.float32)}
