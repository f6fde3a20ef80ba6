"""Pillow's integer weights, computed by float32 operations of the graph.

Where the true sum of a pass is a half, Pillow's rounded weights decide the level, so a weight that is off by one in 22
bits can show. Here every product and remainder is arranged to stay below 2**24, where float32 is exact, for axes of up
to 4096. Bilinear weights are ratios of small integers. The other filters are read from a table: a cubic for each of
1024 pieces of a unit, closer to the filter than 2**-32, its constant term in two floats. What remains are weights so
close to the middle of two integers that the last bits of t decide: two or three in 100,000 are off by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vitdeploy.compiler.preprocessing.filters import FILTERS, PRECISION_BITS, RADIUS
from vitdeploy.compiler.preprocessing.tape import Tape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["weights_of"]

_PIECES = 1024
_FLOAT, _INT32 = 1, 6  # ONNX's numbers of the types


def weights_of(tape: Tape, resample: str, distance: ir.Value, limit: ir.Value) -> tuple[ir.Value, ir.Value]:
    """High and low part of the weights at x = distance / limit: high + low, in units of 2**-11, `high` a whole number.

    `distance` (..., outputs, length) and `limit` are whole numbers in float32; the weights of one output lie along
    `length` and are all there is of that output.
    """
    if resample == "bilinear":
        return _bilinear(tape, distance, limit)
    return _quotient(tape, *_tabulated(tape, resample, distance, limit))


def _bilinear(tape: Tape, distance: ir.Value, limit: ir.Value) -> tuple[ir.Value, ir.Value]:
    """u / U with u = limit - distance and U, the sum of an output's u.

    A long division in digits of 11, 6 and 5 bits: one that the division gets wrong by one is made good by the next.
    It is the divisor that is shifted, which is short; each product and difference is exact.
    """
    rest = tape.Relu(tape.Sub(limit, distance))
    # repeated along `length` once, and by an addition: each operation that repeats along rows so short takes as long as
    # five others, and Expand longer
    total = tape.Add(tape.ReduceSum(rest, tape.ints(-1), keepdims=1), tape.Mul(rest, tape.scalar(0, np.float32)))
    divisors = [tape.Mul(total, tape.scalar(2.0**-bits, np.float32)) for bits in (11, 17, 22)]
    high = tape.Round(tape.Div(rest, divisors[0]))
    rest = tape.Sub(rest, tape.Mul(high, divisors[0]))
    middle = tape.Floor(tape.Div(rest, divisors[1]))
    rest = tape.Sub(rest, tape.Mul(middle, divisors[1]))
    # the last digit is rounded, halves up
    last = tape.Floor(tape.Add(tape.Div(rest, divisors[2]), tape.scalar(0.5, np.float32)))
    middle, last = (tape.Mul(digit, tape.scalar(2.0**-bits, np.float32)) for digit, bits in ((middle, 6), (last, 11)))
    return high, tape.Add(middle, last)


def _tabulated(tape: Tape, resample: str, distance: ir.Value, limit: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The filter as coarse + fine in units of 2**-22: `coarse` is a whole number, `fine` takes the rest.

    With 1024 x = h + t, h whole and 0 <= t < 1, both are exact but for the last bits of t.
    """
    scaled = tape.Mul(distance, tape.scalar(_PIECES, np.float32))
    h = tape.Floor(tape.Div(scaled, limit))
    t = tape.Div(tape.Sub(scaled, tape.Mul(h, limit)), limit)
    cubics = _cubics(resample)
    # GatherElements, since Gather copies one number at a time; it wants a vector
    piece = tape.Min(h, tape.scalar(cubics.shape[1] - 1, np.float32))
    index, t = (tape.Reshape(value, tape.ints(-1)) for value in (piece, t))
    index = tape.Cast(index, to=_INT32)
    whole = np.round(cubics[0])
    columns = [whole, cubics[0] - whole, *cubics[1:]]
    coarse, constant, linear, quadratic, cubic = (
        tape.GatherElements(tape.constant(column.astype(np.float32), f"{resample}_table"), index, axis=0)
        for column in columns
    )
    fine = tape.Add(linear, tape.Mul(t, tape.Add(quadratic, tape.Mul(t, cubic))))
    fine = tape.Add(constant, tape.Mul(t, fine))
    shape = tape.Shape(distance)
    return tape.Reshape(coarse, shape), tape.Reshape(fine, shape)


def _cubics(resample: str) -> npt.NDArray[np.float64]:
    """Coefficients (4, pieces + 1) of t**0 to t**3 in each piece, in units of 2**-22; the last piece is all zero."""
    points = np.arange(4) / 3
    pieces = np.arange(round(RADIUS[resample] * _PIECES))
    x = (pieces[:, np.newaxis] + points) / _PIECES
    x[0, 0] = 1e-12  # not 0, where hamming alone has a value of its own, beside which the cubic is to run
    values = FILTERS[resample](x) * (1 << PRECISION_BITS)  # (pieces, 4)
    through = np.linalg.inv(np.vander(points, increasing=True)) @ values.T
    return np.pad(through, ((0, 0), (0, 1)))


def _quotient(tape: Tape, coarse: ir.Value, fine: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(coarse + fine) / their sum along `length`, rounded to units of 2**-22: two digits of 11 bits, as above."""

    def number(value: float) -> ir.Value:
        return tape.scalar(value, np.float32)

    def carry(value: ir.Value) -> tuple[ir.Value, ir.Value]:
        upper = tape.Floor(tape.Mul(value, number(1 / 4096)))
        return upper, tape.Sub(value, tape.Mul(upper, number(4096)))

    def total(value: ir.Value) -> ir.Value:
        return tape.ReduceSum(value, tape.ints(-1), keepdims=1)

    base = number(2048)
    # the sum of `coarse` may be longer than float32 is: 4096 upper + lower, each exact
    high, low = carry(coarse)
    carried, lower = carry(total(low))
    upper = tape.Add(total(high), carried)
    sum_fine = total(fine)
    whole = tape.Add(tape.Mul(upper, number(4096)), tape.Add(lower, sum_fine))
    digit = tape.Round(tape.Div(tape.Mul(coarse, base), whole))
    # 2048 coarse - digit (4096 upper + lower), and the same for what is fine
    rest = tape.Mul(tape.Sub(coarse, tape.Mul(tape.Mul(digit, upper), number(2))), base)
    rest = tape.Sub(rest, tape.Mul(digit, lower))
    rest = tape.Add(rest, tape.Sub(tape.Mul(fine, base), tape.Mul(digit, sum_fine)))
    second = tape.Div(tape.Mul(rest, base), whole)
    return digit, tape.Mul(tape.Floor(tape.Add(second, number(0.5))), number(1 / 2048))
