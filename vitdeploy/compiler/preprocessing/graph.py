"""The preprocessing as an ONNX graph: `image` uint8 (batch, height, width, 3) -> `pixel_values` float32 NCHW.

The steps are those of the reference. The crop is done first, by computing only the outputs that it keeps. Everything is
float32, in FP16 and INT8 models too. The same arithmetic comes in three layouts, which differ in what moves the pixels:
`interleaved`, for every target, `planar`, faster, for CPUs, and `batched`, of fewer kernels, for engines. Only that for
CPUs has control flow.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.preprocessing import batched, interleaved, planar
from vitdeploy.compiler.preprocessing.filters import vertical_first
from vitdeploy.compiler.preprocessing.reference import output_size
from vitdeploy.compiler.preprocessing.resize_matrices import CONTINUOUS, computed_matrices, constant_matrix
from vitdeploy.compiler.preprocessing.tape import Tape
from vitdeploy.core.errors import ModelError, require
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OPSET", "build_preprocessing"]

OPSET = 20
_CHANNELS = 3
_FLOAT = 1  # ONNX's number of the type
_NEGATIVE = ("bicubic", "lanczos")  # filters with negative parts, which can leave 0..255


def build_preprocessing(
    spec: PreprocessSpec, *, input_size: tuple[int, int] | None = None, target: str = "any"
) -> ir.Model:
    """The graph of `spec`.

    Args:
        spec: what the image processor does.
        input_size: (height, width) of every image, if they all have one size: windows and weights are then constants.
            None keeps both dynamic.
        target: "any"; "cpu" for the layout that is faster in ONNX Runtime and OpenVINO and that TensorRT refuses; or
            "tensorrt" for the one of fewer kernels, slower on CPUs.

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
    layout = {"any": interleaved, "cpu": planar, "tensorrt": batched}[target]
    if spec.resize is None and spec.crop is None:
        values = tape.Transpose(tape.Cast(image, to=_FLOAT), perm=[0, 3, 1, 2])
    elif input_size is not None:
        values, made = _static(tape, layout, image, spec, input_size)
    else:
        values, made = _dynamic(tape, layout, image, spec)
    output = _normalised(tape, layout, values, spec)
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


def _static(
    tape: Tape, layout: ModuleType, image: ir.Value, spec: PreprocessSpec, size: tuple[int, int]
) -> tuple[ir.Value, tuple[int, int]]:
    """Resize and crop images of one known size: every window and weight is a constant, and as exact as Pillow's."""
    resized = size if spec.resize is None else output_size(spec.resize, size)
    kept = spec.crop or resized
    starts = spec.crop_starts(resized)
    resample = "nearest" if spec.resize is None else spec.resize.resample
    rows, columns = (
        constant_matrix(tape, resample, size[axis], resized[axis], starts[axis], kept[axis]) for axis in (0, 1)
    )
    rows_first = vertical_first(size, resized)
    if layout is planar:
        return planar.two_passes(tape, image, rows, columns, rows_first=rows_first), kept
    clip = resample in _NEGATIVE
    if layout is batched:
        matrices = (rows, columns) if rows_first else (columns, rows)
        made = batched.two_passes(tape, interleaved.laid(tape, image, not rows_first), *matrices, clip=clip)
        return interleaved.turned_back(tape, made, kept, rows_first), kept
    pixels = interleaved.laid(tape, image, False)
    made = interleaved.two_passes(tape, pixels, rows, columns, rows_first=rows_first, clip=clip)
    return interleaved.turned_back(tape, made, kept, False), kept


