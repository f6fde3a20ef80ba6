"""The preprocessing as an ONNX graph: `image` uint8 (batch, height, width, 3) -> `pixel_values` float32 NCHW.

The steps are those of the reference. The crop is done first, by computing only the outputs that it keeps. Everything is
float32, in FP16 and INT8 models too. The same arithmetic comes in two layouts, which differ in what moves the pixels:

- for every target: the cast is the only operation that sees uint8, since TensorRT takes no other. Both passes work on
  rows of interleaved channels, (batch, height, width * 3), so nothing large is transposed.
- for CPUs: bytes are transposed to planes, (batch * 3, height, width), windows are cut from the planes and cast when
  they are needed. That saves two thirds of the products and three quarters of the memory that the first pass reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.preprocessing.bands import CONTINUOUS, LOW_UNITS, Band, computed_band, constant_band
from vitdeploy.compiler.preprocessing.filters import vertical_first
from vitdeploy.compiler.preprocessing.reference import output_size
from vitdeploy.compiler.preprocessing.tape import Tape
from vitdeploy.errors import ModelError, require
from vitdeploy.specs import PreprocessSpec, ResizeSpec

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OPSET", "build_preprocessing"]

OPSET = 20
_CHANNELS = 3
_FLOAT = 1  # ONNX's number of the type


def build_preprocessing(
    spec: PreprocessSpec, *, input_size: tuple[int, int] | None = None, target: str = "any"
) -> ir.Model:
    """The graph of `spec`.

    Args:
        spec: what the image processor does.
        input_size: (height, width) of every image, if they all have one size: windows and weights are then constants.
            None keeps both dynamic.
        target: "any", or "cpu" for the layout that is faster in ONNX Runtime and OpenVINO and that TensorRT refuses.

    Returns:
        A model with the input `image`, uint8 (batch, height, width, 3), and the output `pixel_values`, float32
        (batch, 3, height, width). All other values, and the nodes, are named `preprocess/...`.

    Raises:
        ModelError: a setting can only be reproduced for a known `input_size`; the message names it.
    """
    ir = require("onnx_ir", extra="build")
    tape = Tape("preprocess")
    height, width = input_size or ("height", "width")
    image = ir.Value(
        name="image", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(["batch", height, width, _CHANNELS])
    )
    made: tuple[int | str, int | str] = (height, width)
    if spec.resize is None and spec.crop is None:
        values = tape.Transpose(tape.Cast(image, to=_FLOAT), perm=[0, 3, 1, 2])
    else:
        pixels = _planes(tape, image) if target == "cpu" else _interleaved(tape, image)
        if input_size is not None:
            resized, made = _static(tape, pixels, spec, input_size)
        else:
            resized, made = _dynamic(tape, pixels, image, spec)
        values = _channels_first(tape, resized, made)
    output = _normalised(tape, values, spec)
    output.type = ir.TensorType(ir.DataType.FLOAT)
    output.shape = ir.Shape(["batch", _CHANNELS, *made])
    output.name = "pixel_values"
    graph = ir.Graph(
        [image],
        [output],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": OPSET},
        name="preprocess",
    )
    return ir.Model(graph, ir_version=10, producer_name="vitdeploy")


@dataclass(frozen=True)
class _Pixels:
    """Rows of pixels, (images, height, width * channels): `channels` is 3 where they are interleaved, 1 in planes."""

    rows: ir.Value
    channels: int
    bytes: bool = False

    def floats(self, tape: Tape, part: ir.Value) -> ir.Value:
        """A part of the rows as float32."""
        return tape.Cast(part, to=_FLOAT) if self.bytes else part


def _interleaved(tape: Tape, image: ir.Value) -> _Pixels:
    return _Pixels(tape.Reshape(tape.Cast(image, to=_FLOAT), tape.ints(0, 0, -1)), _CHANNELS)


def _planes(tape: Tape, image: ir.Value) -> _Pixels:
    planes = tape.Transpose(image, perm=[0, 3, 1, 2])
    size = tape.Slice(tape.Shape(image), tape.ints(1), tape.ints(3))
    return _Pixels(tape.Reshape(planes, tape.Concat(tape.ints(-1), size, axis=0)), 1, bytes=True)


def _channels_first(tape: Tape, pixels: _Pixels, size: tuple[int, int]) -> ir.Value:
    """Rows of pixels -> (batch, 3, height, width)."""
    if pixels.channels == 1:
        return tape.Reshape(pixels.rows, tape.ints(-1, _CHANNELS, *size))
    return tape.Transpose(tape.Reshape(pixels.rows, tape.ints(0, *size, _CHANNELS)), perm=[0, 3, 1, 2])


def _static(
    tape: Tape, pixels: _Pixels, spec: PreprocessSpec, size: tuple[int, int]
) -> tuple[_Pixels, tuple[int, int]]:
    """Resize and crop images of one known size: every window and weight is a constant, and as exact as Pillow's."""
    resized = size if spec.resize is None else output_size(spec.resize, size)
    kept = spec.crop or resized
    starts = [(resized[axis] - kept[axis]) // 2 for axis in (0, 1)]
    resample = "nearest" if spec.resize is None else spec.resize.resample
    rows, columns = (
        constant_band(tape, resample, size[axis], resized[axis], starts[axis], kept[axis]) for axis in (0, 1)
    )
    return _two_passes(tape, pixels, rows, columns, resample, vertical_first(size, resized)), kept


def _dynamic(tape: Tape, pixels: _Pixels, image: ir.Value, spec: PreprocessSpec) -> tuple[_Pixels, tuple[int, int]]:
    """Resize and crop images whose size the graph reads from their shape."""
    kept = _kept(spec)
    shape = tape.Shape(image)
    size = [tape.Gather(shape, tape.ints(axis)) for axis in (1, 2)]  # int64 (1,) each
    resized = _resized(tape, spec.resize, size)
    resample = "bilinear" if spec.resize is None else spec.resize.resample
    starts = [tape.ints(0)] * 2
    if spec.crop is not None:
        starts = [_crop_start(tape, resized[axis], kept[axis]) for axis in (0, 1)]
    rows, columns = (
        computed_band(tape, resample, size[axis], resized[axis], starts[axis], kept[axis], may_pad=_may_pad(spec)[axis])
        for axis in (0, 1)
    )
    if spec.resize is None:
        return _two_passes(tape, pixels, rows, columns, resample, False), kept
    shrink = [tape.Sub(size[axis], resized[axis]) for axis in (0, 1)]
    tall = tape.And(tape.Greater(shrink[0], tape.ints(0)), tape.Greater(shrink[0], tape.Mul(shrink[1], tape.ints(2))))
    resized_rows = tape.choose(
        tape.Squeeze(tall, tape.ints(0)),
        lambda branch: _two_passes(branch, pixels, rows, columns, resample, True).rows,
        lambda branch: _two_passes(branch, pixels, rows, columns, resample, False).rows,
    )
    return _Pixels(resized_rows, pixels.channels), kept


def _kept(spec: PreprocessSpec) -> tuple[int, int]:
    """Height and width of the output, which a graph for any image size must know.

    Raises:
        ModelError: they depend on the image, or a filter needs more than the graph can compute.
    """
    resize = spec.resize
    if resize is not None and resize.resample not in CONTINUOUS:
        raise ModelError(
            f"resample={resize.resample!r} can't be put in a graph for images of any size: which pixels it takes hangs"
            " on the last bit of Pillow's double precision",
            hint="give the size of the images (--input-size HEIGHTxWIDTH), or train with bilinear or bicubic",
        )
    if resize is not None and resize.longest_edge is not None:
        raise ModelError(
            f"size with longest_edge={resize.longest_edge} can't be put in a graph for images of any size: the last"
            " pixel of the longer edge hangs on the last bit of Python's double precision",
            hint="give the size of the images (--input-size HEIGHTxWIDTH), or drop longest_edge from size",
        )
    if spec.crop is not None:
        return spec.crop
    if resize is None or resize.height is None or resize.width is None:
        raise ModelError(
            "size with shortest_edge and without a centre crop makes images of unequal size",
            hint="set do_center_crop and crop_size, or give size a height and a width",
        )
    return resize.height, resize.width


def _may_pad(spec: PreprocessSpec) -> tuple[bool, bool]:
    """Whether the crop may reach beyond the resized image, along the height and the width."""
    if spec.crop is None:
        return False, False
    if spec.resize is None:
        return True, True
    edges = (spec.resize.height, spec.resize.width)
    height, width = (edge if edge is not None else spec.resize.shortest_edge for edge in edges)
    assert height is not None and width is not None
    return spec.crop[0] > height, spec.crop[1] > width


def _two_passes(tape: Tape, pixels: _Pixels, rows: Band, columns: Band, resample: str, rows_first: bool) -> _Pixels:
    """(height, width) -> (rows.count, columns.count), whole levels after each pass."""
    # a filter without negative parts can't leave 0..255
    clip = resample in ("bicubic", "lanczos")
    if rows_first:
        return _along_width(tape, _along_height(tape, pixels, rows, clip), columns, clip)
    return _along_height(tape, _along_width(tape, pixels, columns, clip), rows, clip)


def _resized(tape: Tape, spec: ResizeSpec | None, size: list[ir.Value]) -> list[ir.Value]:
    """Height and width after the resize, int64 (1,) each."""
    if spec is None:
        return size
    if spec.height is not None and spec.width is not None:
        return [tape.ints(spec.height), tape.ints(spec.width)]
    assert spec.shortest_edge is not None and spec.longest_edge is None
    short = tape.Min(*size)
    return [tape.Div(tape.Mul(tape.ints(spec.shortest_edge), edge), short) for edge in size]


def _crop_start(tape: Tape, size: ir.Value, crop: int) -> ir.Value:
    """floor((size - crop) / 2), int64 (1,), with a division that sees no negative number."""
    return tape.Sub(tape.Div(tape.Add(size, tape.ints(crop)), tape.ints(2)), tape.ints(crop))


def _along_width(tape: Tape, pixels: _Pixels, band: Band, clip: bool) -> _Pixels:
    """Resize along the width: rows of columns * channels -> rows of band.count * channels."""
    channels = pixels.channels
    weights, first, length = band.weights, band.starts, band.length
    if channels > 1:
        weights = _for_interleaved(tape, band, channels)
        first, length = tape.Mul(first, tape.ints(channels)), tape.Mul(length, tape.ints(channels))
    begins = tape.split(first, band.blocks, 0)
    ends = tape.split(tape.Add(first, length), band.blocks, 0)
    products = [
        tape.MatMul(pixels.floats(tape, tape.Slice(pixels.rows, begin, end, tape.ints(2))), weight)
        for begin, end, weight in zip(begins, ends, tape.split(weights, band.blocks, 0), strict=True)
    ]
    joined = tape.Concat(*products, axis=2) if len(products) > 1 else products[0]
    # (images, rows, blocks * 2 * block * channels) -> twice (images, rows, blocks, 1, block * channels)
    joined = tape.Reshape(joined, tape.ints(0, 0, band.blocks, 2, band.block * channels))
    # without the dimension of one: ONNX Runtime's broadcasting takes five times as long with it
    flat = tape.ints(0, 0, band.padded * channels)
    high, low = (tape.Reshape(part, flat) for part in tape.split(joined, 2, 3))
    levels = _levels(tape, high, low, clip)
    if band.padded != band.count:
        levels = tape.Slice(levels, tape.ints(0), tape.ints(band.count * channels), tape.ints(2))
    return _Pixels(levels, channels)


def _for_interleaved(tape: Tape, band: Band, channels: int) -> ir.Value:
    """Weights for interleaved channels: each channel of an output sees its own channel of the inputs.

    A product with ones and zeros spreads them: (blocks, length, made) -> (blocks, length, channels * made * channels)
    -> (blocks, length * channels, made * channels).
    """
    made = 2 * band.block
    spread = np.einsum("bd,ce->bcde", np.eye(made), np.eye(channels)).reshape(made, -1)
    weights = tape.MatMul(band.weights, tape.constant(spread.astype(np.float32), "spread"))
    return tape.Reshape(weights, tape.ints(band.blocks, -1, made * channels))


def _along_height(tape: Tape, pixels: _Pixels, band: Band, clip: bool) -> _Pixels:
    """Resize along the height: height rows -> band.count rows."""
    length = tape.Squeeze(band.length, tape.ints(0))
    offsets = tape.Range(tape.scalar(0, np.int64), length, tape.scalar(1, np.int64))
    index = tape.Add(tape.Unsqueeze(band.starts, tape.ints(1)), offsets)  # (blocks, length)
    # (images, blocks, length, columns * channels)
    windows = pixels.floats(tape, tape.Gather(pixels.rows, index, axis=1))
    weights = tape.Transpose(band.weights, perm=[0, 2, 1])  # (blocks, 2 * block, length)
    # twice (images, blocks, block, columns * channels) -> (images, blocks * block, columns * channels)
    high, low = tape.split(tape.MatMul(weights, windows), 2, 2)
    levels = _levels(tape, high, low, clip)
    columns = tape.Slice(tape.Shape(pixels.rows), tape.ints(2), tape.ints(3))
    levels = tape.Reshape(levels, tape.Concat(tape.ints(0, band.padded), columns, axis=0))
    if band.padded != band.count:
        levels = tape.Slice(levels, tape.ints(0), tape.ints(band.count), tape.ints(1))
    return _Pixels(levels, pixels.channels)


def _levels(tape: Tape, high: ir.Value, low: ir.Value, clip: bool) -> ir.Value:
    """Sums of pixels times high and low parts of weights -> whole levels, halves up, in 0..255 if asked.

    That is (2048 high + low + 2**21) >> 22, where both come divided by 2048.
    """
    total = tape.Add(high, tape.Mul(tape.Floor(low), tape.scalar(1 / LOW_UNITS, np.float32)))
    levels = tape.Floor(tape.Add(total, tape.scalar(0.5, np.float32)))
    if not clip:
        return levels
    return tape.Clip(levels, tape.scalar(0, np.float32), tape.scalar(255, np.float32))


def _normalised(tape: Tape, pixels: ir.Value, spec: PreprocessSpec) -> ir.Value:
    """Rescale and normalise in one: pixel * (rescale / std) - mean / std."""
    factor = np.full(_CHANNELS, 1.0 if spec.rescale is None else spec.rescale)
    offset = np.zeros(_CHANNELS)
    if spec.mean is not None and spec.std is not None:
        factor = factor / np.array(spec.std)
        offset = -np.array(spec.mean) / np.array(spec.std)
    shape = (_CHANNELS, 1, 1)  # (batch, 3, height, width) is what it meets
    scaled = tape.Mul(pixels, tape.constant(factor.astype(np.float32).reshape(shape), "factor"))
    return tape.Add(scaled, tape.constant(offset.astype(np.float32).reshape(shape), "offset"))
