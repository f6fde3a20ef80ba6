"""The layout for CPUs: between the passes pixels stay bytes, and the axis of a pass is always the leading one.

So a block's window is one run of bytes in memory; it is cast, multiplied and rounded to bytes again while it lies in
the cache, and what a pass leaves is a quarter of what float32 would be. The transposes between the passes are of
two dimensions, which ONNX Runtime does by vector instructions:

    (batch * height, width * 3) -> (width * 3, batch * height), the same bytes as (width, 3 * batch * height)

TensorRT refuses this layout: it takes no operation on uint8 but the cast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vitdeploy.compiler.preprocessing.resize_matrices import LOW_UNITS, ResizeMatrix
from vitdeploy.compiler.preprocessing.tape import Tape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["scaled", "two_passes"]

_CHANNELS = 3
_FLOAT = 1  # ONNX's number of the type

_TOGETHER = (2, 7)
"""At most so many blocks are one product, in the first pass and in the second: what still lies in the cache, with few
nodes. Measured best in ONNX Runtime."""

_PARTS = 7
"""At most so many parts of the width are transposed for themselves: what is written then lies in the cache."""

_HALVES_UP = LOW_UNITS * (1 - 2.0**-20)
"""QuantizeLinear rounds halves to even. Divided by a little less than 2048, a half lies above the half by 2**-20 of
itself, and the last sum below a half, which is 2**-11 less, still below."""


def two_passes(tape: Tape, image: ir.Value, rows: ResizeMatrix, columns: ResizeMatrix, *, rows_first: bool) -> ir.Value:
    """uint8 (batch, height, width, 3) -> float32 (batch, 3, rows.count, columns.count): whole levels, rounded to bytes,
    which clip themselves, after each pass."""
    height, width = (tape.Shape(image, start=axis, end=axis + 1) for axis in (1, 2))
    if rows_first:
        lines = tape.Transpose(image, perm=[1, 0, 2, 3])
        lines = tape.Reshape(lines, tape.Concat(height, tape.ints(-1), axis=0))  # (height, batch * width * 3)
        made = _joined(tape, _products(tape, lines, rows, _TOGETHER[0]), rows)
        made = tape.Reshape(made, tape.Concat(tape.ints(-1), tape.Mul(width, tape.ints(_CHANNELS)), axis=0))
        made = _across(tape, made, columns, _TOGETHER[1])  # (w, 3 * h * batch)
        # (w, 3 * h * batch) -> (3, h, batch, w) -> (batch, 3, h, w)
        made = tape.Reshape(tape.Transpose(made, perm=[1, 0]), tape.ints(_CHANNELS, rows.count, -1, columns.count))
        return tape.Cast(tape.Transpose(made, perm=[2, 0, 1, 3]), to=_FLOAT)
    made = _across(tape, tape.Flatten(image, axis=2), columns, _TOGETHER[0])  # (w, 3 * batch * height)
    made = tape.Reshape(made, tape.Concat(tape.ints(-1), height, axis=0))
    made = tape.Transpose(made, perm=[1, 0])
    made = _joined(tape, _products(tape, made, rows, _TOGETHER[1]), rows)  # (h, w * 3 * batch)
    # (h * w, 3 * batch) -> (3, batch, h, w) -> (batch, 3, h, w)
    made = tape.Transpose(tape.Reshape(made, tape.ints(rows.count * columns.count, -1)), perm=[1, 0])
    made = tape.Reshape(made, tape.ints(_CHANNELS, -1, rows.count, columns.count))
    return tape.Cast(tape.Transpose(made, perm=[1, 0, 2, 3]), to=_FLOAT)


def scaled(tape: Tape, pixels: ir.Value, factor: npt.NDArray[np.float32], offset: npt.NDArray[np.float32]) -> ir.Value:
    """pixels * factor + offset, a channel each; float32 (batch, 3, height, width).

    With mean 0 and variance 1 that is a BatchNormalization, which takes one turn through memory, not two.
    """
    mean, variance = np.zeros_like(factor), np.ones_like(factor)
    constants = {"factor": factor, "offset": offset, "mean": mean, "variance": variance}
    values = (tape.constant(numbers, name) for name, numbers in constants.items())
    return tape.BatchNormalization(pixels, *values, epsilon=0.0)


def _across(tape: Tape, lines: ir.Value, matrix: ResizeMatrix, at_most: int) -> ir.Value:
    """Resize the width, uint8 (lines, width * 3) -> uint8 (matrix.count, 3 * lines), at most so many blocks a product.

    Each of a few parts of the width is cut out and transposed for itself.
    """
    turned = tape.Concat(tape.ints(-1), tape.Mul(tape.Shape(lines, end=1), tape.ints(_CHANNELS)), axis=0)
    made = []
    for begin, end, part in _parts(tape, matrix):
        cut = tape.Slice(lines, begin, end, tape.ints(1))
        inputs = tape.Reshape(tape.Transpose(cut, perm=[1, 0]), turned)  # (inputs, 3 * lines)
        made += _products(tape, inputs, part, at_most)
    return _joined(tape, made, matrix)


def _parts(tape: Tape, matrix: ResizeMatrix) -> Iterator[tuple[ir.Value, ir.Value, ResizeMatrix]]:
    """First byte, end, and matrix within these inputs, of parts of equally many blocks; counted along (width * 3)."""
    number = _divisor(matrix.blocks, _PARTS)
    each = matrix.blocks // number
    if matrix.starts.const_value is not None:
        starts, length = (value.const_value.numpy() for value in (matrix.starts, matrix.length))
        starts = starts.reshape(number, each)
        # the least and the most, since the window of a block off the image lies anywhere
        begins, ends = starts.min(axis=1), starts.max(axis=1) + length
        within = [tape.constant(own, "starts") for own in starts - begins[:, np.newaxis]]
        cuts = [[tape.ints(_CHANNELS * int(place)) for place in places] for places in (begins, ends)]
    else:
        starts = tape.Reshape(matrix.starts, tape.ints(number, each))
        begins = tape.Slice(starts, tape.ints(0), tape.ints(1), tape.ints(1))
        ends = tape.Add(tape.Slice(starts, tape.ints(each - 1), tape.ints(each), tape.ints(1)), matrix.length)
        within = tape.split(tape.Reshape(tape.Sub(starts, begins), tape.ints(-1)), number, 0)
        places = tape.Reshape(tape.Mul(tape.Concat(begins, ends, axis=0), tape.ints(_CHANNELS)), tape.ints(-1))
        flat = tape.split(places, 2 * number, 0)
        cuts = [flat[:number], flat[number:]]
    for begin, end, own, weights in zip(*cuts, within, tape.split(matrix.weights, number, 0), strict=True):
        yield begin, end, replace(matrix, blocks=each, starts=own, weights=weights)


def _products(tape: Tape, lines: ir.Value, matrix: ResizeMatrix, at_most: int) -> list[ir.Value]:
    """Resize the leading axis, uint8 (inputs, anything) -> uint8 (blocks, block, anything), some blocks at once."""
    together = _divisor(matrix.blocks, at_most)
    groups = matrix.blocks // together
    offsets = tape.Range(tape.scalar(0, np.int64), tape.Squeeze(matrix.length, tape.ints(0)), tape.scalar(1, np.int64))
    index = tape.Add(tape.Unsqueeze(matrix.starts, tape.ints(1)), offsets)  # (blocks, length)
    made = []
    for taken, weights in zip(tape.split(index, groups, 0), tape.split(matrix.weights, groups, 0), strict=True):
        windows = tape.Cast(tape.Gather(lines, taken, axis=0), to=_FLOAT)  # (together, length, anything)
        high, low = tape.split(tape.MatMul(weights, windows), 2, 1)
        total = tape.Add(high, tape.Floor(low))
        scale, zero = tape.scalar(_HALVES_UP, np.float32), tape.scalar(0, np.uint8)
        made.append(tape.QuantizeLinear(total, scale, zero))  # (together, block, anything)
    return made


def _joined(tape: Tape, made: list[ir.Value], matrix: ResizeMatrix) -> ir.Value:
    """All blocks of a pass, uint8 (blocks, block, anything) -> (matrix.count, anything)."""
    joined = tape.Concat(*made, axis=0) if len(made) > 1 else made[0]
    joined = tape.Reshape(joined, tape.ints(matrix.padded, -1))
    if matrix.padded != matrix.count:
        joined = tape.Slice(joined, tape.ints(0), tape.ints(matrix.count), tape.ints(0))
    return joined


def _divisor(number: int, at_most: int) -> int:
    return max(size for size in range(1, min(at_most, number) + 1) if number % size == 0)
