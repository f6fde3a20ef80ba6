"""The training curve as data and as a picture; the picture needs no plotting package."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from vitdeploy.training.result import Curve

__all__ = ["curve_from_log", "draw_curve"]

_PANEL_WIDTH, _PANEL_HEIGHT, _MARGIN, _TOP = 360, 220, 56, 40
_BLUE, _ORANGE, _GREY = "#2563eb", "#ea580c", "#9ca3af"
Point = tuple[float, float]


def curve_from_log(history: Sequence[dict[str, Any]], best_step: int | None) -> Curve:
    """Pick the curve out of the log that the Trainer keeps."""

    def points(wanted: dict[str, str]) -> tuple[dict[str, float], ...]:
        return tuple(
            {
                "step": entry["step"],
                "epoch": round(entry["epoch"], 4),
                **{new: entry[old] for old, new in wanted.items() if old in entry},
            }
            for entry in history
            if next(iter(wanted)) in entry
        )

    return Curve(
        train=points({"loss": "loss", "learning_rate": "learning_rate"}),
        validation=points({"eval_accuracy": "accuracy", "eval_loss": "loss"}),
        best_step=best_step,
    )


def draw_curve(curve: Curve, title: str) -> str:
    """An SVG of two panels: the losses and the validation accuracy, over steps."""
    train = [(point["step"], point["loss"]) for point in curve.train]
    losses = [(point["step"], point["loss"]) for point in curve.validation]
    accuracies = [(point["step"], 100 * point["accuracy"]) for point in curve.validation]
    panels = [
        _panel(0, "loss", [("train", _BLUE, train), ("validation", _ORANGE, losses)], curve.best_step),
        _panel(1, "validation accuracy, %", [("validation", _ORANGE, accuracies)], curve.best_step),
    ]
    width, height = 2 * (_PANEL_WIDTH + 2 * _MARGIN), _TOP + _PANEL_HEIGHT + 2 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        f' font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{_MARGIN}" y="26" font-size="15">{escape(title)}</text>{"".join(panels)}</svg>\n'
    )


def _panel(column: int, name: str, lines: list[tuple[str, str, list[Point]]], best_step: int | None) -> str:
    left, top = column * (_PANEL_WIDTH + 2 * _MARGIN) + _MARGIN, _TOP + _MARGIN / 2
    points = [point for _, _, line in lines for point in line]
    if not points:
        return f'<text x="{left}" y="{top + 20}" fill="{_GREY}">{escape(name)}: not measured</text>'
    steps, values = [x for x, _ in points], [y for _, y in points]
    x_low, x_high, y_low, y_high = *_range(steps), *_range(values)

    def place(x: float, y: float) -> Point:
        return (
            left + (x - x_low) / (x_high - x_low) * _PANEL_WIDTH,
            top + (y_high - y) / (y_high - y_low) * _PANEL_HEIGHT,
        )

    parts = [
        f'<rect x="{left}" y="{top}" width="{_PANEL_WIDTH}" height="{_PANEL_HEIGHT}" fill="none" stroke="{_GREY}"/>',
        f'<text x="{left}" y="{top - 8}">{escape(name)}</text>',
        f'<text x="{left + _PANEL_WIDTH / 2}" y="{top + _PANEL_HEIGHT + 34}" text-anchor="middle">step</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(x_low + share * (x_high - x_low), y_low + share * (y_high - y_low))
        parts.append(
            f'<text x="{x:.1f}" y="{top + _PANEL_HEIGHT + 16}" text-anchor="middle">'
            f"{x_low + share * (x_high - x_low):.0f}</text>"
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{y_low + share * (y_high - y_low):.3g}</text>'
        )
    if best_step is not None and x_low <= best_step <= x_high:
        x, _ = place(best_step, y_low)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + _PANEL_HEIGHT}" stroke="{_GREY}"'
            ' stroke-dasharray="4 3"><title>the weights that were kept</title></line>'
        )
    for position, (label, colour, line) in enumerate(lines):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
            f'<text x="{left + _PANEL_WIDTH - 8}" y="{top + 18 + 16 * position}" text-anchor="end" fill="{colour}">'
            f"{escape(label)}</text>"
        )
    return "".join(parts)


def _range(values: list[float]) -> Point:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
