"""Weights as they will be read: in memory of their own, rows one behind the other.

An exported graph's weights are views of the module's, which are mapped from the checkpoint's file, and a weight whose
transposition was folded is a view across its rows. Each is copied here once, so that the check, which hands them to
ONNX Runtime, and the file, which is written from them, need no copy of theirs, and the mapped file can be let go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["lay_out"]

_TILE = 128  # rows and columns that are copied at once: both sides of a transposition fit into a core's cache


def lay_out(model: ir.Model) -> None:
    """Copy every weight of `model`, in place; call it when the module is not needed any more."""
    import onnx_ir as ir

    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            value.const_value = ir.tensor(_copied(value.const_value.numpy()), name=name)


def _copied(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array in rows; tile by tile where it lies in columns, four times as fast as row by row."""
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.array(array, order="C")
    made = np.empty(array.shape, array.dtype)
    for row in range(0, array.shape[0], _TILE):
        for column in range(0, array.shape[1], _TILE):
            tile = np.s_[row : row + _TILE, column : column + _TILE]
            made[tile] = array[tile]
    return made
