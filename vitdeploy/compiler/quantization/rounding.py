"""Which E4M3 number each weight of FP8 becomes, by the error of the layer's output: the nearest, or one beside it.

Rounding to the nearest makes the error of each weight small. What counts is the error of Y = X W; of one column w, over
all rows X of the calibration images,

    (w - q)^T H (w - q)     H = X^T X

So the weights are rounded one channel in after the other, the strongest channels first, and what each leaves is taken
out by those that are still to come (GPTQ, Frantar et al. 2023):

    e = (w_i - q_i) / U_ii      w_j -= U_ij e for j > i      U^T U = (H + d I)^-1, U upper triangular

E4M3 has an eighth of INT8's precision at the end of the range. For INT8 the same was lost in chance.
"""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt

from vitdeploy.compiler.quantization.arithmetic import E4M3, SMALLEST_SCALE, fake_quantize, half_scales
from vitdeploy.compiler.quantization.schemes import FP8

__all__ = ["Steps", "adaptive_steps", "divided_columns", "pack_steps", "stepped", "unpack_steps"]

_DAMPING = 0.01  # of the mean of H's diagonal; X is rounded too, which is noise of a tenth of that
_BLOCK = 64
_LAST = 126  # the place of 448 among the numbers above zero
_DIGITS = np.array([1, 3, 9, 27, 81], np.uint8)
Steps = npt.NDArray[np.int8]
"""How many representable numbers each weight is above the nearest: -1, 0 or 1."""


def stepped(stored: np.ndarray, steps: Steps | int) -> np.ndarray:
    """E4M3 numbers -> those that are `steps` representable numbers above them, at most 448 from zero."""
    bits = stored.view(np.uint8).astype(np.int16)  # a sign, and a magnitude that grows with its bits
    place = np.clip(np.where(bits < 128, bits, 128 - bits) + steps, -_LAST, _LAST)
    found: np.ndarray = np.where(place < 0, 128 - place, place).astype(np.uint8).view(stored.dtype)
    return found


def divided_columns(
    stored: np.ndarray, scales: np.ndarray, by: np.ndarray | np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 numbers (channels in, channels out) and their scales, for columns that are divided.

    Where a scale would be no normal float16 number, it is doubled and the numbers are halved, which is exact down to
    the smallest of them.
    """
    wanted = (scales / by).astype(np.float32)
    doubled = np.exp2(np.ceil(np.log2(np.maximum(SMALLEST_SCALE / wanted, 1)))).astype(np.float32)
    return (stored.astype(np.float32) / doubled).astype(stored.dtype), half_scales(wanted * doubled)


def adaptive_steps(weight: np.ndarray, scales: np.ndarray, moments: np.ndarray) -> Steps:
    """The steps (channels in, channels out) that make the error of the output small.

    Args:
        weight: (channels in, channels out).
        scales: Sw, one a column.
        moments: H, (channels in, channels in).
    """
    nearest = FP8.store(weight, scales)
    near, low, high = (stepped(nearest, steps).astype(np.float32) for steps in (0, -1, 1))
    left = (weight / scales).astype(np.float32)
    order = np.argsort(-np.diagonal(moments), kind="stable")
    factor = _factor(moments[np.ix_(order, order)])
    rounded = np.empty_like(near)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        errors = np.empty((len(block), weight.shape[1]), np.float32)
        for offset, channel in enumerate(block):
            place = start + offset
            best = np.clip(fake_quantize(left[channel], 1.0, numbers=E4M3), low[channel], high[channel])
            rounded[channel] = best
            errors[offset] = (left[channel] - best) / factor[place, place]
            rest = block[offset + 1 :]
            left[rest] -= factor[place, place + 1 : start + len(block), np.newaxis] * errors[offset]
        behind = order[start + len(block) :]
        left[behind] -= factor[start : start + len(block), start + len(block) :].T @ errors
    steps: Steps = np.sign(rounded - near).astype(np.int8)
    return steps


def _factor(moments: np.ndarray) -> np.ndarray:
    """U, float32."""
    exact = moments.astype(np.float64)
    exact[np.diag_indices_from(exact)] += max(_DAMPING * float(np.diagonal(exact).mean()), 1e-12)
    lower = np.linalg.cholesky(np.linalg.inv(exact))
    factor: np.ndarray = np.ascontiguousarray(lower.T).astype(np.float32)
    return factor


def pack_steps(steps: Steps) -> str:
    """Steps as text: five to a byte, in base 3, the first at the bottom; as many zeros as it takes at the end."""
    flat = np.ones(-(-steps.size // len(_DIGITS)) * len(_DIGITS), np.uint8)
    flat[: steps.size] = steps.reshape(-1) + 1
    return base64.b64encode((flat.reshape(-1, len(_DIGITS)) @ _DIGITS).astype(np.uint8).tobytes()).decode("ascii")


def unpack_steps(text: str) -> Steps:
    """The steps of a text, in one row, the zeros at the end included.

    Raises:
        ValueError: it is not one that `pack_steps` wrote.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if packed.size and packed.max() >= 3 ** len(_DIGITS):
        raise ValueError("steps in it are not -1, 0 or 1")
    steps: Steps = (packed[:, np.newaxis] // _DIGITS % 3).astype(np.int8).reshape(-1) - np.int8(1)
    return steps