def _dynamic(tape: Tape, layout: ModuleType, image: ir.Value, spec: PreprocessSpec) -> tuple[ir.Value, tuple[int, int]]:
    """Resize and crop images whose size the graph reads from their shape."""
    kept = _kept(spec)
    size = tape.Shape(image, start=1, end=3)  # height and width, int64 (2,)
    resized = _resized(tape, spec.resize, size)
    resample = "bilinear" if spec.resize is None else spec.resize.resample
    start = _crop_start(tape, resized, spec)
    may_pad, clip = _may_pad(spec), resample in _NEGATIVE
    if layout is planar or spec.resize is None:
        rows, columns = computed_matrices(tape, resample, size, resized, start, kept, may_pad=may_pad)
    if spec.resize is None:
        if layout is planar:
            return planar.two_passes(tape, image, rows, columns, rows_first=False), kept
        made = interleaved.two_passes(tape, interleaved.laid(tape, image, False), rows, columns, clip=clip)
        return interleaved.turned_back(tape, made, kept, False), kept
    rows_first = _rows_first(tape, size, resized)
    if layout is planar:
        orders = (
            partial(planar.two_passes, image=image, rows=rows, columns=columns, rows_first=first)
            for first in (True, False)
        )
        return tape.choose(tape.Squeeze(rows_first, tape.ints(0)), *orders), kept
    # the axis of the first pass leads in `batched` and trails in `interleaved`
    turn = tape.Not(rows_first) if layout is batched else rows_first
    order = tape.Where(turn, tape.ints(1, 0), tape.ints(0, 1))  # the leading axis and the trailing one
    size, resized, start = (tape.Gather(value, order, axis=0) for value in (size, resized, start))
    # equally many outputs of both axes, so that nothing behind depends on the order
    counts, may_pad = (max(kept), max(kept)), may_pad or kept[0] != kept[1]
    matrices = computed_matrices(tape, resample, size, resized, start, counts, may_pad=may_pad)
    made = layout.two_passes(tape, interleaved.laid(tape, image, turn), *matrices, clip=clip)
    return interleaved.turned_back(tape, made, kept, rows_first), kept


def _rows_first(tape: Tape, size: ir.Value, resized: ir.Value) -> ir.Value:
    """Whether Pillow resizes along the height first, bool (1,); see `filters.vertical_first`."""
    height, width = tape.split(tape.Sub(size, resized), 2, 0)  # by how much each shrinks
    return tape.Greater(height, tape.Max(tape.Mul(width, tape.ints(2)), tape.ints(0)))


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


def _may_pad(spec: PreprocessSpec) -> bool:
    """Whether the crop may reach beyond the resized image."""
    if spec.crop is None:
        return False
    if spec.resize is None:
        return True
    edges = (spec.resize.height, spec.resize.width)
    height, width = (edge if edge is not None else spec.resize.shortest_edge for edge in edges)
    assert height is not None and width is not None
    return spec.crop[0] > height or spec.crop[1] > width


def _resized(tape: Tape, spec: ResizeSpec | None, size: ir.Value) -> ir.Value:
    """Height and width after the resize, int64 (2,)."""
    if spec is None:
        return size
    if spec.height is not None and spec.width is not None:
        return tape.ints(spec.height, spec.width)
    assert spec.shortest_edge is not None and spec.longest_edge is None
    return tape.Div(tape.Mul(tape.ints(spec.shortest_edge), size), tape.Min(*tape.split(size, 2, 0)))


def _crop_start(tape: Tape, size: ir.Value, spec: PreprocessSpec) -> ir.Value:
    """What `PreprocessSpec.crop_starts` says, int64 (2,), with divisions that see no negative number."""
    if spec.crop is None:
        return tape.ints(0, 0)
    crop, two = tape.ints(*spec.crop), tape.ints(2)
    if spec.crop_rounding == "down":
        return tape.Sub(tape.Div(tape.Add(size, crop), two), crop)

    def rest(number: ir.Value, half: ir.Value) -> ir.Value:
        return tape.Sub(number, tape.Mul(half, two))

    spare = tape.Max(tape.Sub(size, crop), tape.ints(0))
    half = tape.Div(spare, two)
    # of an odd number the half below where that is even, else the one above
    start = tape.Add(half, tape.Mul(rest(spare, half), rest(half, tape.Div(half, two))))
    if not _may_pad(spec):
        return start
    return tape.Sub(start, tape.Div(tape.Max(tape.Sub(crop, size), tape.ints(0)), two))


def _normalised(tape: Tape, layout: ModuleType, pixels: ir.Value, spec: PreprocessSpec) -> ir.Value:
    """Rescale and normalise in one: pixel * (rescale / std) - mean / std; then blue in front, where asked for."""
    factor = np.full(_CHANNELS, 1.0 if spec.rescale is None else spec.rescale)
    offset = np.zeros(_CHANNELS)
    if spec.mean is not None and spec.std is not None:
        factor = factor / np.array(spec.std)
        offset = -np.array(spec.mean) / np.array(spec.std)
    values: ir.Value = layout.scaled(tape, pixels, factor.astype(np.float32), offset.astype(np.float32))
    return values if spec.channels == "rgb" else tape.Gather(values, tape.ints(2, 1, 0), axis=1)
