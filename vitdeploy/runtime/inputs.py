"""Images as callers have them -> uint8 pixels: what `vitdeploy.images.decode` takes, and arrays of other libraries.

A tensor of PyTorch, CuPy, JAX or any other library with DLPack is read where it lies if that is the machine's memory.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import ImageError
from vitdeploy.images import decode
from vitdeploy.runtime.dlpack import device_of

__all__ = ["is_ready", "pixels_of", "separated"]

_UINT8 = np.dtype(np.uint8)
_IN_MEMORY = (1, 3, 11)  # DLPack's kDLCPU, kDLCUDAHost (pinned) and kDLROCMHost


def separated(images: Any) -> tuple[Any, bool]:
    """The images one by one, and whether they were several: a list, a tuple, or an array of four dimensions.

    Raises:
        ImageError: an array that can't be read.
    """
    if isinstance(images, (list, tuple)):
        return images, True
    if isinstance(images, np.ndarray):
        return (images, True) if images.ndim == 4 else ([images], False)
    if _is_tensor(images):
        array = _to_numpy(images)
        return (array, True) if array.ndim == 4 else ([array], False)
    return [images], False


def pixels_of(source: Any, max_pixels: int) -> npt.NDArray[np.uint8]:
    """The pixels of one image: uint8 (height, width, 3) RGB, C-contiguous; not copied where they have that form.

    Raises:
        ImageError: it is no image, or too large.
    """
    if is_ready(source, max_pixels):
        return cast("npt.NDArray[np.uint8]", source)
    if not isinstance(source, np.ndarray) and _is_tensor(source):
        source = _to_numpy(source)
    if isinstance(source, np.ndarray) and source.ndim == 3 and source.shape[2] not in (1, 3, 4) and len(source) == 3:
        raise ImageError(
            f"the array of shape {source.shape} has its channels first",
            hint="put them last: permute(1, 2, 0) in PyTorch, .transpose(1, 2, 0) in NumPy",
        )
    return decode(source, max_pixels=max_pixels)


def is_ready(source: Any, max_pixels: int) -> bool:
    """Whether it is what `pixels_of` gives: this is asked first, as most often nothing is to be done."""
    if type(source) is not np.ndarray or source.dtype is not _UINT8:  # NumPy has one object for it, bar rare exceptions
        return False
    shape = source.shape
    if len(shape) != 3 or shape[2] != 3 or not 0 < shape[0] * shape[1] <= max_pixels:
        return False
    return source.flags.c_contiguous


def _is_tensor(value: Any) -> bool:
    return device_of(value) is not None


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
