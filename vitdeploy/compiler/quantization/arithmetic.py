"""The arithmetic of INT8 and FP8: scales and rounding, as ONNX's QuantizeLinear and DequantizeLinear define them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "E4M3",
    "INT8",
    "LEVELS",
    "SMALLEST_SCALE",
    "Numbers",
    "activation_scale",
    "fake_quantize",
    "half_scales",
    "weight_scales",
]

LEVELS = 127  # symmetric: the largest magnitude is 127 steps, zero is exact
SMALLEST_SCALE = float(np.finfo(np.float16).tiny)  # scales stay normal numbers in float16


@dataclass(frozen=True)
class Numbers:
    """What values are rounded to.

    Args:
        name: as in the file of a calibration.
        title: for people.
        top: the largest magnitude, in steps.
        last: the size of the step below it.
        even: whether all steps are of one size, so that a one-sided activation gains by a shift.
    """

    name: str
    title: str
    top: float
    last: float
    even: bool

    @property
    def precision(self) -> str:
        """What options and manifests call it."""
        return self.title.lower()

    @property
    def end(self) -> float:
        """What is beyond is cut off, and not only rounded."""
        return self.top + self.last / 2


INT8 = Numbers("int8", "INT8", LEVELS, last=1.0, even=True)
E4M3 = Numbers("e4m3", "FP8", 448.0, last=32.0, even=False)
"""Four bits of exponent and three of mantissa: 448 is the largest, and there is no infinity."""


def weight_scales(weight: np.ndarray, numbers: Numbers = INT8) -> np.ndarray:
    """Sw of a weight (channels in, channels out): one a column, a float16 number so that both forms share it."""
    # Rounding to float16 may go down by 2**-11; one step up keeps the largest weight inside 127.5 levels anyway.
    return half_scales(np.abs(weight).max(axis=0) / numbers.top)


def half_scales(scales: np.ndarray) -> np.ndarray:
    """The nearest float16 numbers, as float32."""
    shared: np.ndarray = np.maximum(scales, SMALLEST_SCALE).astype(np.float16).astype(np.float32)
    return shared


def activation_scale(value: float) -> float:
    """Sx as a float16 number: the FP16 form holds its scales in the type of the graph around them."""
    return float(np.float16(min(max(value, SMALLEST_SCALE), float(np.finfo(np.float16).max))))


def fake_quantize(values: np.ndarray, scale: np.ndarray | float, shift: int = 0, numbers: Numbers = INT8) -> np.ndarray:
    """What Q and DQ make of values: rounded half to even and clipped to -128 .. 127 around the shift, as ONNX says; or
    to the nearest E4M3 number, at most 448."""
    if numbers is E4M3:
        return _e4m3(values / scale) * scale
    result: np.ndarray = np.clip(np.rint(values / scale), shift - LEVELS - 1, shift + LEVELS) * scale
    return result


def _e4m3(steps: np.ndarray) -> np.ndarray:
    """Half to even, in units of the last of three bits behind the first; below 2^-6 that unit stays what it is."""
    clipped = np.clip(steps, -E4M3.top, E4M3.top)
    _, exponent = np.frexp(clipped)
    unit = np.ldexp(np.float32(1), np.maximum(exponent - 4, -9))
    result: np.ndarray = np.rint(clipped / unit) * unit
    return result
