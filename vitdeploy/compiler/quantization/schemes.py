"""How a form spells rounded numbers: a row of `compiler/forms.py` names its scheme, `insert_qdq` writes it.

x -> QuantizeLinear(Sx, zero_point) -> DequantizeLinear -> product(., DequantizeLinear(store(W, Sw), Sw))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vitdeploy.compiler.quantization.arithmetic import E4M3, INT8, LEVELS, Numbers

__all__ = ["FP8", "INT8_SIGNED", "INT8_UNSIGNED", "Scheme"]


def _int8(exact: np.ndarray, scales: np.ndarray) -> np.ndarray:
    stored: np.ndarray = np.clip(np.rint(exact / scales), -LEVELS, LEVELS).astype(np.int8)
    return stored


def _fp8_type() -> type[np.generic]:
    import ml_dtypes

    found: type[np.generic] = ml_dtypes.float8_e4m3fn
    return found


def _fp8(exact: np.ndarray, scales: np.ndarray) -> np.ndarray:
    stored: np.ndarray = np.clip(exact / scales, -E4M3.top, E4M3.top).astype(_fp8_type())
    return stored


@dataclass(frozen=True, eq=False)
class Scheme:
    """A way to store what a calibration rounds.

    Args:
        zero_point: from the levels that a one-sided activation is shifted by to the zero point of a product's left
            operand, in the operand's type.
        shifts_in_zero_point: whether the shift is only there; else it is subtracted before QuantizeLinear.
        softmax_zero_point: of the softmax's output where the calibration has a scale for a one-sided range; None: that
            output is like every left operand.
        dtype: gives the type of weights and of right operands, whose zero points are zero.
        store: weights (channels in, channels out) and their scales to what is stored, in `dtype`.
        numbers: what the calibration rounds to.
    """

    zero_point: Callable[[int], np.ndarray]
    shifts_in_zero_point: bool
    softmax_zero_point: np.ndarray | None = None
    dtype: Callable[[], type[np.generic]] = lambda: np.int8
    store: Callable[[np.ndarray, np.ndarray], np.ndarray] = _int8
    numbers: Numbers = INT8


INT8_SIGNED = Scheme(lambda shift: np.array(0, dtype=np.int8), shifts_in_zero_point=False)
"""Zero points are zero, as TensorRT wants them."""
INT8_UNSIGNED = Scheme(
    lambda shift: np.array(LEVELS + 1 - shift, dtype=np.uint8),
    shifts_in_zero_point=True,
    softmax_zero_point=np.array(0, dtype=np.uint8),
)
"""The same real numbers with unsigned left operands, for which x86 has fast products; the softmax has 255 steps."""
FP8 = Scheme(
    lambda shift: np.zeros((), dtype=_fp8_type()), shifts_in_zero_point=False, dtype=_fp8_type, store=_fp8, numbers=E4M3
)
"""E4M3 on both sides of a product, as TensorRT wants it."""
