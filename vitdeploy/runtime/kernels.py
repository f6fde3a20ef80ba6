"""Kernels of our own for a plain ViT in INT8: kernels.cpp, compiled when vitdeploy is installed, behind ctypes.

What they compute and how is said there; this packs the constants for it. A product's weights, (inputs, outputs), lie as
(outputs / 64, inputs / 4, 64, 4): a vector instruction takes four inputs of sixteen columns. Widths are padded to
multiples of 64 and heads to multiples of 16, with zeros, which add nothing to any sum.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import replace
from importlib import util
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import DependencyError, ModelError, OutOfMemoryError, RunnerClosedError
from vitdeploy.machine import kernels_obstacle, physical_cores
from vitdeploy.runtime.plain_vit import WIDTH_UNIT, Layer, Norm, PlainVit, Product

__all__ = ["MAX_THREADS", "Encoder", "Packed"]

MAX_THREADS = 16  # of a call, where none are asked for: with more, a thread has too little to do in a step
_COLUMNS, _LANES, _LINE = 64, WIDTH_UNIT, 64  # of a tile, of a vector, bytes of the cache
_CHUNK = 1 << 24  # bytes of constants in one piece of memory: NumPy asks for huge pages for pieces of this size
_Array = npt.NDArray[Any]
_Pointer = ctypes.c_void_p


def _structure(name: str, **fields: Any) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# As in kernels.cpp.
_Linear = _structure(
    "_Linear",
    **dict.fromkeys(("inputs", "outputs"), ctypes.c_int),
    **dict.fromkeys(("weights", "scale", "bias"), _Pointer),
    **dict.fromkeys(("inverse", "zero"), ctypes.c_float),
    exact=_Pointer,
)
_Norm = _structure("_Norm", weight=_Pointer, bias=_Pointer, epsilon=ctypes.c_float)
_Layer = _structure("_Layer", before=_Norm, after=_Norm, qkv=_Linear, output=_Linear, fc1=_Linear, fc2=_Linear)
_Patches = _structure(
    "_Patches",
    **dict.fromkeys(("channels", "side_y", "side_x", "down", "across", "first"), ctypes.c_int),
    **dict.fromkeys(("weights", "positions"), _Pointer),
)
_Classifier = _structure("_Classifier", classes=ctypes.c_int, weights=_Pointer, bias=_Pointer)
_Shape = _structure("_Shape", **dict.fromkeys(("width", "hidden", "heads", "head", "layers"), ctypes.c_int))


class Packed:
    """The constants of a model as the kernels' structures, and the memory that these point to."""

    def __init__(self, form: PlainVit) -> None:
        width, self._heads = len(form.kernel), form.heads
        self._chunks: list[_Array] = []
        self._used = _CHUNK
        head = form.layers[0].query.weight.shape[1] // form.heads
        self._head, self._wide_head = head, _up(head, _LANES)
        layers = [self._layer(layer) for layer in form.layers]
        self.layers = (_Layer * len(layers))(*layers)
        self.shape = _Shape(width, layers[0].fc1.outputs, form.heads, self._wide_head, len(layers))
        self.norm = self._norm(form.norm)
        self.patches = self._patches(form)
        self.classes = len(form.classifier)
        weights = _padded(form.classifier, 1, _COLUMNS)
        self.classifier = _Classifier(self.classes, self._floats(weights), self._floats(form.classifier_bias))
        self.image = form.image

    def _keep(self, array: _Array) -> int:
        """The address of a copy that is aligned for vectors."""
        size = _up(array.nbytes, _LINE)
        if self._used + size > _CHUNK:
            self._chunks.append(np.empty(max(size, _CHUNK) + _LINE, np.uint8))
            self._used = 0
        start = -self._chunks[-1].ctypes.data % _LINE + self._used
        self._chunks[-1][start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._used += size
        return int(self._chunks[-1].ctypes.data + start)

    def _floats(self, array: _Array) -> int:
        return self._keep(array.astype(np.float32, copy=False))

    def _linear(self, *products: Product) -> Any:
        """Products of one input side by side, each padded."""
        first = products[0]
        weight, weight_scale, bias = (
            np.concatenate([_padded(getattr(each, name), -1, _COLUMNS) for each in products], axis=-1)
            for name in ("weight", "weight_scale", "bias")
        )
        weight = _padded(weight, 0, _COLUMNS)
        inputs, outputs = weight.shape
        if first.exact:
            columns = weight.reshape(inputs, outputs // _COLUMNS, _COLUMNS).transpose(1, 0, 2)
            return _Linear(inputs, outputs, bias=self._floats(bias), exact=self._floats(columns))
        scale = weight_scale * first.scale
        bias = bias - scale * first.zero * weight.sum(axis=0, dtype=np.int32)  # (x - z) W = x W - z sum(W)
        packed = weight.reshape(inputs // 4, 4, outputs // _COLUMNS, _COLUMNS).transpose(2, 0, 3, 1)
        floats = self._floats(scale), self._floats(bias)
        return _Linear(inputs, outputs, self._keep(packed), *floats, 1 / first.scale, first.zero)

    def _norm(self, norm: Norm) -> Any:
        return _Norm(self._floats(norm.weight), self._floats(norm.bias), norm.epsilon)

    def _layer(self, layer: Layer) -> Any:
        qkv = [
            replace(
                each,
                weight=self._wide(each.weight, -1),
                weight_scale=self._wide(each.weight_scale, -1),
                bias=self._wide(each.bias, -1),
            )
            for each in (layer.query, layer.key, layer.value)
        ]
        output = replace(layer.output, weight=self._wide(layer.output.weight, 0))
        linears = [self._linear(*products) for products in (qkv, [output], [layer.fc1], [layer.fc2])]
        return _Layer(self._norm(layer.before), self._norm(layer.after), *linears)

    def _wide(self, array: _Array, axis: int) -> _Array:
        """Each head along an axis padded to whole vectors."""
        axis %= array.ndim
        before, after = array.shape[:axis], array.shape[axis + 1 :]
        heads = _padded(array.reshape(*before, self._heads, self._head, *after), axis + 1, _LANES)
        return heads.reshape(*before, self._heads * self._wide_head, *after)

    def _patches(self, form: PlainVit) -> Any:
        width, channels, side_y, side_x = form.kernel.shape
        down, across = form.image[1] // side_y, form.image[2] // side_x
        first = len(form.positions) - down * across
        positions = form.positions.copy()
        positions[first:] += form.kernel_bias
        kernel = _padded(form.kernel.reshape(width, -1), 0, _COLUMNS)
        # (width, inputs) -> (width / 64, inputs, 64)
        packed = kernel.reshape(len(kernel) // _COLUMNS, _COLUMNS, -1).transpose(0, 2, 1)
        kept = self._floats(packed), self._floats(_padded(positions, 1, _COLUMNS))
        return _Patches(channels, side_y, side_x, down, across, first, *kept)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _padded(array: _Array, axis: int, unit: int) -> _Array:
    """Zeros behind an axis until it is a multiple of `unit` long."""
    more = [(0, 0)] * array.ndim
    more[axis] = (0, -array.shape[axis] % unit)
    return np.pad(array, more) if more[axis][1] else array


class Encoder:
    """The kernels with a model and threads of their own, for one caller at a time.

    Args:
        form: the model; its constants are copied.
        threads: CPU threads of a call; None: the physical cores, 16 at most.

    Raises:
        DependencyError: vitdeploy was installed without the kernels, or this processor can't run them.
        OutOfMemoryError: there is no memory for it, or no thread.
    """

    def __init__(self, form: PlainVit, threads: int | None = None) -> None:
        self._library = _library()
        self._packed = packed = Packed(form)
        self.classes, self.image = packed.classes, packed.image
        self._lock = threading.Lock()
        parts = (packed.norm, packed.patches, packed.classifier)
        self._handle = self._library.encoder_open(
            ctypes.byref(packed.shape),
            packed.layers,
            *map(ctypes.byref, parts),
            threads or min(physical_cores(), MAX_THREADS),
        )
        if not self._handle:
            raise OutOfMemoryError(
                "there is no memory, or no thread, for the kernels", hint="use fewer threads, or another backend"
            )

    def run(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(images, channels, height, width) float32 -> logits (images, classes), one image after the other.

        Raises:
            ModelError: they have another shape or type.
            RunnerClosedError: it was closed.
        """
        packed = self._packed
        if pixels.shape[1:] != packed.image or pixels.dtype != np.float32:
            raise ModelError(
                f"the preprocessing makes {pixels.dtype} {pixels.shape[1:]}, the model takes float32 {packed.image}",
                hint="export the bundle again",
            )
        pixels = np.ascontiguousarray(pixels)
        logits = np.empty((len(pixels), packed.classes), np.float32)
        size = int(np.prod(packed.image))
        with self._lock:
            if not self._handle:
                raise RunnerClosedError("the kernels are closed", hint="use them inside their `with` block")
            self._library.encoder_run(
                self._handle, pixels.ctypes.data, len(pixels), size, logits.ctypes.data, packed.classes
            )
        return logits

    def close(self) -> None:
        """End the threads and free the memory, after a call that is under way; a second time does nothing."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle:
                self._library.encoder_close(handle)


def _library() -> ctypes.CDLL:
    obstacle = kernels_obstacle()
    if obstacle is not None:
        raise DependencyError(f"INT8 kernels can't run here: {obstacle[0]}", hint=obstacle[1])
    found = util.find_spec("vitdeploy.runtime._kernels")
    assert found is not None and found.origin is not None
    try:
        library = ctypes.CDLL(found.origin)
    except OSError as error:  # it was compiled on another system
        raise DependencyError(
            f"the INT8 kernels do not load: {error}",
            hint="install vitdeploy here again, from its source, and they are compiled for this system",
        ) from error
    library.encoder_open.restype = _Pointer
    library.encoder_open.argtypes = (*[_Pointer] * 5, ctypes.c_int)
    library.encoder_run.restype = None
    library.encoder_run.argtypes = (_Pointer, _Pointer, ctypes.c_int, ctypes.c_size_t, _Pointer, ctypes.c_size_t)
    library.encoder_close.restype = None
    library.encoder_close.argtypes = (_Pointer,)
    return library
