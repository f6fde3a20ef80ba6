"""One axis of a resize as a few small dense products: the filter matrix of that axis, cut into blocks along its band.

Output i of an axis sees only the inputs near its centre, so the (outputs x inputs) matrix of weights is a band and most
of a dense product is multiplication by zero. Here a few neighbouring outputs form a block; the block's window of inputs
is cut out and multiplied by a small dense matrix. The number of blocks depends on the number of outputs alone, so the
graph's nodes are the same for every image size; windows and weights are computed from the image's shape.

With n inputs, m outputs and the filter's radius r, input j weighs f(x) / sum for output i, where

    x = ((2j + 1) m - (2i + 1) n) / (2 max(n, m))

which is Pillow's (j + 1/2 - c) / s without a rounded intermediate. With j = first + k the numerator is
[2 first m - (2i + 1) n] + (2k + 1) m: both terms are computed in integers, and small enough to be exact in float32.

Pillow's weights w are integers of up to 22 bits, its pixels have 8: their sums do not fit the 24 bits of float32, and
where the true sum is a half, as it often is when n/m is a simple fraction, a rounding error decides the level. So each
weight is held in two parts, w = 2048 high + low with |low| <= 1024. The sum of pixels times either part has less than
24 bits (for windows of up to 64 inputs; longer ones would have to conspire), so a float32 product computes both without
any rounding, in whatever order it adds, and in TensorFloat-32 too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.preprocessing.filters import RADIUS, coefficients
from vitdeploy.compiler.preprocessing.tape import Tape
from vitdeploy.compiler.preprocessing.weights import weights_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CONTINUOUS", "LOW_UNITS", "ResizeMatrix", "computed_matrices", "constant_matrix"]

LOW_UNITS = 2048.0
"""How many units of the low part make one of the high part."""

CONTINUOUS = ("bilinear", "hamming", "bicubic", "lanczos")
"""Filters that are continuous: a rounding error in x moves a weight by as little. `box` is not."""

BLOCK = 8  # outputs in a block, or about: measured best on CPU
_FLOAT = 1  # ONNX's number of the type


@dataclass(frozen=True)
class ResizeMatrix:
    """The weights of one axis in blocks.

    `count` outputs are kept of blocks * block. `starts` (blocks,) int64 is the first input of each block's window,
    `length` (1,) int64 the number of inputs in each window. `weights` is float32 (blocks, 2 * block, length), first
    the high parts, then the low parts / 2048.
    """

    count: int
    blocks: int
    block: int
    starts: ir.Value
    length: ir.Value
    weights: ir.Value

    @property
    def padded(self) -> int:
        """Outputs that the blocks make, of which the first `count` are kept."""
        return self.blocks * self.block


def _block(counts: tuple[int, ...]) -> int:
    """Outputs in a block for axes of so many outputs: about `BLOCK`, with as few left over as can be."""
    return min(
        range(BLOCK - 2, BLOCK + 5), key=lambda size: (sum(-count % size for count in counts), abs(size - BLOCK))
    )


def constant_matrix(tape: Tape, resample: str, size_in: int, size_out: int, start: int, count: int) -> ResizeMatrix:
    """The matrix of `count` outputs from `start` on, for an axis of known size; zero for outputs off the image."""
    block = min(_block((count,)), count)
    number = math.ceil(count / block)
    firsts, integers = coefficients(resample, size_in, size_out)
    wanted = start + np.arange(number * block)
    inside = (wanted >= 0) & (wanted < size_out) & (np.arange(number * block) < count)
    output = wanted.clip(0, size_out - 1)
    # (outputs, taps): where each weight lies, and the weight
    position = firsts[output][:, np.newaxis] + np.arange(integers.shape[1])
    weight = np.where(inside[:, np.newaxis], integers[output], 0)
    used = weight != 0
    low = np.where(used, position, size_in).reshape(number, -1).min(axis=1)
    high = np.where(used, position + 1, 0).reshape(number, -1).max(axis=1)
    length = max(1, int((high - low).max()))
    starts = low.clip(0, size_in - length)
    dense = np.zeros((number * block, length))
    rows, taps = np.nonzero(used)
    dense[rows, position[rows, taps] - starts[rows // block]] = weight[rows, taps]
    dense = dense.reshape(number, block, length) / LOW_UNITS
    parts = np.concatenate([np.round(dense), dense - np.round(dense)], axis=1)
    return ResizeMatrix(
        count=count,
        blocks=number,
        block=block,
        starts=tape.constant(starts.astype(np.int64), "starts"),
        length=tape.ints(length),
        weights=tape.constant(parts.astype(np.float32), "weights"),
    )


def computed_matrices(
    tape: Tape,
    resample: str,
    size_in: ir.Value,
    size_out: ir.Value,
    start: ir.Value,
    counts: tuple[int, int],
    *,
    may_pad: bool,
) -> tuple[ResizeMatrix, ResizeMatrix]:
    """The bands of both axes for sizes that the graph reads from the image's shape, for a continuous filter.

    `size_in`, `size_out` and `start` are int64 (2,). `may_pad` says that outputs outside the image may be asked for.
    Both axes are computed by the same nodes, as (axes, ...): on small images it is their number that costs.
    """
    block = _block(counts)
    blocks = [math.ceil(count / block) for count in counts]
    reach = round(2 * RADIUS[resample])
    one, two, zero = tape.ints(1), tape.ints(2), tape.ints(0)
    # everything is (axes, blocks, outputs of a block, length) from here on
    size_in, size_out, start = (tape.Reshape(value, tape.ints(2, 1, 1, 1)) for value in (size_in, size_out, start))
    larger = tape.Max(size_in, size_out)
    stretched = tape.Mul(larger, tape.ints(reach))
    # the inputs of a block lie in an open interval of (block - 1) n/m + 2 r s: so many, and at most one more
    span = tape.Add(tape.Mul(size_in, tape.ints(block - 1)), stretched)
    length = tape.Min(tape.Add(tape.Div(span, size_out), one), size_in)
    outputs = np.arange(max(blocks) * block, dtype=np.int64).reshape(1, -1, block, 1)
    output = tape.Add(start, tape.constant(outputs, "outputs"))
    leading = tape.Add(start, tape.constant(outputs[:, :, :1], "outputs"))  # the first output of each block
    # in units of 1 / (2 m); both by the same steps, since TensorRT breaks on a slice of the one for the other
    centre, leading = (tape.Mul(tape.Add(tape.Mul(value, two), one), size_in) for value in (output, leading))
    left = tape.Max(tape.Add(leading, tape.Sub(size_out, stretched)), zero)
    first = tape.Min(tape.Div(left, tape.Mul(size_out, two)), tape.Sub(size_in, length))  # (axes, blocks, 1, 1)
    bracket = tape.Sub(tape.Mul(first, tape.Mul(size_out, two)), centre)  # (axes, blocks, block, 1)

    length2 = tape.Mul(length, two)
    odd = tape.Range(tape.scalar(1, np.int64), tape.ReduceMax(length2, keepdims=0), tape.scalar(2, np.int64))  # 2k + 1
    # what lies behind an axis' own window is out of the filter's reach
    along_inputs = tape.Where(tape.Less(odd, length2), tape.Mul(odd, size_out), tape.scalar(2**30, np.int64))
    numerator = tape.Add(tape.Cast(bracket, to=_FLOAT), tape.Cast(along_inputs, to=_FLOAT))
    limit = tape.Cast(tape.Mul(larger, two), to=_FLOAT)
    high, low = weights_of(tape, resample, tape.Abs(numerator), limit)
    weights = tape.Concat(high, low, axis=2)
    if may_pad or any(count % block for count in counts):
        weights = _masked(tape, weights, output, size_out)
    return _of_axes(tape, counts, blocks, block, first, length, weights)


def _of_axes(
    tape: Tape,
    counts: tuple[int, int],
    blocks: list[int],
    block: int,
    first: ir.Value,
    length: ir.Value,
    weights: ir.Value,
) -> tuple[ResizeMatrix, ResizeMatrix]:
    """Each axis' own of what was computed for both: its blocks, and the length of its windows."""
    zero = tape.ints(0)
    bands = []
    parts = (tape.split(value, 2, 0) for value in (first, length, weights))
    for count, number, starts, own, part in zip(counts, blocks, *parts, strict=True):
        own = tape.Reshape(own, tape.ints(1))
        starts = tape.Reshape(starts, tape.ints(-1))
        part = tape.Squeeze(tape.Slice(part, zero, own, tape.ints(3)), zero)
        if number < max(blocks):
            starts = tape.Slice(starts, zero, tape.ints(number), zero)
            part = tape.Slice(part, zero, tape.ints(number), zero)
        bands.append(ResizeMatrix(count=count, blocks=number, block=block, starts=starts, length=own, weights=part))
    rows, columns = bands
    return rows, columns


def _masked(tape: Tape, weights: ir.Value, output: ir.Value, size_out: ir.Value) -> ir.Value:
    """Zero weights for outputs before the first or behind the last of the resized image."""
    both = tape.Cast(tape.Concat(output, output, axis=2), to=_FLOAT)  # (axes, blocks, 2 * block, 1)
    last = tape.Cast(tape.Sub(size_out, tape.ints(1)), to=_FLOAT)
    inside = tape.And(tape.Not(tape.Less(both, tape.scalar(0, np.float32))), tape.Not(tape.Greater(both, last)))
    return tape.Where(inside, weights, tape.scalar(0, np.float32))
