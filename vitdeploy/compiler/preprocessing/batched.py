"""The layout for graphs that engines alone are built from: the axis of each pass leads, so that a pass is one product.

    (first, second * 3) -> (made, second * 3) -> (second, made * 3) -> (made, made * 3)

TensorRT makes a kernel of each slice of `interleaved`, and TensorRT-RTX stores each of them with its text; and a
product along the trailing axis takes three times the multiplications. On CPUs the transpositions cost more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.compiler.preprocessing.interleaved import along_height, scaled
from vitdeploy.compiler.preprocessing.resize_matrices import ResizeMatrix
from vitdeploy.compiler.preprocessing.tape import Tape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["scaled", "two_passes"]


def two_passes(tape: Tape, pixels: ir.Value, first: ResizeMatrix, second: ResizeMatrix, *, clip: bool) -> ir.Value:
    """float32 (batch, first's inputs, second's * 3) -> (batch, second.count, first.count * 3); see `interleaved`."""
    made = along_height(tape, pixels, first, clip)
    made = tape.Transpose(tape.Reshape(made, tape.ints(0, first.count, -1, 3)), perm=[0, 2, 1, 3])
    return along_height(tape, tape.Reshape(made, tape.ints(0, 0, first.count * 3)), second, clip)
