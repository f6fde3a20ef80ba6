"""A model's constants as our own kernels read them, and the kernels with a model.

What they compute and how is said in steps.h. How constants lie in memory depends on the instruction set, whose tile
says it: a product's weights, (inputs, outputs), lie as (outputs / columns, inputs / group, columns, group), since an
instruction takes a group of inputs for each of a vector's columns. Widths are padded to whole tiles and heads to whole
vectors, with zeros, which add nothing to any sum.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.native import structures
from vitdeploy.backends.native.library import InstructionSet, chosen_isa, open_library
from vitdeploy.backends.native.plain_vit import Layer, Norm, PlainVit, Product
from vitdeploy.core.errors import ModelError, OutOfMemoryError, RunnerClosedError
from vitdeploy.core.machine import physical_cores

__all__ = ["MAX_THREADS", "Encoder", "Packed"]

MAX_THREADS = 16  # of a call, where none are asked for: with more, a thread has too little to do in a step
_CHUNK = 1 << 24  # bytes of constants in one piece of memory: NumPy asks for huge pages for pieces of this size
_Array = npt.NDArray[Any]


class Packed:
    """The constants of a model as the kernels' structures, and the memory that these point to.

    `release` is called with the weight of each product once nothing more is read of it.
    """

    def __init__(self, form: PlainVit, tile: Any, release: Callable[[_Array], None] | None = None) -> None:
        width, self._heads, self._tile = len(form.kernel), form.heads, tile
        self._chunks: list[_Array] = []
        self._used = _CHUNK
        head = form.layers[0].query.weight.shape[1] // form.heads
        self._head, self._wide_head = head, _up(head, tile.lanes)
        layers = []
        left = Counter(product.weight.ctypes.data for layer in form.layers for product in layer.products)
        for layer in form.layers:
            layers.append(self._layer(layer))
            for product in layer.products:
                left[product.weight.ctypes.data] -= 1  # equal weights may be one
                if release is not None and not left[product.weight.ctypes.data]:
                    release(product.weight)
        self.layers = (structures.Layer * len(layers))(*layers)
        self.shape = structures.Shape(width, layers[0].fc1.outputs, form.heads, self._wide_head, len(layers), form.read)
        self.patches = self._patches(form)
        self.norm, self.classifier = structures.Norm(), structures.Classifier()
        self.made: tuple[int, ...] = (form.read, width)
        if form.classifier is not None:
            self.made = (len(form.classifier.weight),)
            self.norm = self._norm(form.classifier.norm)
            weights = self._floats(_padded(form.classifier.weight, 1, tile.columns))
            self.classifier = structures.Classifier(*self.made, weights, self._floats(form.classifier.bias))
        self.image = form.image

    def _keep(self, array: _Array) -> int:
        """The address of a copy that is aligned for vectors."""
        line = self._tile.alignment
        size = _up(array.nbytes, line)
        if self._used + size > _CHUNK:
            self._chunks.append(np.empty(max(size, _CHUNK) + line, np.uint8))
            self._used = 0
        start = -self._chunks[-1].ctypes.data % line + self._used
        self._chunks[-1][start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._used += size
        return int(self._chunks[-1].ctypes.data + start)

    def _floats(self, array: _Array) -> int:
        return self._keep(array.astype(np.float32, copy=False))

    def _linear(self, *products: Product) -> Any:
        """Products of one input side by side, each padded."""
        first, columns, group = products[0], self._tile.columns, self._tile.group
        weight, weight_scale, bias = (
            np.concatenate([_padded(getattr(each, name), -1, columns) for each in products], axis=-1)
            for name in ("weight", "weight_scale", "bias")
        )
        weight = _padded(weight, 0, columns)
        inputs, outputs = weight.shape
        if first.exact:
            packed = weight.reshape(inputs, outputs // columns, columns).transpose(1, 0, 2)
            return structures.Linear(inputs, outputs, bias=self._floats(bias), exact=self._floats(packed))
        scale = weight_scale * first.scale
        sums = weight.sum(axis=0, dtype=np.int32)
        bias = bias - scale * first.zero * sums  # (x - z) W = x W - z sum(W)
        packed = weight.reshape(inputs // group, group, outputs // columns, columns).transpose(2, 0, 3, 1)
        floats = self._floats(scale), self._floats(bias)
        kept = self._keep(packed), self._keep(sums)
        return structures.Linear(inputs, outputs, *kept, *floats, 1 / first.scale, first.zero)

    def _norm(self, norm: Norm) -> Any:
        weight, bias = (self._floats(_padded(each, 0, self._tile.lanes)) for each in (norm.weight, norm.bias))
        return structures.Norm(weight, bias, norm.epsilon)

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
        linears[-1].steep, linears[-1].cubic = layer.curve or (0.0, 0.0)
        factors = structures.Factors(*astuple(layer.factors)) if layer.factors else structures.Factors()
        gate = self._linear(layer.gate) if layer.gate else structures.Linear()
        return structures.Layer(self._norm(layer.before), self._norm(layer.after), *linears, factors, gate)

    def _wide(self, array: _Array, axis: int) -> _Array:
        """Each head along an axis padded to whole vectors."""
        axis %= array.ndim
        before, after = array.shape[:axis], array.shape[axis + 1 :]
        heads = _padded(array.reshape(*before, self._heads, self._head, *after), axis + 1, self._tile.lanes)
        return heads.reshape(*before, self._heads * self._wide_head, *after)

    def _patches(self, form: PlainVit) -> Any:
        width, channels, side_y, side_x = form.kernel.shape
        down, across = form.image[1] // side_y, form.image[2] // side_x
        first = len(form.positions) - down * across
        positions = form.positions.copy()
        positions[first:] += form.kernel_bias
        columns = self._tile.columns
        kernel = _padded(form.kernel.reshape(width, -1), 0, columns)
        # (width, inputs) -> (width / columns, inputs, columns)
        packed = kernel.reshape(len(kernel) // columns, columns, -1).transpose(0, 2, 1)
        kept = self._floats(packed), self._floats(_padded(positions, 1, columns))
        norm = self._norm(form.norm) if form.norm else structures.Norm()
        return structures.Patches(channels, side_y, side_x, down, across, first, *kept, norm)


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
        isa: what to compute with; None: the fastest of this processor, or what VITDEPLOY_ISA names.
        release: called with each weight of the layers once it was copied; the form may be of no use then.

    `made` is what an image gives: (classes,), or (tokens, width) of what the layers make.

    Raises:
        DependencyError: vitdeploy was installed without the kernels, or this processor can't run them.
        OutOfMemoryError: there is no memory for it, or no thread.
    """

    def __init__(
        self,
        form: PlainVit,
        threads: int | None = None,
        isa: InstructionSet | None = None,
        release: Callable[[_Array], None] | None = None,
    ) -> None:
        isa = isa or chosen_isa()
        self.instruction_set = isa.name
        self._library = open_library()
        self._packed = packed = Packed(form, isa.tile, release)
        self.made, self.image = packed.made, packed.image
        self._lock, self._process = threading.Lock(), os.getpid()
        parts = (packed.norm, packed.patches, packed.classifier)
        self._handle = self._library.encoder_open(
            isa.address,
            ctypes.byref(packed.shape),
            packed.layers,
            *map(ctypes.byref, parts),
            threads or min(physical_cores(), MAX_THREADS),
        )
        if not self._handle:
            raise OutOfMemoryError(
                "not enough memory or threads for the kernels", hint="use fewer threads, or another backend"
            )

    def run(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(images, channels, height, width) float32 -> (images, *made), in passes of a bounded size.

        Raises:
            ModelError: they have another shape or type.
            RunnerClosedError: it was closed, or opened before the process forked.
        """
        packed = self._packed
        if pixels.shape[1:] != packed.image or pixels.dtype != np.float32:
            raise ModelError(
                f"the preprocessing makes {pixels.dtype} {pixels.shape[1:]}, the model takes float32 {packed.image}",
                hint="export the bundle again",
            )
        if self._process != os.getpid():
            raise RunnerClosedError(
                "the kernels were opened before the process forked, and their threads are not here",
                hint="load the bundle in each worker process, after the fork",
            )
        pixels = np.ascontiguousarray(pixels)
        made = np.empty((len(pixels), *packed.made), np.float32)
        size = int(np.prod(packed.image))
        with self._lock:
            if not self._handle:
                raise RunnerClosedError("the kernels are closed", hint="use them inside their `with` block")
            self._library.encoder_run(
                self._handle, pixels.ctypes.data, len(pixels), size, made.ctypes.data, math.prod(packed.made)
            )
        return made

    def close(self) -> None:
        """End the threads and free the memory, after a call that is under way; a second time does nothing.

        Nor does it in a fork, where a lock that another thread held is held for ever.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            handle, self._handle = self._handle, None
            if handle:
                self._library.encoder_close(handle)
