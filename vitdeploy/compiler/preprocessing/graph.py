"""The preprocessing as an ONNX graph: `image` uint8 (batch, height, width, 3) -> `pixel_values` float32 NCHW."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.preprocessing.filters import PRECISION_BITS
from vitdeploy.compiler.preprocessing.tape import Tape
from vitdeploy.errors import require
from vitdeploy.specs import PreprocessSpec, ResizeSpec

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OPSET", "build_preprocessing"]

OPSET = 20


def build_preprocessing(spec: PreprocessSpec, *, input_size: tuple[int, int] | None = None) -> ir.Model:
    """The graph of `spec`.

    Args:
        spec: what the image processor does.
        input_size: (height, width) of every image, if they all have one size; None keeps both dynamic.

    Returns:
        A model with the input `image`, uint8 (batch, height, width, 3), and the output `pixel_values`, float32
        (batch, 3, height, width), all of whose values are named `preprocess/...`.
    """
    ir = require("onnx_ir", extra="build")
    tape = Tape("preprocess")
    height, width = input_size or ("height", "width")
    image = ir.Value(name="image", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(["batch", height, width, 3]))
    shape = tape.Shape(image)
    pixels = tape.Cast(image, to=ir.DataType.FLOAT)
    pixels = tape.Transpose(pixels, perm=[0, 3, 1, 2])  # (batch, height, width, 3) -> (batch, 3, height, width)
    sizes = [tape.Cast(tape.Gather(shape, tape.scalar(axis, np.int64)), to=ir.DataType.INT32) for axis in (1, 2)]
    made: list[int | str] = ["out_height", "out_width"]
    outs = _resized_sizes(tape, spec.resize, sizes)
    if spec.crop is not None:
        made = list(spec.crop)
    elif spec.resize is None:
        made = [height, width]
    elif spec.resize.height is not None and spec.resize.width is not None:
        made = [spec.resize.height, spec.resize.width]
    resample = spec.resize.resample if spec.resize is not None else "bilinear"
    if spec.resize is not None or spec.crop is not None:
        starts = (
            [None, None]
            if spec.crop is None
            else [_crop_start(tape, o, c) for o, c in zip(outs, spec.crop, strict=True)]
        )
        counts = outs if spec.crop is None else [tape.scalar(c, np.int32) for c in spec.crop]
        rows = _weights(tape, resample, sizes[0], outs[0], counts[0], starts[0])
        columns = _weights(tape, resample, sizes[1], outs[1], counts[1], starts[1])
        pixels = _rounded(tape, tape.MatMul(pixels, tape.Transpose(columns, perm=[1, 0])))
        pixels = _rounded(tape, tape.MatMul(rows, pixels))
    output = _normalised(tape, pixels, spec)
    output.name = "pixel_values"
    output.type = ir.TensorType(ir.DataType.FLOAT)
    output.shape = ir.Shape(["batch", 3, *made])
    graph = ir.Graph(
        [image],
        [output],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": OPSET},
        name="preprocess",
    )
    return ir.Model(graph, ir_version=10, producer_name="vitdeploy")


def _resized_sizes(tape: Tape, spec: ResizeSpec | None, sizes: list[ir.Value]) -> list[ir.Value]:
    if spec is None:
        return sizes
    if spec.height is not None and spec.width is not None:
        return [tape.scalar(spec.height, np.int32), tape.scalar(spec.width, np.int32)]
    assert spec.shortest_edge is not None and spec.longest_edge is None
    short = tape.Min(*sizes)
    edge = tape.scalar(spec.shortest_edge, np.int32)
    return [tape.Div(tape.Mul(edge, size), short) for size in sizes]


def _crop_start(tape: Tape, size: ir.Value, crop: int) -> ir.Value:
    # floor((size - crop) / 2), with a division that must not see negative numbers
    even = tape.scalar(2 * crop, np.int32)
    return tape.Sub(
        tape.Div(tape.Add(tape.Sub(size, tape.scalar(crop, np.int32)), even), tape.scalar(2, np.int32)),
        tape.scalar(crop, np.int32),
    )


def _weights(
    tape: Tape, resample: str, size_in: ir.Value, size_out: ir.Value, count: ir.Value, start: ir.Value | None
) -> ir.Value:
    """Dense (count, size_in) weights of the outputs from `start` on; zero for outputs outside the image."""
    zero, one, two = (tape.scalar(n, np.int32) for n in (0, 1, 2))
    outputs = tape.Range(zero, count, one)
    if start is not None:
        outputs = tape.Add(outputs, start)
    outputs = tape.Unsqueeze(outputs, tape.ints(1))  # (count, 1)
    inputs = tape.Unsqueeze(tape.Range(zero, size_in, one), tape.ints(0))  # (1, size_in)
    distance = tape.Sub(
        tape.Mul(tape.Add(tape.Mul(inputs, two), one), size_out),
        tape.Mul(tape.Add(tape.Mul(outputs, two), one), size_in),
    )
    stretch = tape.Mul(tape.Max(size_in, size_out), two)
    position = tape.Abs(tape.Div(tape.Cast(distance, to=1), tape.Cast(stretch, to=1)))
    weights = _filter(tape, resample, position)
    total = tape.ReduceSum(weights, tape.ints(1), keepdims=1)
    inside = tape.And(tape.Not(tape.Less(outputs, zero)), tape.Less(outputs, size_out))
    weights = tape.Div(weights, total)
    scale = tape.scalar(1 << PRECISION_BITS, np.float32)
    weights = tape.Div(tape.Round(tape.Mul(weights, scale)), scale)
    return tape.Where(inside, weights, tape.scalar(0, np.float32))


def _filter(tape: Tape, resample: str, x: ir.Value) -> ir.Value:
    def number(value: float) -> ir.Value:
        return tape.scalar(value, np.float32)

    if resample == "bilinear":
        return tape.Max(tape.Sub(number(1), x), number(0))
    assert resample == "bicubic", resample
    near = tape.Add(tape.Mul(tape.Mul(tape.Sub(tape.Mul(x, number(1.5)), number(2.5)), x), x), number(1))
    far = tape.Mul(tape.Add(tape.Mul(x, number(-0.5)), number(2.5)), x)
    far = tape.Add(tape.Mul(tape.Sub(far, number(4)), x), number(2))
    far = tape.Where(tape.Less(x, number(2)), far, number(0))
    return tape.Where(tape.Less(x, number(1)), near, far)


def _rounded(tape: Tape, values: ir.Value) -> ir.Value:
    half, low, high = (tape.scalar(n, np.float32) for n in (0.5, 0, 255))
    return tape.Clip(tape.Floor(tape.Add(values, half)), low, high)


def _normalised(tape: Tape, pixels: ir.Value, spec: PreprocessSpec) -> ir.Value:
    factor = np.full(3, 1.0 if spec.rescale is None else spec.rescale)
    offset = np.zeros(3)
    if spec.mean is not None and spec.std is not None:
        factor = factor / np.array(spec.std)
        offset = -np.array(spec.mean) / np.array(spec.std)
    shape = (3, 1, 1)  # (batch, 3, height, width) is what it meets
    scaled = tape.Mul(pixels, tape.constant(factor.astype(np.float32).reshape(shape), "factor"))
    return tape.Add(scaled, tape.constant(offset.astype(np.float32).reshape(shape), "offset"))
