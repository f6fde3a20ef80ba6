"""The arithmetic of INT8: scales and rounding, as ONNX's QuantizeLinear and DequantizeLinear define them."""

from __future__ import annotations

import numpy as np

__all__ = ["LEVELS", "activation_scale", "fake_quantize", "weight_scales"]

LEVELS = 127  # symmetric: the largest magnitude is 127 steps, zero is exact
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)  # scales stay normal numbers in float16


def weight_scales(weight: np.ndarray) -> np.ndarray:
    """Sw of a weight (channels in, channels out): one a column, a float16 number so that both forms share it."""
    scales = np.maximum(np.abs(weight).max(axis=0) / LEVELS, _SMALLEST_SCALE)
    # Rounding to float16 may go down by 2**-11; one step up keeps the largest weight inside 127.5 levels anyway.
    shared: np.ndarray = scales.astype(np.float16).astype(np.float32)
    return shared


def activation_scale(value: float) -> float:
    """Sx as a float16 number: the FP16 form holds its scales in the type of the graph around them."""
    return float(np.float16(min(max(value, _SMALLEST_SCALE), float(np.finfo(np.float16).max))))


def fake_quantize(values: np.ndarray, scale: np.ndarray | float, shift: int = 0) -> np.ndarray:
    """What Q and DQ make of values: rounded half to even and clipped to -128 .. 127 around the shift, as ONNX says."""
    result: np.ndarray = np.clip(np.rint(values / scale), shift - LEVELS - 1, shift + LEVELS) * scale
    return result
