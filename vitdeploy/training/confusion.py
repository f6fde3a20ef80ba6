"""The confusion matrix as counts and as a picture; the picture needs no plotting package."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["count_confusion", "draw_confusion"]

_CELL, _LEFT, _TOP = 34, 130, 150
_MOST_NUMBERED = 30  # more classes than this get smaller cells without numbers
_SMALL_CELL = 8


def count_confusion(
    label_ids: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> tuple[tuple[int, ...], ...]:
    """How often class i (row) was taken for class j (column)."""
    flat = np.bincount(label_ids * classes + predicted, minlength=classes * classes)
    return tuple(tuple(int(count) for count in row) for row in flat.reshape(classes, classes))


def draw_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> str:
    """An SVG: rows are the labels, columns the predictions; a cell's shade is its share of the row."""
    numbered = len(labels) <= _MOST_NUMBERED
    cell = _CELL if numbered else _SMALL_CELL
    left, top = (_LEFT, _TOP) if numbered else (40, 60)
    side = cell * len(labels)
    parts = [f'<text x="16" y="26" font-size="15">{escape(title)}</text>']
    for row, counts in enumerate(confusion):
        total = max(1, sum(counts))
        for column, count in enumerate(counts):
            x, y, share = left + column * cell, top + row * cell, count / total
            colour = "#16a34a" if row == column else "#dc2626"
            words = f"{labels[row]} taken for {labels[column]}: {count} of {total}"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{colour}"'
                f' fill-opacity="{_shade(share):.3f}"><title>{escape(words)}</title></rect>'
            )
            if numbered and count:
                middle = f'x="{x + cell / 2}" y="{y + cell / 2 + 4}" text-anchor="middle"'
                parts.append(f'<text {middle} font-size="11">{count}</text>')
    if numbered:
        for index, label in enumerate(labels):
            offset = index * cell + cell / 2 + 4
            name = escape(label if len(label) <= 16 else f"{label[:15]}…")
            parts.append(f'<text x="{left - 8}" y="{top + offset}" text-anchor="end">{name}</text>')
            parts.append(f'<text transform="translate({left + offset},{top - 8}) rotate(-60)">{name}</text>')
    width, height = max(left + side + 70, 420), top + side + 40
    parts.append(
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#9ca3af"/>'
        f'<text x="{left}" y="{top + side + 24}" fill="#6b7280">rows: label, columns: prediction</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        f' font-size="12"><rect width="{width}" height="{height}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _shade(share: float) -> float:
    """Few confusions among many right answers must be seen: the square root lifts small shares."""
    return float(0.75 * np.sqrt(share))
