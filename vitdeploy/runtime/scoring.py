"""Images -> class scores: decoding, batches of equal size, one runner.

Images of one size go through the graph together, in batches of at most `BATCH`; a list may mix sizes. Decoded pixels
are held until their batch is full, at most `HELD_BYTES` of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import ImageError, InputError, OutOfMemoryError
from vitdeploy.runtime.admission import late
from vitdeploy.runtime.base import DeviceRunner, Runner
from vitdeploy.runtime.dlpack import DeviceArray, device_of, view
from vitdeploy.runtime.inputs import pixels_of
from vitdeploy.runtime.limits import Limits

__all__ = ["HELD_BYTES", "Scorer"]

HELD_BYTES = 256 * 2**20
"""Decoded pixels that may wait for their batch."""

_Pixels = npt.NDArray[np.uint8]
_Logits = npt.NDArray[np.float32]
_Group = list[tuple[int, _Pixels]]


class Scorer:
    """Class scores from an open runner; the output `logits` is what it reads, or the first where none has that name.

    Args:
        runner: open, and the caller's to close.
        max_pixels: most pixels of one image.
    """

    def __init__(self, runner: Runner, max_pixels: int) -> None:
        self._runner = runner
        self._max_pixels = max_pixels
        self._limits = Limits(runner)
        self._fits = _takes_pixels(runner)
        self._device = runner.device_memory if isinstance(runner, DeviceRunner) else None
        names = [spec.name for spec in runner.outputs]
        self._output = names.index("logits") if "logits" in names else 0
        self._output_name = names[self._output]

    @property
    def batch(self) -> int:
        """Most images of one call of the graph."""
        return self._limits.batch

    def batch_of(self, wanted: int | None) -> int:
        """How many images of one call there may be if the caller wants `wanted`; None: `batch`.

        Raises:
            InputError: `wanted` is no whole number of at least 1.
        """
        if wanted is None:
            return self._limits.batch
        if isinstance(wanted, bool) or not isinstance(wanted, (int, np.integer)) or wanted < 1:
            raise InputError(f"batch is {wanted!r}", hint="give a whole number of at least 1")
        return min(int(wanted), self._limits.most or int(wanted))

    @property
    def classes(self) -> int | str:
        """How many classes the graph scores; a name where the graph does not say."""
        return self._runner.outputs[self._output].shape[-1]

    @property
    def ready_pixels(self) -> int:
        """Most pixels of an array that may go to `run` without `image` if `inputs.is_ready`; 0: none may."""
        return self._max_pixels if self._limits.any_size else 0

    def image(self, source: Any) -> _Pixels:
        """Pixels (height, width, 3) of one image that this form takes.

        Raises:
            ImageError: it is no image, or its size is none that this form takes.
            OutOfMemoryError: there is no memory to decode it.
        """
        try:
            pixels = pixels_of(source, self._max_pixels)
        except MemoryError as error:
            raise OutOfMemoryError("not enough memory to decode an image", hint="use a smaller image") from error
        self._limits.check(pixels.shape)
        return pixels

    def run(self, images: list[_Pixels]) -> _Logits:
        """Logits (batch, classes) of images (height, width, 3) of one size, at most `batch` of them.

        Raises:
            OutOfMemoryError: there is no memory for the batch.
        """
        limits, runner = self._limits, self._runner
        infer = runner.infer_checked if self._fits else runner.infer
        try:
            # (height, width, 3) -> (batch, height, width, 3); one image alone is not copied
            stacked = images[0][None] if len(images) == 1 else np.stack(images)
            answers = infer({limits.name: stacked if limits.least == 1 else limits.padded(stacked)})
        except MemoryError as error:
            raise OutOfMemoryError(
                f"not enough memory for {len(images)} images of shape {images[0].shape}",
                hint="use a smaller batch or image",
            ) from error
        logits = answers[self._output_name]
        return logits if limits.least == 1 else logits[: len(images)]

    def view(self, images: Any) -> DeviceArray | None:
        """A tensor that lies on the GPU where the runner runs, as a batch; None: it is none, or is to be copied here.

        Raises:
            ImageError: it lies there and holds no images that this form takes.
        """
        if self._device is None or device_of(images) != self._device:
            return None
        batch = view(images)
        self._limits.check(batch.shape[1:])
        return batch if self._limits.least == 1 else None

    def run_on_device(self, batch: DeviceArray) -> _Logits:
        """Logits (count, classes) of a batch that `view` gave, of any length."""
        runner = self._runner
        assert isinstance(runner, DeviceRunner)
        size = self._limits.batch
        parts = [batch.part(start, start + size) for start in range(0, len(batch), size)]
        rows = [runner.infer_on_device({self._limits.name: part})[self._output_name] for part in parts]
        return np.concatenate(rows)

    def answers(
        self, images: Any, *, keep: bool, many: bool, deadline: float | None
    ) -> Iterator[tuple[int, _Logits | ImageError]]:
        """(index, logits (classes,) or the image's error) of every image, in no order.

        Args:
            images: a sequence, or an array (count, height, width, 3).
            keep: give an image's error in its place; else raise it.
            many: name the image by its place in the error.
            deadline: of `time.monotonic`; no batch is begun after it, which raises DeadlineError.
        """
        waiting: dict[tuple[int, ...], _Group] = {}
        held = 0
        for index in range(len(images)):
            try:
                there = self.view(images[index])
                found = self.image(images[index]) if there is None else there
            except ImageError as error:
                named = error
                if many and not isinstance(images[index], (str, os.PathLike)):
                    named = ImageError(f"image {index}: {error.message}", hint=error.hint)
                if not keep:
                    raise named from error
                yield index, named
                continue
            if isinstance(found, DeviceArray):
                yield index, self.run_on_device(found)[0]
                continue
            group = waiting.setdefault(found.shape, [])
            group.append((index, found))
            held += found.nbytes
            if len(group) == self._limits.batch:
                held -= sum(image.nbytes for _, image in group)
                yield from self._group(waiting.pop(found.shape), deadline)
            elif held >= HELD_BYTES:
                for full in waiting.values():
                    yield from self._group(full, deadline)
                waiting, held = {}, 0
        for rest in waiting.values():
            yield from self._group(rest, deadline)

    def _group(self, group: _Group, deadline: float | None) -> Iterator[tuple[int, _Logits]]:
        if deadline is not None and time.monotonic() > deadline:
            raise late("before the images were run")
        return zip((index for index, _ in group), self.run([pixels for _, pixels in group]), strict=True)


def _takes_pixels(runner: Runner) -> bool:
    """Whether it takes what bundles' graphs do, uint8 (batch, height, width, 3): then images that were checked fit."""
    spec = runner.inputs[0]
    return len(runner.inputs) == 1 and spec.dtype == "uint8" and len(spec.shape) == 4 and spec.shape[3] == 3
