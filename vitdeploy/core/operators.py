"""ONNX operators that compute nothing."""

from __future__ import annotations

__all__ = ["MOVES", "REORDERS"]

REORDERS = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Give the numbers that they got, all of them, in another order or shape."""
MOVES = (*REORDERS, "Slice", "Gather", "Split", "Concat", "Expand")
"""Give numbers that they got, some left out or repeated."""
