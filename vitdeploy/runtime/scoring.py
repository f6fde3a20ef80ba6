"""Requests -> class scores or vectors: batches of equal size, one runner.

Images of one size go through the graph together, in batches of at most `BATCH`; a list may mix sizes. Decoded pixels
are held until their batch is full, at most `HELD_BYTES` of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.base import DeviceRunner, Runner
from vitdeploy.backends.dlpack import DeviceArray
from vitdeploy.core.admission import late
from vitdeploy.core.errors import ImageError, InputError, OutOfMemoryError
from vitdeploy.core.machine import HELD_BYTES
from vitdeploy.core.specs import answer_of
from vitdeploy.runtime.inputs import DeviceImages, Inputs, Pixels, Several
from vitdeploy.runtime.limits import Limits

__all__ = ["Scorer"]

_Logits = npt.NDArray[np.float32]
_Group = list[tuple[int, Pixels]]


class Scorer:
    """Answers of an open runner, logits or vectors, whichever its output holds that `core.specs.answer_of` names.

    Args:
        runner: open, and the caller's to close.
        max_pixels: most pixels of one image.
    """

    def __init__(self, runner: Runner, max_pixels: int) -> None:
        self._runner = runner
        self._limits = Limits(runner)
        self.inputs = Inputs(runner, self._limits, max_pixels)
        self._fits = _takes_pixels(runner)
        names = [spec.name for spec in runner.outputs]
        self.output = answer_of(names)
        self._output = names.index(self.output)

    @property
    def batch(self) -> int:
        """Most images of one call of the graph."""
        return self._limits.batch

    def batch_of(self, wanted: int | None) -> int:
        """How many images of one call there may be if the caller wants `wanted`; None: `batch`.

        Raises:
            InputError: `wanted` is not a whole number of at least 1.
        """
        if wanted is None:
            return self._limits.batch
        if isinstance(wanted, bool) or not isinstance(wanted, (int, np.integer)) or wanted < 1:
            raise InputError(f"batch is {wanted!r}", hint="give a whole number of at least 1")
        return min(int(wanted), self._limits.most or int(wanted))

    @property
    def width(self) -> int | str:
        """How many numbers an answer has: classes or dimensions; a name where the graph does not say."""
        return self._runner.outputs[self._output].shape[-1]

    def run(self, images: list[Pixels]) -> _Logits:
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
        logits = answers[self.output]
        return logits if limits.least == 1 else logits[: len(images)]

    def run_on_device(self, batch: DeviceArray) -> _Logits:
        """Logits (count, classes) of images on the runner's GPU, of any number."""
        runner = self._runner
        assert isinstance(runner, DeviceRunner)
        size = self._limits.batch
        parts = [batch.part(start, start + size) for start in range(0, len(batch), size)]
        rows = [runner.infer_on_device({self._limits.name: part})[self.output] for part in parts]
        return np.concatenate(rows)

    def answers(
        self, several: Several, *, keep: bool, deadline: float | None
    ) -> Iterator[tuple[int, _Logits | ImageError]]:
        """(index, logits (classes,) or the image's error) of every image, in no order.

        Args:
            several: the images.
            keep: give an image's error in its place; else raise it.
            deadline: of `time.monotonic`; no batch is begun after it, which raises DeadlineError.
        """
        waiting: dict[tuple[int, ...], _Group] = {}
        held = 0
        for index, image in enumerate(several.images):
            try:
                found = self.inputs.one(image)
            except ImageError as error:
                named = error
                if not isinstance(image, (str, os.PathLike)):
                    named = ImageError(f"image {index}: {error.message}", hint=error.hint)
                if not keep:
                    raise named from error
                yield index, named
                continue
            if isinstance(found, DeviceImages):
                yield index, self.run_on_device(found.batch)[0]
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
