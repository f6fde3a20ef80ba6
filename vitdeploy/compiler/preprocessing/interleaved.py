"""The layout for every target: rows of interleaved channels, (batch, height, width * 3) in float32.

TensorRT takes no operation on uint8 but the cast, so the whole image is cast first. Along the width each channel of an
output sees its own channel of the inputs, by weights that are zero for the other two.

Which axis is resized first depends on the image's size. In TensorRT an `If` would cost a copy to the host and a jump in
the middle of each call, and CUDA graphs with them; both orders cost twice the products. Here the image is turned in the
one case, by a transposition that its shape alone decides: (height, width) transposed is (width, height), and the same
pixels as (1, height * width) transposed are as they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vitdeploy.compiler.preprocessing.resize_matrices import LOW_UNITS, ResizeMatrix
from vitdeploy.compiler.preprocessing.tape import Tape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["along_height", "laid", "scaled", "turned_back", "two_passes"]

_CHANNELS = 3
_FLOAT = 1  # ONNX's number of the type


def laid(tape: Tape, image: ir.Value, turn: bool | ir.Value) -> ir.Value:
    """uint8 (batch, height, width, 3) -> float32 (batch, height, width * 3), or (batch, width, height * 3) if `turn`,
    which is known or bool (1,)."""
    pixels = tape.Cast(image, to=_FLOAT)
    if isinstance(turn, bool):
        pixels = tape.Transpose(pixels, perm=[0, 2, 1, 3]) if turn else pixels
        return tape.Reshape(pixels, tape.ints(0, 0, -1))
    height, width = (tape.Shape(image, start=axis, end=axis + 1) for axis in (1, 2))
    across = tape.Where(turn, height, tape.ints(1))
    pixels = tape.Reshape(pixels, tape.Concat(tape.ints(0), across, tape.ints(-1, _CHANNELS), axis=0))
    pixels = tape.Transpose(pixels, perm=[0, 2, 1, 3])
    leading = tape.Where(turn, width, height)
    return tape.Reshape(pixels, tape.Concat(tape.ints(0), leading, tape.ints(-1), axis=0))


def turned_back(tape: Tape, made: ir.Value, kept: tuple[int, int], turned: bool | ir.Value) -> ir.Value:
    """float32 (batch, height, width * 3), or (batch, width, height * 3) if `turned` -> (batch, 3, *kept).

    Where `turned` is a value, height and width are both the larger of `kept`.
    """
    if turned is False:
        return tape.Transpose(tape.Reshape(made, tape.ints(0, *kept, _CHANNELS)), perm=[0, 3, 1, 2])
    if turned is True:
        return tape.Transpose(tape.Reshape(made, tape.ints(0, *kept[::-1], _CHANNELS)), perm=[0, 3, 2, 1])
    size = max(kept)
    across = tape.Where(turned, tape.ints(size), tape.ints(1))
    made = tape.Reshape(made, tape.Concat(tape.ints(0), across, tape.ints(-1, _CHANNELS), axis=0))
    made = tape.Reshape(tape.Transpose(made, perm=[0, 3, 2, 1]), tape.ints(0, _CHANNELS, size, size))
    if kept != (size, size):
        made = tape.Slice(made, tape.ints(0, 0), tape.ints(*kept), tape.ints(2, 3))
    return made


def two_passes(
    tape: Tape, pixels: ir.Value, rows: ResizeMatrix, columns: ResizeMatrix, *, rows_first: bool = False, clip: bool
) -> ir.Value:
    """float32 (batch, rows' inputs, columns' * 3) -> (batch, rows.count, columns.count * 3).

    Whole levels, rounded after each pass and clipped if asked.
    """
    if rows_first:
        return _along_width(tape, along_height(tape, pixels, rows, clip), columns, clip)
    return along_height(tape, _along_width(tape, pixels, columns, clip), rows, clip)


def scaled(tape: Tape, pixels: ir.Value, factor: npt.NDArray[np.float32], offset: npt.NDArray[np.float32]) -> ir.Value:
    """pixels * factor + offset, a channel each; float32 (batch, 3, height, width)."""
    shape = (_CHANNELS, 1, 1)
    product = tape.Mul(pixels, tape.constant(factor.reshape(shape), "factor"))
    return tape.Add(product, tape.constant(offset.reshape(shape), "offset"))


def _products(tape: Tape, pixels: ir.Value, matrix: ResizeMatrix) -> ir.Value:
    """Rows of columns * channels -> (images, rows, blocks * 2 * block * channels), a product a block."""
    weights = _for_interleaved(tape, matrix)
    channels = tape.ints(_CHANNELS)
    first = tape.Mul(matrix.starts, channels)
    begins = tape.split(first, matrix.blocks, 0)
    ends = tape.split(tape.Add(first, tape.Mul(matrix.length, channels)), matrix.blocks, 0)
    products = [
        tape.MatMul(tape.Slice(pixels, begin, end, tape.ints(2)), weight)
        for begin, end, weight in zip(begins, ends, tape.split(weights, matrix.blocks, 0), strict=True)
    ]
    return tape.Concat(*products, axis=2) if len(products) > 1 else products[0]


def _along_width(tape: Tape, pixels: ir.Value, matrix: ResizeMatrix, clip: bool) -> ir.Value:
    """Rows of columns * channels -> rows of matrix.count * channels."""
    # (images, rows, blocks * 2 * block * channels) -> twice (images, rows, blocks, 1, block * channels)
    joined = tape.Reshape(_products(tape, pixels, matrix), tape.ints(0, 0, matrix.blocks, 2, matrix.block * _CHANNELS))
    # without the dimension of one: ONNX Runtime's broadcasting takes five times as long with it
    flat = tape.ints(0, 0, matrix.padded * _CHANNELS)
    high, low = (tape.Reshape(part, flat) for part in tape.split(joined, 2, 3))
    levels = _levels(tape, high, low, clip)
    if matrix.padded != matrix.count:
        levels = tape.Slice(levels, tape.ints(0), tape.ints(matrix.count * _CHANNELS), tape.ints(2))
    return levels


def _for_interleaved(tape: Tape, matrix: ResizeMatrix) -> ir.Value:
    """Weights for interleaved channels, (blocks, length * channels, 2 * block * channels).

    A product with ones and zeros spreads them: (blocks, length, made) -> (blocks, length, channels * made * channels).
    """
    made = 2 * matrix.block
    spread = np.einsum("bd,ce->bcde", np.eye(made), np.eye(_CHANNELS)).reshape(made, -1)
    weights = tape.Transpose(matrix.weights, perm=[0, 2, 1])
    weights = tape.MatMul(weights, tape.constant(spread.astype(np.float32), "spread"))
    return tape.Reshape(weights, tape.ints(matrix.blocks, -1, made * _CHANNELS))


def along_height(tape: Tape, pixels: ir.Value, matrix: ResizeMatrix, clip: bool) -> ir.Value:
    """Height rows -> matrix.count rows."""
    length = tape.Squeeze(matrix.length, tape.ints(0))
    offsets = tape.Range(tape.scalar(0, np.int64), length, tape.scalar(1, np.int64))
    index = tape.Add(tape.Unsqueeze(matrix.starts, tape.ints(1)), offsets)  # (blocks, length)
    windows = tape.Gather(pixels, index, axis=1)  # (images, blocks, length, columns * channels)
    # twice (images, blocks, block, columns * channels) -> (images, blocks * block, columns * channels)
    high, low = tape.split(tape.MatMul(matrix.weights, windows), 2, 2)
    levels = _levels(tape, high, low, clip)
    columns = tape.Slice(tape.Shape(pixels), tape.ints(2), tape.ints(3))
    levels = tape.Reshape(levels, tape.Concat(tape.ints(0, matrix.padded), columns, axis=0))
    if matrix.padded != matrix.count:
        levels = tape.Slice(levels, tape.ints(0), tape.ints(matrix.count), tape.ints(1))
    return levels


def _levels(tape: Tape, high: ir.Value, low: ir.Value, clip: bool) -> ir.Value:
    """Sums of pixels times high and low parts of weights -> whole levels, halves up, in 0..255 if asked.

    That is (2048 high + low + 2**21) >> 22, where `low` comes divided by 2048.
    """
    total = tape.Mul(tape.Add(high, tape.Floor(low)), tape.scalar(1 / LOW_UNITS, np.float32))
    levels = tape.Floor(tape.Add(total, tape.scalar(0.5, np.float32)))
    if not clip:
        return levels
    return tape.Clip(levels, tape.scalar(0, np.float32), tape.scalar(255, np.float32))
