"""Pillow's integer weights, computed by float32 operations of the graph.

Where the true sum of a pass is a half, Pillow's rounded weights decide the level, so a weight that is off by one in 22
bits can show. Bilinear and bicubic weights are ratios of integers, and are computed here without rounding errors that
matter: every product and remainder is arranged to stay below 2**24, where float32 is exact. That holds for axes of up
to 4096. Some weights of hamming and lanczos are off by one, for their sines have single precision.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.preprocessing.filters import PRECISION_BITS
from vitdeploy.compiler.preprocessing.tape import Tape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["weights_of"]

_UNITS = float(1 << PRECISION_BITS)


def weights_of(tape: Tape, resample: str, distance: ir.Value, limit: ir.Value) -> ir.Value:
    """Weights in units of 2**-22 at x = distance / limit.

    `distance` (blocks, length, block) and `limit` are whole numbers in float32; the weights of one output lie along
    `length` and are all there is of that output.
    """
    if resample == "bilinear":
        return _bilinear(tape, distance, limit)
    if resample == "bicubic":
        return _bicubic(tape, distance, limit)
    x = tape.Div(distance, limit)
    values = _hamming(tape, x) if resample == "hamming" else _lanczos(tape, x)
    values = tape.Div(values, tape.ReduceSum(values, tape.ints(1), keepdims=1))
    return tape.Round(tape.Mul(values, tape.scalar(_UNITS, np.float32)))


def _bilinear(tape: Tape, distance: ir.Value, limit: ir.Value) -> ir.Value:
    """u / U with u = limit - distance and U, the sum of an output's u.

    A long division in digits of 11, 6 and 5 bits: one that the division gets wrong by one is made good by the next.
    """
    zero = tape.scalar(0, np.float32)
    rest = tape.Max(tape.Sub(limit, distance), zero)
    total = tape.ReduceSum(rest, tape.ints(1), keepdims=1)
    weights = zero
    for bits in (11, 6, 5):
        base = tape.scalar(1 << bits, np.float32)
        rest = tape.Mul(rest, base)
        quotient = tape.Div(rest, total)
        # the last digit is rounded, halves up
        digit = tape.Floor(tape.Add(quotient, tape.scalar(0.5, np.float32)) if bits == 5 else quotient)
        rest = tape.Sub(rest, tape.Mul(digit, total))
        weights = tape.Add(tape.Mul(weights, base), digit)
    return weights


def _bicubic(tape: Tape, distance: ir.Value, limit: ir.Value) -> ir.Value:
    """The cubic in two floats, their sums, and a division with remainder.

    With y = x below 1 and y = 2 - x from there to 2, the filter is 1 - y^2 (5 - 3y) / 2 or -y^2 (1 - y) / 2. Let
    1024 y = h + t with a whole h and 0 <= t < 1. The value at h is a whole number of 2**-31; in units of 2**-22 it is
    kept as coarse + fine: `coarse` is a whole number, `fine` takes the rest and what t adds.
    """

    def number(value: float) -> ir.Value:
        return tape.scalar(value, np.float32)

    near = tape.Less(distance, limit)
    y = tape.Where(near, distance, tape.Max(tape.Sub(tape.Mul(limit, number(2)), distance), number(0)))
    scaled = tape.Mul(y, number(1024))
    h = tape.Floor(tape.Div(scaled, limit))
    t = tape.Div(tape.Sub(scaled, tape.Mul(h, limit)), limit)
    # g = y^2 (a - b y) in units of 2**-30
    a = tape.Where(near, number(5 * 1024), number(1024))
    b = tape.Where(near, number(3), number(1))
    factor = tape.Sub(a, tape.Mul(b, h))
    square = tape.Mul(h, h)
    upper = tape.Floor(tape.Mul(square, number(1 / 1024)))
    lower = tape.Sub(square, tape.Mul(upper, number(1024)))
    # g(h + t) - g(h) = t (2 a h - 3 b h^2 + t (a - 3 b h - b t))
    bend = tape.Sub(tape.Sub(a, tape.Mul(tape.Mul(b, h), number(3))), tape.Mul(b, t))
    slope = tape.Mul(h, tape.Sub(tape.Mul(a, number(2)), tape.Mul(tape.Mul(b, h), number(3))))
    more = tape.Mul(t, tape.Add(slope, tape.Mul(t, bend)))
    # f = 1 or 0, less g / 2: in units of 2**-22 g counts 2**-9
    coarse = tape.Sub(tape.Where(near, number(_UNITS), number(0)), tape.Mul(tape.Mul(upper, factor), number(2)))
    fine = tape.Mul(tape.Add(tape.Mul(lower, factor), more), number(-1 / 512))
    return _quotient(tape, coarse, fine)


def _quotient(tape: Tape, coarse: ir.Value, fine: ir.Value) -> ir.Value:
    """(coarse + fine) / their sum along `length`, rounded to units of 2**-22: two digits of 11 bits."""

    def number(value: float) -> ir.Value:
        return tape.scalar(value, np.float32)

    def carry(value: ir.Value) -> tuple[ir.Value, ir.Value]:
        upper = tape.Floor(tape.Mul(value, number(1 / 4096)))
        return upper, tape.Sub(value, tape.Mul(upper, number(4096)))

    def total(value: ir.Value) -> ir.Value:
        return tape.ReduceSum(value, tape.ints(1), keepdims=1)

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
    return tape.Add(tape.Mul(digit, base), tape.Floor(tape.Add(second, number(0.5))))


def _hamming(tape: Tape, x: ir.Value) -> ir.Value:
    near = tape.Min(x, tape.scalar(1, np.float32))
    wave = tape.Cos(tape.Mul(near, tape.scalar(math.pi, np.float32)))
    window = tape.Add(tape.scalar(0.54, np.float32), tape.Mul(tape.scalar(0.46, np.float32), wave))
    return tape.Mul(_sinc(tape, near), window)


def _lanczos(tape: Tape, x: ir.Value) -> ir.Value:
    near = tape.Min(x, tape.scalar(3, np.float32))
    return tape.Mul(_sinc(tape, near), _sinc(tape, tape.Div(near, tape.scalar(3, np.float32))))


def _sinc(tape: Tape, x: ir.Value) -> ir.Value:
    """sin(pi x) / (pi x); below 1e-4 it is 1 in float32."""
    angle = tape.Mul(tape.Max(x, tape.scalar(1e-4, np.float32)), tape.scalar(math.pi, np.float32))
    return tape.Div(tape.Sin(angle), angle)
