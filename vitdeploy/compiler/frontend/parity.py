"""Numerical checks whose result is printed and stored: what was compared, how far apart, what is allowed.

    relative = max |a - b| / (max b - min b)

over all logits of all inputs, b the reference. A logit's own size says nothing (a bias moves it freely); the range of
the reference's logits is the scale on which classes are told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Check", "compare", "compare_levels"]


@dataclass(frozen=True)
class Check:
    """One comparison: `value` is at most `tolerance`, or `passed` is False."""

    name: str
    value: float
    tolerance: float
    unit: str
    inputs: int

    @property
    def passed(self) -> bool:
        return bool(np.isfinite(self.value)) and self.value <= self.tolerance

    def __str__(self) -> str:
        mark = "✓" if self.passed else "✗"
        sign = "≤" if self.passed else ">"
        return f"{mark} {self.name}: {self.value:.2g} {sign} {self.tolerance:.2g} {self.unit} ({self.inputs} inputs)"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "passed": self.passed}


def compare(
    name: str, values: np.ndarray, reference: np.ndarray, tolerance: float, *, of: str = "the logits' range"
) -> Check:
    """Compare logits of shape (inputs, classes) by their largest difference, relative to the reference's range."""
    spread = float(reference.max() - reference.min())
    worst = float(np.abs(values.astype(np.float64) - reference.astype(np.float64)).max())
    relative = worst / spread if spread > 0 else worst
    return Check(name, relative if np.isfinite(relative) else float("inf"), tolerance, f"of {of}", len(reference))


def compare_levels(name: str, values: list[np.ndarray], references: list[np.ndarray], level: np.ndarray) -> Check:
    """Compare pixel values (channels, height, width) in units of `level` (channels,): one step of 255."""
    worst = max(
        float((np.abs(value - reference).max(axis=(1, 2)) / level).max())
        for value, reference in zip(values, references, strict=True)
    )
    # Half a level of slack: both sides round to whole levels first, then scale in float32.
    return Check(name, worst, 1.01, "levels of 255", len(references))
