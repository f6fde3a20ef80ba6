"""The training curve as data and as a picture; the picture needs no plotting package."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from vitdeploy.core.svg import linear
from vitdeploy.training.result import Curve
from vitdeploy.training.scoring import SCORINGS, Scoring

__all__ = ["curve_from_log", "draw_curve"]

_PANEL_WIDTH, _PANEL_HEIGHT, _MARGIN, _TOP = 360, 220, 56, 40
_BLUE, _ORANGE, _GREY = "#2563eb", "#ea580c", "#9ca3af"
Point = tuple[float, float]


def curve_from_log(history: Sequence[dict[str, Any]], best_step: int | None, scoring: Scoring = SCORINGS[0]) -> Curve:
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
        validation=points({f"eval_{scoring.metric}": scoring.metric, "eval_loss": "loss"}),
        best_step=best_step,
    )


def draw_curve(curve: Curve, title: str) -> str:
    """An SVG of two panels: the losses and the validation accuracy (of several labels mAP), over steps."""
    named = {scoring.metric: scoring.title for scoring in SCORINGS}
    metric = next((name for point in curve.validation for name in named if name in point), SCORINGS[0].metric)
    train = [(point["step"], point["loss"]) for point in curve.train]
    losses = [(point["step"], point["loss"]) for point in curve.validation]
    accuracies = [(point["step"], 100 * point[metric]) for point in curve.validation]
    panels = [
        _panel(0, "loss", [("train", _BLUE, train), ("validation", _ORANGE, losses)], curve.best_step),
        _panel(1, f"validation {named[metric]}, %", [("validation", _ORANGE, accuracies)], curve.best_step),
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
    steps = [x for x, _ in points]
    across = linear(steps, left, left + _PANEL_WIDTH, pad=0 if len(set(steps)) > 1 else 0.5)
    up = linear([y for _, y in points], top + _PANEL_HEIGHT, top, pad=0.02)
    parts = [
        f'<rect x="{left}" y="{top}" width="{_PANEL_WIDTH}" height="{_PANEL_HEIGHT}" fill="none" stroke="{_GREY}"/>',
        f'<text x="{left}" y="{top - 8}">{escape(name)}</text>',
        f'<text x="{left + _PANEL_WIDTH / 2}" y="{top + _PANEL_HEIGHT + 34}" text-anchor="middle">step</text>',
    ]
    for tick in across.ticks:
        if float(tick).is_integer():  # steps are whole
            parts.append(
                f'<text x="{across(tick):.1f}" y="{top + _PANEL_HEIGHT + 16}" text-anchor="middle">{tick:g}</text>'
            )
    for tick in up.ticks:
        parts.append(f'<text x="{left - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    if best_step is not None and across.low <= best_step <= across.high:
        x = across(best_step)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + _PANEL_HEIGHT}" stroke="{_GREY}"'
            ' stroke-dasharray="4 3"><title>the weights that were kept</title></line>'
        )
    for position, (label, colour, line) in enumerate(lines):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
            f'<text x="{left + _PANEL_WIDTH - 8}" y="{top + 18 + 16 * position}" text-anchor="end" fill="{colour}">'
            f"{escape(label)}</text>"
        )
    return "".join(parts)
