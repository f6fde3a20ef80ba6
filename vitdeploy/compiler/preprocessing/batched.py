"""The layout for graphs that engines alone are built from: `interleaved`, with the width's pass as one product.

TensorRT makes a kernel of each slice of that pass, and TensorRT-RTX stores each of them with its text; one batched
product takes two. On CPUs its transposes cost more than the slices.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.preprocessing import interleaved
from vitdeploy.compiler.preprocessing.bands import Band
from vitdeploy.compiler.preprocessing.interleaved import CHANNELS, for_interleaved, prepare, scaled
from vitdeploy.compiler.preprocessing.tape import Tape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["prepare", "scaled", "two_passes"]


def _products(tape: Tape, pixels: ir.Value, band: Band) -> ir.Value:
    """Rows of columns * channels -> (images, rows, blocks, 2 * block * channels)."""
    channels = tape.ints(CHANNELS)
    length = tape.Squeeze(tape.Mul(band.length, channels), tape.ints(0))
    offsets = tape.Range(tape.scalar(0, np.int64), length, tape.scalar(1, np.int64))
    index = tape.Add(tape.Unsqueeze(tape.Mul(band.starts, channels), tape.ints(1)), offsets)  # (blocks, length)
    windows = tape.Transpose(tape.Gather(pixels, index, axis=2), perm=[0, 2, 1, 3])  # (images, blocks, rows, length)
    return tape.Transpose(tape.MatMul(windows, for_interleaved(tape, band)), perm=[0, 2, 1, 3])


two_passes = partial(interleaved.two_passes, products=_products)
