"""Images as callers have them -> a `Request`: what `data.images.decode` takes, and arrays of other libraries.

A tensor of PyTorch, CuPy, JAX or any other library with DLPack is read where it lies if that is the machine's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.base import DeviceRunner, Runner
from vitdeploy.backends.dlpack import DeviceArray, device_of, view
from vitdeploy.core.errors import ImageError, OutOfMemoryError
from vitdeploy.data.images import decode
from vitdeploy.runtime.limits import Limits

__all__ = ["DeviceImages", "Inputs", "Pixels", "Request", "Several"]

_UINT8 = np.dtype(np.uint8)
_IN_MEMORY = (1, 3, 11)  # DLPack's kDLCPU, kDLCUDAHost (pinned) and kDLROCMHost

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""One image in the machine's memory, decoded: (height, width, 3) RGB, C-contiguous, of a size that the form takes."""


@dataclass(frozen=True)
class DeviceImages:
    """A tensor on the runner's own GPU, used where it lies; `several`: the caller gave a batch, not one image."""

    batch: DeviceArray
    several: bool


@dataclass(frozen=True)
class Several:
    """A list of images not looked at yet, or an array (count, height, width, 3)."""

    images: Sequence[Any] | npt.NDArray[Any]


Request: TypeAlias = Pixels | DeviceImages | Several


class Inputs:
    """Makes requests of images for an open runner.

    Args:
        runner: what will run them.
        limits: of its image input.
        max_pixels: most pixels of one image.
    """

    def __init__(self, runner: Runner, limits: Limits, max_pixels: int) -> None:
        self._limits, self._max_pixels = limits, max_pixels
        self._any_size = limits.any_size
        self._device = runner.device_memory if isinstance(runner, DeviceRunner) and limits.least == 1 else None

    def request(self, images: Any) -> Request:
        """What is asked: one image, decoded here; one or several on the runner's GPU; or several.

        Raises:
            ImageError: it is not an image, it is too large, or this form does not take its size.
            OutOfMemoryError: there is no memory to decode it.
        """
        # most often nothing is to be done; NumPy has one object for the dtype, bar rare exceptions
        if type(images) is np.ndarray and images.dtype is _UINT8:
            shape = images.shape
            if len(shape) == 3 and shape[2] == 3 and 0 < shape[0] * shape[1] <= self._max_pixels:
                if not self._any_size:
                    self._limits.check(shape)
                if images.flags.c_contiguous:
                    return images
        if isinstance(images, (list, tuple)):
            return Several(images)
        if isinstance(images, np.ndarray):
            return Several(images) if images.ndim == 4 else self._decoded(images)
        device = device_of(images)
        if device is None:
            return self._decoded(images)
        if device == self._device:
            batch = view(images)
            self._limits.check(batch.shape[1:])
            return DeviceImages(batch, several=len(images.shape) == 4)
        return self.request(_to_numpy(images))

    def one(self, image: Any) -> Pixels | DeviceImages:
        """`request` for what has to be one image."""
        found = self.request(image)
        return self._decoded(found.images) if isinstance(found, Several) else found

    def pixels(self, image: Any) -> Pixels:
        """`one` in the machine's memory: a tensor on a GPU is copied here."""
        found = self.one(image)
        return self._decoded(_to_numpy(image)) if isinstance(found, DeviceImages) else found

    def _decoded(self, source: Any) -> Pixels:
        if (
            isinstance(source, np.ndarray)
            and source.ndim == 3
            and source.shape[2] not in (1, 3, 4)
            and len(source) == 3
        ):
            raise ImageError(
                f"the array of shape {source.shape} has its channels first",
                hint="put them last: permute(1, 2, 0) in PyTorch, .transpose(1, 2, 0) in NumPy",
            )
        try:
            pixels = decode(source, max_pixels=self._max_pixels)
        except MemoryError as error:
            raise OutOfMemoryError("not enough memory to decode an image", hint="use a smaller image") from error
        self._limits.check(pixels.shape)
        return pixels


def _to_numpy(tensor: Any) -> npt.NDArray[Any]:
    """A tensor as an array: the same memory, or a copy of what lies on a GPU."""
    name = f"the {type(tensor).__module__.partition('.')[0]} tensor of shape {tuple(getattr(tensor, 'shape', ()))}"
    try:
        device = device_of(tensor)
        if device is not None and device[0] not in _IN_MEMORY:
            tensor = tensor.cpu() if hasattr(tensor, "cpu") else tensor.get()
            if isinstance(tensor, np.ndarray):
                return tensor
        return np.from_dlpack(tensor)
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        held = getattr(tensor, "dtype", "another type")
        raise ImageError(
            f"{name} can't be read as pixels: it holds {held} ({error})",
            hint="give uint8 pixels 0..255 of shape (height, width, 3), detached from any gradient",
        ) from error
