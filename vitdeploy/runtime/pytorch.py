"""Run a checkpoint as people run it today: PyTorch and transformers' own image processor."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import numpy.typing as npt

from vitdeploy.errors import InputError, OutOfMemoryError, RunnerClosedError, require
from vitdeploy.runtime.base import RunnerBase
from vitdeploy.specs import TensorSpec

__all__ = ["PyTorchRunner"]

_AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


class PyTorchRunner(RunnerBase):
    """A transformers checkpoint in PyTorch: the reference that bundles are compared with.

    Its feeds and results are those of a bundle's graph; the image processor is part of `infer`, as it is part of the
    graph. One call runs at a time.

    Args:
        model: checkpoint folder or Hub id.
        threads: CPU threads of PyTorch; None: as they are. The number belongs to the whole process, and leaving the
            block puts the old one back.
        device: "cpu", or PyTorch's name of a GPU, as in "cuda" or "cuda:1".
        autocast: "bf16" or "fp16" lets PyTorch compute in that type where it deems it safe; None: float32 throughout.
        compiled: through torch.compile; the first call of each shape compiles, which takes a C++ compiler and a while.

    `device_ms` is what the last call took on the GPU by CUDA events, copies included; None on the CPU.

    Example:
        with PyTorchRunner("runs/vit") as runner:
            logits = runner.infer({"image": pixels})["logits"]
    """

    backend = "pytorch"

    def __init__(
        self,
        model: str | os.PathLike[str],
        threads: int | None = None,
        *,
        device: str = "cpu",
        autocast: str | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if autocast not in (None, *_AUTOCAST):
            raise InputError(f"autocast is {autocast!r}", hint="use bf16, fp16 or None")
        self._model = model
        self._threads = threads
        self._device = device
        self._autocast = autocast
        self._compiled = compiled
        self.device_ms: float | None = None
        self._lock = threading.Lock()
        self._torch: Any = None
        self._module: Any = None
        self._processor: Any = None

    def _open(self, stack: ExitStack) -> None:
        from vitdeploy.checkpoints import load_checkpoint

        torch = require("torch", extra="build")
        if self._device != "cpu" and not torch.cuda.is_available():
            raise InputError("PyTorch finds no GPU on this machine", hint="use device='cpu'")
        checkpoint = load_checkpoint(self._model)
        stack.callback(self._release)
        if self._threads is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(self._threads)
        self._torch, self._processor = torch, checkpoint.processor
        module = checkpoint.module.to(self._device)
        self._module = torch.compile(module) if self._compiled else module
        self._inputs = (TensorSpec("image", "uint8", ("batch", "height", "width", 3)),)
        self._outputs = (TensorSpec("logits", "float32", ("batch", len(checkpoint.labels))),)

    def _release(self) -> None:
        with self._lock:
            self._module = self._processor = None

    def infer_checked(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`infer` for feeds that fit."""
        with self._lock:
            if self._module is None:  # closed by another thread since it was checked
                raise RunnerClosedError("this PyTorchRunner is closed", hint="enter it again")
            try:
                return {"logits": self._logits(self.preprocess(feeds["image"]))}
            except (MemoryError, self._torch.OutOfMemoryError) as error:
                raise OutOfMemoryError(
                    f"not enough memory for images of shape {feeds['image'].shape}", hint="use a smaller batch"
                ) from error

    def preprocess(self, images: npt.NDArray[Any]) -> Any:
        """The image processor's share of a call: (batch, height, width, 3) uint8 -> (batch, 3, size, size) float32."""
        # channels named, since 3 rows of pixels would look like channels first
        return self._processor(list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    def _logits(self, pixels: Any) -> npt.NDArray[Any]:
        with self._torch.inference_mode(), self._precision(), self._stopwatch():
            logits: npt.NDArray[Any] = self._module(pixel_values=pixels.to(self._device)).logits.float().cpu().numpy()
        return logits

    def _precision(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return nullcontext()
        device = self._device.partition(":")[0]
        return cast(
            "AbstractContextManager[Any]",
            self._torch.autocast(device, dtype=getattr(self._torch, _AUTOCAST[self._autocast])),
        )

    @contextmanager
    def _stopwatch(self) -> Iterator[None]:
        if self._device == "cpu":
            yield
            return
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        end.synchronize()
        self.device_ms = start.elapsed_time(end)
