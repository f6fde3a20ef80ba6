"""A very small SVG writer: escaped elements, scales, and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Scale", "element", "linear", "logarithmic", "picture", "text"]


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels; `ticks` are round values inside the range."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The pixel of a value; values outside stick to the border."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def linear(values: Sequence[float], start: float, end: float, *, pad: float = 0.06, most: int = 6) -> Scale:
    """A scale that holds all values, with `pad` of the range free at both ends, and at most `most` ticks."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    low, high = low - pad * spread, high + pad * spread
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    ticks = tuple(round((first + i) * step, 10) for i in range(int((high - first * step) / step + 1e-9) + 1))
    return Scale(low, high, start, end, False, ticks)


def logarithmic(values: Sequence[float], start: float, end: float, *, pad: float = 0.06) -> Scale:
    """A logarithmic scale for positive values, with ticks at round values, at most seven."""
    low, high = math.log(min(values)), math.log(max(values))
    spread = (high - low) or 1.0
    bottom, top = math.exp(low - pad * spread), math.exp(high + pad * spread)
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    ticks: list[float] = []
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1,)):
        ticks = [10.0**power * factor for power in powers for factor in factors]
        ticks = [tick for tick in ticks if bottom <= tick <= top]
        if len(ticks) <= 7:
            break
    return Scale(bottom, top, start, end, True, tuple(ticks))


def element(tag: str, content: str = "", **attributes: object) -> str:
    """An element; `content` is markup already, attribute values are escaped; `_` in a name stands for `-`."""
    parts = []
    for name, value in attributes.items():
        if value is None:
            continue
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f' {name.rstrip("_").replace("_", "-")}="{escape(shown, quote=True)}"')
    return f"<{tag}{''.join(parts)}>{content}</{tag}>"


def text(value: object, **attributes: object) -> str:
    """A text element with escaped content."""
    return element("text", escape(str(value)), **attributes)


def picture(width: float, height: float, content: str, *, title: str, class_: str) -> str:
    """An SVG that fills the width it is given; `title` is read out by screen readers."""
    label = element("title", escape(title))
    return element("svg", label + content, viewBox=f"0 0 {width:g} {height:g}", role="img", class_=class_)
