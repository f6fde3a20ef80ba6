"""The layout for CPUs: between the passes pixels stay bytes, and the axis of a pass is always the leading one.

So a block's window is one run of bytes in memory; it is cast, multiplied and rounded to bytes again while it lies in
the cache, and what a pass leaves is a quarter of what float32 would be. The transposes between the passes are of
two dimensions, which ONNX Runtime does by vector instructions:

    (batch * height, width * 3) -> (width * 3, batch * height), the same bytes as (width, 3 * batch * height)

TensorRT refuses this layout: it takes no operation on uint8 but the cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.preprocessing.bands import LOW_UNITS, Band
from vitdeploy.compiler.preprocessing.tape import Tape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["prepare", "two_passes"]

_CHANNELS = 3
_FLOAT = 1  # ONNX's number of the type

_TOGETHER = (2, 14)
"""At most so many blocks are one product, in the first pass and in the second: what still lies in the cache, with few
nodes. Measured best in ONNX Runtime."""

_HALVES_UP = LOW_UNITS * (1 - 2.0**-20)
"""QuantizeLinear rounds halves to even. Divided by a little less than 2048, a half lies above the half by 2**-20 of
itself, and the last sum below a half, which is 2**-11 less, still below."""


def prepare(tape: Tape, image: ir.Value) -> ir.Value:
    """uint8 (batch, height, width, 3) -> what `two_passes` takes."""
    return image


def two_passes(tape: Tape, pixels: ir.Value, rows: Band, columns: Band, *, rows_first: bool, clip: bool) -> ir.Value:
    """float32 (batch, 3, rows.count, columns.count): whole levels, rounded to bytes after each pass."""
    del clip  # bytes clip themselves
    height, width = (tape.Shape(pixels, start=axis, end=axis + 1) for axis in (1, 2))
    if rows_first:
        lines = _leading(tape, tape.Transpose(pixels, perm=[1, 0, 2, 3]), height)  # (height, batch * width * 3)
        made = _pass(tape, lines, rows, _TOGETHER[0])
        # (h * batch, width * 3) -> (width * 3, h * batch), which is (width, 3 * h * batch)
        made = tape.Reshape(made, tape.Concat(tape.ints(-1), tape.Mul(width, tape.ints(_CHANNELS)), axis=0))
        made = _pass(tape, _leading(tape, tape.Transpose(made, perm=[1, 0]), width), columns, _TOGETHER[1])
        # (w, 3 * h * batch) -> (3, h, batch, w) -> (batch, 3, h, w)
        made = tape.Reshape(tape.Transpose(made, perm=[1, 0]), tape.ints(_CHANNELS, rows.count, -1, columns.count))
        return tape.Cast(tape.Transpose(made, perm=[2, 0, 1, 3]), to=_FLOAT)
    made = tape.Transpose(tape.Flatten(pixels, axis=2), perm=[1, 0])
    made = _pass(tape, _leading(tape, made, width), columns, _TOGETHER[0])  # (w, 3 * batch * height)
    made = tape.Reshape(made, tape.Concat(tape.ints(-1), height, axis=0))
    made = _pass(tape, tape.Transpose(made, perm=[1, 0]), rows, _TOGETHER[1])  # (h, w * 3 * batch)
    # (h * w, 3 * batch) -> (3, batch, h, w) -> (batch, 3, h, w)
    made = tape.Transpose(tape.Reshape(made, tape.ints(rows.count * columns.count, -1)), perm=[1, 0])
    made = tape.Reshape(made, tape.ints(_CHANNELS, -1, rows.count, columns.count))
    return tape.Cast(tape.Transpose(made, perm=[1, 0, 2, 3]), to=_FLOAT)


def _leading(tape: Tape, pixels: ir.Value, size: ir.Value) -> ir.Value:
    """(size, all the rest)."""
    return tape.Reshape(pixels, tape.Concat(size, tape.ints(-1), axis=0))


def _pass(tape: Tape, lines: ir.Value, band: Band, at_most: int) -> ir.Value:
    """Resize the leading axis, uint8 (inputs, anything) -> uint8 (band.count, anything), some blocks at once."""
    together = max(size for size in range(1, min(at_most, band.blocks) + 1) if band.blocks % size == 0)
    groups = band.blocks // together
    offsets = tape.Range(tape.scalar(0, np.int64), tape.Squeeze(band.length, tape.ints(0)), tape.scalar(1, np.int64))
    index = tape.Add(tape.Unsqueeze(band.starts, tape.ints(1)), offsets)  # (blocks, length)
    made = []
    for taken, weights in zip(tape.split(index, groups, 0), tape.split(band.weights, groups, 0), strict=True):
        windows = tape.Cast(tape.Gather(lines, taken, axis=0), to=_FLOAT)  # (together, length, anything)
        high, low = tape.split(tape.MatMul(weights, windows), 2, 1)
        total = tape.Add(high, tape.Floor(low))
        scale, zero = tape.scalar(_HALVES_UP, np.float32), tape.scalar(0, np.uint8)
        made.append(tape.QuantizeLinear(total, scale, zero))  # (together, block, anything)
    joined = tape.Concat(*made, axis=0) if groups > 1 else made[0]
    anything = tape.Shape(lines, start=1)
    joined = tape.Reshape(joined, tape.Concat(tape.ints(band.padded), anything, axis=0))
    if band.padded != band.count:
        joined = tape.Slice(joined, tape.ints(0), tape.ints(band.count), tape.ints(0))
    return joined
