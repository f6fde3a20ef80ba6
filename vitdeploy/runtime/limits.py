"""What a runner's image input may be: the largest batch, and the sizes it takes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.base import Runner
from vitdeploy.core.errors import ImageError
from vitdeploy.core.specs import ShapeRange

__all__ = ["BATCH", "Limits"]

BATCH = 32
"""Most images of one call of the graph."""


class Limits:
    """The limits of an open runner's image input.

    `name` is the input's, `least` and `most` the fewest and the most images of one call that it takes (`most` None: any
    number), `batch` how many of them one call is given, `any_size` whether it takes images of every size.
    """

    def __init__(self, runner: Runner) -> None:
        spec = runner.inputs[0]
        self.name = spec.name
        batch, *self._sizes = spec.shape[:3]
        ranges: tuple[ShapeRange | None, ...] = runner.ranges.get(spec.name) or (None, None, None)
        batches, self._ranges = ranges[0], ranges[1:3]
        self.any_size = self._ranges == (None, None) and not any(isinstance(size, int) for size in self._sizes)
        self.least = batch if isinstance(batch, int) else batches.minimum if batches else 1
        self.most = batch if isinstance(batch, int) else batches.maximum if batches else None
        self.batch = min(self.most or BATCH, max(BATCH, self.least))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ImageError for an image of a shape (height, width, 3) that this form does not take."""
        if self.any_size:
            return
        for size, fixed, allowed in zip(shape[:2], self._sizes, self._ranges, strict=True):
            outside = allowed is not None and not allowed.minimum <= size <= allowed.maximum
            if outside or (isinstance(fixed, int) and size != fixed):
                raise ImageError(
                    f"an image of {shape[0]}x{shape[1]} is not what this form takes: {self}",
                    hint="resize it first, or make the form for more sizes (export and build-engine set them)",
                )

    def padded(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The batch, filled up with its last image where the form takes no batch as small as it."""
        missing = self.least - len(images)
        return images if missing <= 0 else np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])

    def __str__(self) -> str:
        words = [
            str(fixed) if isinstance(fixed, int) else f"{allowed.minimum}..{allowed.maximum}" if allowed else "any"
            for fixed, allowed in zip(self._sizes, self._ranges, strict=True)
        ]
        return f"height {words[0]}, width {words[1]}"
