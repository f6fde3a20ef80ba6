"""What the image processor does, in NumPy: the exact reference beside the graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import PIL

from vitdeploy.compiler.preprocessing.filters import PRECISION_BITS, coefficients, vertical_first
from vitdeploy.core import machine
from vitdeploy.core.errors import InputError
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec

__all__ = ["center_crop", "follows_pillow", "output_size", "reference", "resize"]

Pixels = npt.NDArray[np.uint8]


def reference(spec: PreprocessSpec, pixels: Pixels) -> npt.NDArray[np.float32]:
    """Pixel values of one image.

    Args:
        spec: what to do.
        pixels: uint8 RGB (height, width, 3).

    Returns:
        float32 (3, height, width).

    Raises:
        InputError: `pixels` is not of that type and shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(
            f"pixels must be uint8 (height, width, 3), got {pixels.dtype} {pixels.shape}",
            hint="vitdeploy.data.images.decode makes such arrays",
        )
    if spec.resize is not None:
        size = output_size(spec.resize, (pixels.shape[0], pixels.shape[1]))
        pixels = resize(pixels, size, spec.resize.resample)
    if spec.crop is not None:
        pixels = center_crop(pixels, spec.crop, spec.crop_starts((pixels.shape[0], pixels.shape[1])))
    values: npt.NDArray[np.float32] = pixels.astype(np.float32)
    if spec.rescale is not None:
        values = (pixels * np.float64(spec.rescale)).astype(np.float32)
    if spec.mean is not None and spec.std is not None:
        mean, std = np.array([spec.mean, spec.std], np.float32)
        values = ((values - mean) / std).astype(np.float32)
    if spec.channels == "bgr":
        values = values[..., ::-1]
    return np.ascontiguousarray(values.transpose(2, 0, 1))  # (height, width, 3) -> (3, height, width)


def follows_pillow(spec: PreprocessSpec, size: tuple[int, int]) -> bool:
    """Whether the Pillow that is installed resizes an image of (height, width) `size` as `reference` and the graph do.

    Before 13.0, which needs Python 3.11, it took the width first in every image, also where the height comes first now.
    """
    if spec.resize is None or machine.release(PIL.__version__) >= (13,):
        return True
    return not vertical_first(size, output_size(spec.resize, size))


def output_size(spec: ResizeSpec, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after the resize of an image of (height, width) `size`."""
    if spec.height is not None and spec.width is not None:
        return spec.height, spec.width
    assert spec.shortest_edge is not None
    short, long = min(size), max(size)
    if spec.longest_edge is None:
        resized_short, resized_long = spec.shortest_edge, int(spec.shortest_edge * long / short)
    else:
        resized_short, resized_long = _bounded(spec.shortest_edge, spec.longest_edge, short, long)
    return (resized_short, resized_long) if size[0] <= size[1] else (resized_long, resized_short)


def _bounded(shortest: int, longest: int, short: int, long: int) -> tuple[int, int]:
    """(short, long) edge after a resize to `shortest` that keeps the long edge within `longest`."""
    exact: float = shortest
    edge = shortest
    if long / short * shortest > longest:
        exact = longest * float(short) / float(long)
        edge = round(exact)
    if short == edge:
        return short, long
    return edge, int(exact * long / short)


def resize(pixels: Pixels, size: tuple[int, int], resample: str) -> Pixels:
    """Resize (height, width, channels) to (height, width) `size` as Pillow does, bit for bit."""
    first, second = (0, 1) if vertical_first((pixels.shape[0], pixels.shape[1]), size) else (1, 0)
    return _pass(_pass(pixels, first, size[first], resample), second, size[second], resample)


def _pass(pixels: Pixels, axis: int, size: int, resample: str) -> Pixels:
    length = pixels.shape[axis]
    if length == size:
        return pixels
    starts, weights = coefficients(resample, length, size)
    moved = np.moveaxis(pixels, axis, 0)  # (length, ...)
    total = np.full((size, *moved.shape[1:]), 1 << (PRECISION_BITS - 1), np.int64)
    for tap in range(weights.shape[1]):
        # a weight past the end of the window is zero, so which input it meets does not matter
        taken = moved[np.minimum(starts + tap, length - 1)]
        total += taken * weights[:, tap].reshape(size, *(1,) * (moved.ndim - 1))
    return np.moveaxis((total >> PRECISION_BITS).clip(0, 255).astype(np.uint8), 0, axis)


def center_crop(pixels: Pixels, size: tuple[int, int], starts: tuple[int, int]) -> Pixels:
    """Cut `size` out of (height, width, channels), from `starts` on; where it reaches beyond the image there are
    zeros."""
    result = np.zeros((*size, pixels.shape[2]), np.uint8)
    source, target = [], []
    for length, wanted, start in zip(pixels.shape[:2], size, starts, strict=True):
        source.append(slice(max(start, 0), max(start, 0) + min(length, wanted)))
        target.append(slice(max(-start, 0), max(-start, 0) + min(length, wanted)))
    result[target[0], target[1]] = pixels[source[0], source[1]]
    return result
