"""Run a checkpoint as people run it today: PyTorch and transformers' own image processor."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import numpy.typing as npt

from vitdeploy.backends.base import RunnerBase
from vitdeploy.core.errors import InputError, OutOfMemoryError, RunnerClosedError, require
from vitdeploy.core.machine import quota_threads
from vitdeploy.core.specs import TensorSpec
from vitdeploy.models.tasks import CLASSES, SINGLE_LABEL, Task, TaskRequest

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
        half: weights and pixel values in float16, as `module.half()` makes them.
        tf32: whether a GPU may compute float32 products in TF32, 10 bits of mantissa; PyTorch's own default is that
            convolutions may and other products may not. Set for each call, and put back behind it.
        compiled: through torch.compile; the first call of each shape compiles, which takes a C++ compiler and a while.
        trust_remote_code: run Python code that comes with the checkpoint.
        request: what it is to answer.

    `device_ms` is what the last call took on the GPU by CUDA events, copies included; None on the CPU. `labels` and
    `task` are the checkpoint's, once the runner is open.

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
        half: bool = False,
        tf32: bool = False,
        compiled: bool = False,
        trust_remote_code: bool = False,
        request: TaskRequest = CLASSES,
    ) -> None:
        super().__init__()
        if autocast not in (None, *_AUTOCAST):
            raise InputError(f"autocast is {autocast!r}", hint="use bf16, fp16 or None")
        self._model = model
        self._threads = threads
        self._device = device
        self._autocast = autocast
        self._half, self._tf32 = half, tf32
        self._compiled = compiled
        self._trusted, self._request = trust_remote_code, request
        self._answer_of: Callable[[Any], Any] | None = None
        self.device_ms: float | None = None
        self.labels: tuple[str, ...] = ()
        self.task: Task = SINGLE_LABEL
        self.threshold: float | None = None
        self._lock = threading.Lock()
        self._torch: Any = None
        self._module: Any = None
        self._processor: Any = None

    def _open(self, stack: ExitStack) -> None:
        from vitdeploy.models.checkpoints import load_checkpoint

        torch = require("torch", extra="build")
        if self._device != "cpu" and not torch.cuda.is_available():
            raise InputError("PyTorch finds no GPU on this machine", hint="use device='cpu'")
        checkpoint = load_checkpoint(self._model, trust_remote_code=self._trusted, request=self._request)
        stack.callback(self._release)
        threads = self._threads or quota_threads()
        if threads is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        self._torch, self._processor = torch, checkpoint.processor
        self.labels, self.task, self.threshold = checkpoint.labels, checkpoint.task, checkpoint.threshold
        module = checkpoint.module.to(self._device, torch.float16 if self._half else torch.float32)
        self._module = torch.compile(module) if self._compiled else module
        self._inputs = (TensorSpec("image", "uint8", ("batch", "height", "width", 3)),)
        self._answer_of = checkpoint.answer
        width = len(checkpoint.labels) if checkpoint.embedding is None else checkpoint.embedding.dimensions
        self._outputs = (TensorSpec(self.task.kind.output, "float32", ("batch", width)),)

    def _release(self) -> None:
        with self._lock:
            self._module = self._processor = None

    def infer_checked(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`infer` for feeds that fit."""
        with self._lock:
            if self._module is None:  # closed by another thread since it was checked
                raise RunnerClosedError("this PyTorchRunner is closed", hint="enter it again")
            return self._answer(lambda: self.preprocess(feeds["image"]), feeds["image"].shape)

    def prepare(self, images: npt.NDArray[Any]) -> Any:
        """Pixel values of `preprocess` where the model runs and of its type, for `infer_prepared`."""
        return self.preprocess(images).to(self._device, self._torch.float16 if self._half else self._torch.float32)

    def infer_prepared(self, pixel_values: Any) -> dict[str, npt.NDArray[Any]]:
        """The model's share of a call: (batch, 3, size, size) of `prepare` -> answer."""
        self._check_open()
        with self._lock:
            return self._answer(lambda: pixel_values, tuple(pixel_values.shape))

    def _answer(self, pixel_values: Callable[[], Any], shape: tuple[int, ...]) -> dict[str, npt.NDArray[Any]]:
        try:
            return {self.task.kind.output: self._run(pixel_values())}
        except (MemoryError, self._torch.OutOfMemoryError) as error:
            raise OutOfMemoryError(
                f"not enough memory for images of shape {shape}", hint="use a smaller batch"
            ) from error

    def preprocess(self, images: npt.NDArray[Any]) -> Any:
        """The image processor's share of a call: (batch, height, width, 3) uint8 -> (batch, 3, size, size) float32."""
        # channels named, since 3 rows of pixels would look like channels first
        return self._processor(list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    def _run(self, pixels: Any) -> npt.NDArray[Any]:
        kind = self._torch.float16 if self._half else self._torch.float32
        with self._torch.inference_mode(), self._precision(), self._tf32_as_asked(), self._stopwatch():
            here = pixels.to(self._device, kind)
            assert self._answer_of is not None, "it is open"
            answer: npt.NDArray[Any] = self._answer_of(self._module(pixel_values=here)).float().cpu().numpy()
        return answer

    @contextmanager
    def _tf32_as_asked(self) -> Iterator[None]:
        """PyTorch's switches belong to the whole process, where other ways to run it take turns with this one."""
        if self._device == "cpu":
            yield
            return
        products, convolutions = self._torch.backends.cuda.matmul, self._torch.backends.cudnn
        before = products.fp32_precision == "tf32", convolutions.conv.fp32_precision == "tf32"
        products.allow_tf32 = convolutions.allow_tf32 = self._tf32
        try:
            yield
        finally:
            products.allow_tf32, convolutions.allow_tf32 = before

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
        with self._torch.cuda.device(self._device):  # where an event is recorded
            start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            end.synchronize()
        self.device_ms = start.elapsed_time(end)
