"""Pillow's resampling filters on one axis, exactly: integer coefficients as Pillow computes them.

With n samples in and m out, output i has its centre at c = (i + 1/2) n/m on the input axis and sees inputs through a
filter f stretched by s = max(1, n/m): input j weighs f((j + 1/2 - c) / s), the weights of an output are divided by
their sum and rounded to 22 fractional bits. Only inputs j in [round(c - r s), round(c + r s)) count, r being f's
radius. A pass sums pixel times integer coefficient, adds one half and keeps the integer part, clipped to 0..255. An
axis whose length stays has no pass. Pillow makes the pass along the width first, and from 13.0 on (pull request 9549)
the one along the height where that shrinks by more than twice as many pixels.

Source: Pillow, src/libImaging/Resample.c (precompute_coeffs, normalize_coeffs_8bpc, clip8) and Geometry.c
(ImagingScaleAffine) for nearest, which is not a convolution: output i takes input floor(n/m/2 + n/m + ... + n/m),
summed one by one in double precision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["FILTERS", "PRECISION_BITS", "RADIUS", "coefficients", "vertical_first"]

PRECISION_BITS = 22

Floats = npt.NDArray[np.float64]


def _box(x: Floats) -> Floats:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _bilinear(x: Floats) -> Floats:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _hamming(x: Floats) -> Floats:
    x = np.abs(x)
    # Pillow's constants are single precision there, and their sum is not quite one; at the centre it says one
    window = np.float64(np.float32(0.54)) + np.float64(np.float32(0.46)) * np.cos(np.pi * x)
    return np.where(x == 0.0, 1.0, np.where(x >= 1.0, 0.0, np.sinc(x) * window))


def _bicubic(x: Floats) -> Floats:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


FILTERS: dict[str, Callable[[Floats], Floats]] = {
    "box": _box,
    "bilinear": _bilinear,
    "hamming": _hamming,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}

RADIUS = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""How far a filter reaches to each side, in stretched samples."""


def coefficients(resample: str, size_in: int, size_out: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First input and integer weights of every output.

    Returns:
        starts (size_out,): the first input that an output sees; weights (size_out, taps) in units of 2**-22, zero where
        a window is shorter than the longest.
    """
    if resample == "nearest":
        return _nearest(size_in, size_out), np.full((size_out, 1), 1 << PRECISION_BITS, np.int64)
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = RADIUS[resample] * stretch
    centre = (np.arange(size_out) + 0.5) * scale
    # conversion to int truncates, as C does
    starts = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((centre + support + 0.5).astype(np.int64), size_in)
    taps = np.arange(int((ends - starts).max()))
    position = starts[:, np.newaxis] + taps  # (size_out, taps)
    argument = (position - centre[:, np.newaxis] + 0.5) * (1.0 / stretch)
    weights = np.where(position < ends[:, np.newaxis], FILTERS[resample](argument), 0.0)
    total = weights.cumsum(axis=1)[:, -1:]  # one by one, as Pillow adds: sum() adds in another order
    weights = np.divide(weights, total, out=weights, where=total != 0.0)
    rounded = np.trunc(weights * (1 << PRECISION_BITS) + np.where(weights < 0, -0.5, 0.5))
    return starts, rounded.astype(np.int64)


def _nearest(size_in: int, size_out: int) -> npt.NDArray[np.int64]:
    """The input that each output takes, (size_out,)."""
    scale = size_in / size_out
    steps = np.full(size_out, scale)
    steps[0] = scale * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), size_in - 1)


def vertical_first(size_in: tuple[int, int], size_out: tuple[int, int]) -> bool:
    """Whether Pillow (from 13.0 on) resizes (height, width) along the height before the width."""
    shrink_height, shrink_width = size_in[0] - size_out[0], size_in[1] - size_out[1]
    return shrink_height > 0 and shrink_height > 2 * shrink_width
