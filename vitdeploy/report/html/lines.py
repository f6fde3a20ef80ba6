"""A line chart as inline SVG: one line a form, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from vitdeploy.core.svg import element, logarithmic, picture, text
from vitdeploy.report.html.scatter import mark

__all__ = ["Series", "line_chart"]


@dataclass(frozen=True)
class Series:
    """One line: (x, y) in rising order of x, all positive; `shape` is a backend, `colour` a class."""

    name: str
    colour: str
    shape: str
    values: tuple[tuple[float, float], ...]


def line_chart(
    series: list[Series], width: int, class_: str, x_title: str, y_title: str, x_names: Mapping[float, str]
) -> str:
    """The chart; ticks of x are the values that were measured, in figures or as `x_names` calls them."""
    height = round(min(400, max(300, width * 0.5)))
    left, right, top, bottom = 54, width - 18, 26, height - 46
    x_values = sorted({x for item in series for x, _ in item.values})
    x = logarithmic(x_values, left, right, pad=0.05)
    y = logarithmic([value for item in series for _, value in item.values], bottom, top, pad=0.08)
    parts = []
    for tick in y.ticks:
        parts.append(element("line", x1=left, x2=right, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(text(f"{tick:g}", x=left - 8, y=y(tick) + 4, class_="tick", text_anchor="end"))
    for value in x_values:
        parts.append(element("line", x1=x(value), x2=x(value), y1=top, y2=bottom, class_="grid"))
        shown = x_names.get(value, f"{value:.3g}")
        parts.append(text(shown, x=x(value), y=bottom + 18, class_="tick", text_anchor="middle"))
    for item in series:
        path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in item.values)
        points = ""
        for a, b in item.values:
            words = f"{item.name}: {x_names.get(a, f'{a:.3g} {x_title}')}, {b:.3g} {y_title}"
            points += element("g", element("title", escape(words)) + mark(item.shape, x(a), y(b), 4.5))
        line = element("path", d=path, class_="line")
        parts.append(element("g", line + points, class_=f"series {item.colour} on-front"))
    parts.append(text(x_title, x=(left + right) / 2, y=height - 8, class_="axis", text_anchor="middle"))
    parts.append(text(y_title, x=8, y=13, class_="axis"))
    return picture(width, height, "".join(parts), title=f"{y_title} against {x_title}", class_=class_)
