"""The layout for every target: rows of interleaved channels, (batch, height, width * 3) in float32.

TensorRT takes no operation on uint8 but the cast, so the whole image is cast first. No large array is transposed: along
the width each channel of an output sees its own channel of the inputs, by weights that are zero for the other two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vitdeploy.compiler.preprocessing.bands import LOW_UNITS, Band
from vitdeploy.compiler.preprocessing.tape import Tape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CHANNELS", "for_interleaved", "prepare", "scaled", "two_passes"]

CHANNELS = 3
_FLOAT = 1  # ONNX's number of the type


def prepare(tape: Tape, image: ir.Value) -> ir.Value:
    """uint8 (batch, height, width, 3) -> what `two_passes` takes."""
    return tape.Reshape(tape.Cast(image, to=_FLOAT), tape.ints(0, 0, -1))


def two_passes(
    tape: Tape,
    pixels: ir.Value,
    rows: Band,
    columns: Band,
    *,
    rows_first: bool,
    clip: bool,
    products: Callable[[Tape, ir.Value, Band], ir.Value] | None = None,
) -> ir.Value:
    """float32 (batch, 3, rows.count, columns.count): whole levels, rounded after each pass and clipped if asked.

    `products` multiplies the width's windows, as `_products` does.
    """
    products = products or _products
    if rows_first:
        made = _along_width(tape, _along_height(tape, pixels, rows, clip), columns, clip, products)
    else:
        made = _along_height(tape, _along_width(tape, pixels, columns, clip, products), rows, clip)
    made = tape.Reshape(made, tape.ints(0, rows.count, columns.count, CHANNELS))
    return tape.Transpose(made, perm=[0, 3, 1, 2])


def scaled(tape: Tape, pixels: ir.Value, factor: npt.NDArray[np.float32], offset: npt.NDArray[np.float32]) -> ir.Value:
    """pixels * factor + offset, a channel each; float32 (batch, 3, height, width)."""
    shape = (CHANNELS, 1, 1)
    product = tape.Mul(pixels, tape.constant(factor.reshape(shape), "factor"))
    return tape.Add(product, tape.constant(offset.reshape(shape), "offset"))


def _products(tape: Tape, pixels: ir.Value, band: Band) -> ir.Value:
    """Rows of columns * channels -> (images, rows, blocks * 2 * block * channels), a product a block."""
    weights = for_interleaved(tape, band)
    channels = tape.ints(CHANNELS)
    first = tape.Mul(band.starts, channels)
    begins = tape.split(first, band.blocks, 0)
    ends = tape.split(tape.Add(first, tape.Mul(band.length, channels)), band.blocks, 0)
    products = [
        tape.MatMul(tape.Slice(pixels, begin, end, tape.ints(2)), weight)
        for begin, end, weight in zip(begins, ends, tape.split(weights, band.blocks, 0), strict=True)
    ]
    return tape.Concat(*products, axis=2) if len(products) > 1 else products[0]


def _along_width(
    tape: Tape,
    pixels: ir.Value,
    band: Band,
    clip: bool,
    products: Callable[[Tape, ir.Value, Band], ir.Value],
) -> ir.Value:
    """Rows of columns * channels -> rows of band.count * channels."""
    # (images, rows, blocks * 2 * block * channels) -> twice (images, rows, blocks, 1, block * channels)
    joined = tape.Reshape(products(tape, pixels, band), tape.ints(0, 0, band.blocks, 2, band.block * CHANNELS))
    # without the dimension of one: ONNX Runtime's broadcasting takes five times as long with it
    flat = tape.ints(0, 0, band.padded * CHANNELS)
    high, low = (tape.Reshape(part, flat) for part in tape.split(joined, 2, 3))
    levels = _levels(tape, high, low, clip)
    if band.padded != band.count:
        levels = tape.Slice(levels, tape.ints(0), tape.ints(band.count * CHANNELS), tape.ints(2))
    return levels


def for_interleaved(tape: Tape, band: Band) -> ir.Value:
    """Weights for interleaved channels, (blocks, length * channels, 2 * block * channels).

    A product with ones and zeros spreads them: (blocks, length, made) -> (blocks, length, channels * made * channels).
    """
    made = 2 * band.block
    spread = np.einsum("bd,ce->bcde", np.eye(made), np.eye(CHANNELS)).reshape(made, -1)
    weights = tape.Transpose(band.weights, perm=[0, 2, 1])
    weights = tape.MatMul(weights, tape.constant(spread.astype(np.float32), "spread"))
    return tape.Reshape(weights, tape.ints(band.blocks, -1, made * CHANNELS))


def _along_height(tape: Tape, pixels: ir.Value, band: Band, clip: bool) -> ir.Value:
    """Height rows -> band.count rows."""
    length = tape.Squeeze(band.length, tape.ints(0))
    offsets = tape.Range(tape.scalar(0, np.int64), length, tape.scalar(1, np.int64))
    index = tape.Add(tape.Unsqueeze(band.starts, tape.ints(1)), offsets)  # (blocks, length)
    windows = tape.Gather(pixels, index, axis=1)  # (images, blocks, length, columns * channels)
    # twice (images, blocks, block, columns * channels) -> (images, blocks * block, columns * channels)
    high, low = tape.split(tape.MatMul(band.weights, windows), 2, 2)
    levels = _levels(tape, high, low, clip)
    columns = tape.Slice(tape.Shape(pixels), tape.ints(2), tape.ints(3))
    levels = tape.Reshape(levels, tape.Concat(tape.ints(0, band.padded), columns, axis=0))
    if band.padded != band.count:
        levels = tape.Slice(levels, tape.ints(0), tape.ints(band.count), tape.ints(1))
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
