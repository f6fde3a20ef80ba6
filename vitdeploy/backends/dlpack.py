"""A tensor of any library with DLPack, seen where it lies: address, shape and type, without a copy.

The structures are DLPack's (dlpack.h, https://dmlc.github.io/dlpack): a capsule named "dltensor" holds a
DLManagedTensor, whose first member is this DLTensor. The capsule keeps its name, so it frees the tensor when it goes;
a view holds it.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from typing import Any

from vitdeploy.core.errors import ImageError

__all__ = ["CUDA", "DeviceArray", "device_of", "view"]

CUDA = 2
"""DLPack's number for the memory of an NVIDIA GPU."""

_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_LEGACY_DEFAULT_STREAM = 1  # what the tensor's library has to have done by then is done on it


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; a null pointer: C-contiguous
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class DeviceArray:
    """uint8 pixels (batch, height, width, 3), C-contiguous, at `address` of `device` (DLPack's kind and number)."""

    address: int
    shape: tuple[int, ...]
    device: tuple[int, int]
    owner: Any  # keeps the memory

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, images: slice) -> DeviceArray:
        start, end, _ = images.indices(len(self))
        return self.part(start, end)

    def part(self, start: int, end: int) -> DeviceArray:
        """Images `start` to `end` of the batch."""
        end = min(end, len(self))
        image = math.prod(self.shape[1:])
        return replace(self, address=self.address + start * image, shape=(end - start, *self.shape[1:]))


def device_of(value: Any) -> tuple[int, int] | None:
    """DLPack's kind and number of the device that a tensor lies on; None for anything else."""
    if not hasattr(value, "__dlpack__") or not hasattr(value, "__dlpack_device__"):
        return None
    kind, number = value.__dlpack_device__()
    return int(kind), int(number)


def view(tensor: Any) -> DeviceArray:
    """The pixels of one image (height, width, 3) or of several (count, height, width, 3), as a batch.

    Raises:
        ImageError: they are not uint8, of another shape, or not C-contiguous.
    """
    contiguous = getattr(tensor, "contiguous", None)  # PyTorch: free where it is already
    tensor = contiguous() if callable(contiguous) else tensor
    device = device_of(tensor)
    capsule = tensor.__dlpack__(stream=_LEGACY_DEFAULT_STREAM) if device and device[0] == CUDA else tensor.__dlpack__()
    found = _Tensor.from_address(_pointer(capsule))
    shape = tuple(found.shape[: found.ndim])
    kind = f"{_KINDS.get(found.dtype.code, 'type')}{found.dtype.bits}"
    if kind != "uint8" or found.dtype.lanes != 1:
        raise ImageError(f"the tensor of shape {shape} holds {kind}, and pixels are uint8", hint="scale them to 0..255")
    if found.ndim not in (3, 4) or shape[-1] != 3 or 0 in shape:
        raise ImageError(
            f"the tensor of shape {shape} is not an image",
            hint="on a GPU give RGB as (height, width, 3) or (count, height, width, 3), channels last",
        )
    if found.strides and not _contiguous(shape, tuple(found.strides[: found.ndim])):
        raise ImageError(f"the tensor of shape {shape} is not C-contiguous", hint="make a contiguous copy of it first")
    address = int(found.data or 0) + int(found.byte_offset)
    batch = shape if len(shape) == 4 else (1, *shape)
    return DeviceArray(address, batch, (found.device.kind, found.device.number), (capsule, tensor))


def _pointer(capsule: Any) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return int(get(capsule, b"dltensor"))


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    wanted = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != wanted:
            return False
        wanted *= size
    return True
