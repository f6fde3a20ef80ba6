"""The pictures of the report page, as inline SVG: accuracy against latency, and the times of each form."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np

from vitdeploy.backends.registry import known
from vitdeploy.core.svg import Scale, element, linear, logarithmic, picture, text
from vitdeploy.report.formatting import backend_name, form_name, named, points
from vitdeploy.report.html.markup import colour
from vitdeploy.report.recommendation import pareto_front
from vitdeploy.report.records import BenchReport, Row

__all__ = ["compared", "distributions", "mark", "tradeoff"]

_CHARACTER = 9.3  # pixels, the mean width of a character at the size of labels, in a wide font
_MOST_DOTS = 150


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        """The area that both boxes cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def mark(backend: str, x: float, y: float, size: float = 6.5) -> str:
    """A backend's shape around a point."""
    spec = known(backend)
    corners = () if spec is None else spec.mark
    if not corners:
        return element("circle", cx=x, cy=y, r=size)
    return element("polygon", points=" ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners))


def compared(report: BenchReport) -> list[Row]:
    """The baseline and the rows of which the change against it is known, all of them timed."""
    found = [row for row in report.rows if row.latency and row.quality]
    return [row for row in found if row is report.base or (row.quality and row.quality.delta is not None)]


def tradeoff(report: BenchReport, width: int, class_: str) -> str | None:
    """Change of the metric by median latency, paired intervals, the Pareto front, the budget; None without both."""
    rows = compared(report)
    if len(rows) < 2:
        return None
    metric = rows[0].quality.metric  # type: ignore[union-attr]
    height = round(min(420, max(320, width * 0.56)))
    left, right, top, bottom = 54, width - 14, 18, height - 46
    limit = report.settings.max_drop_points
    x = _times([row.latency.ms.p50 for row in rows if row.latency], left, right, pad=0.12)
    spans = [value for row in rows for value in (_change(row)[0], *_change(row)[1])]
    y = linear([*spans, 0.0, *([-limit] if min(spans) < -0.3 * limit else [])], bottom, top, pad=0.1)
    parts = [_grid(x, y, left, right, top, bottom)]
    if y.low < -limit:
        parts.append(element("rect", x=left, y=y(-limit), width=right - left, height=bottom - y(-limit), class_="lost"))
        unit = "point" if limit == 1 else "points"
        parts.append(text(f"loses more than {limit:g} {unit}", x=left + 8, y=bottom - 8, class_="hint"))
    parts.append(element("line", x1=left, x2=right, y1=y(0.0), y2=y(0.0), class_="zero"))
    best = pareto_front(report.rows)
    line = sorted((x(row.latency.ms.p50), y(_change(row)[0])) for row in rows if row.key in best and row.latency)
    if line:
        parts.append(element("path", d="M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in line), class_="front"))
    taken = [
        _Box(x(r.latency.ms.p50) - 9, y(_change(r)[0]) - 9, x(r.latency.ms.p50) + 9, y(_change(r)[0]) + 9)
        for r in rows
        if r.latency
    ]
    border = _Box(left, top - 6, right + 4, bottom)
    for row in sorted(rows, key=lambda row: row.key not in best):
        parts.append(_point(row, x, y, row.key in best))
        # On a narrow picture shape and colour have to do: names would cover each other.
        label = form_name(row.form) if width < 600 else f"{form_name(row.form)} {backend_name(row)}"
        parts.append(_placed(label, x(row.latency.ms.p50), y(_change(row)[0]), taken, border))  # type: ignore[union-attr]
    parts.append(text("median latency, ms", x=(left + right) / 2, y=height - 8, class_="axis", text_anchor="middle"))
    parts.append(text(f"{metric} change, points", x=8, y=11, class_="axis"))
    return picture(width, height, "".join(parts), title=f"Change of {metric} against median latency", class_=class_)


def distributions(report: BenchReport, width: int, class_: str) -> str | None:
    """The kept samples of every form on one time axis: dots, the middle half, and p50, p95 and p99."""
    rows = [row for row in report.rows if row.latency]
    if not rows:
        return None
    spacing, left, right = 58, 10, width - 12
    height = spacing * len(rows) + 44
    ends = [
        value
        for row in rows
        if row.latency
        for value in (row.latency.ms.min, row.latency.ms.p99 or max(row.latency.ms.samples))
    ]
    x = _times(ends, left, right, pad=0.04)
    base = height - 40
    parts = []
    for tick in x.ticks:
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=4, y2=base, class_="grid"))
        parts.append(text(f"{tick:g}", x=x(tick), y=base + 17, class_="tick", text_anchor="middle"))
    jitter = np.random.default_rng(0)
    for place, row in enumerate(rows):
        parts.append(_samples_of(row, x, place * spacing + 36.0, width, jitter))
    parts.append(text("milliseconds per call", x=(left + right) / 2, y=height - 6, class_="axis", text_anchor="middle"))
    return picture(width, height, "".join(parts), title="Distribution of the latency of each form", class_=class_)


def _samples_of(row: Row, x: Scale, middle: float, width: int, jitter: np.random.Generator) -> str:
    assert row.latency is not None
    latency = row.latency.ms
    samples = np.sort(np.asarray(latency.samples))
    if len(samples) > _MOST_DOTS:
        samples = np.quantile(samples, np.linspace(0, 1, _MOST_DOTS))
    low, high = np.percentile(latency.samples, [25, 75])
    dots = "".join(
        element("circle", cx=x(float(value)), cy=middle + float(jitter.uniform(-7, 7)), r=2) for value in samples
    )
    box = element(
        "rect", x=x(float(low)), y=middle - 8, width=max(2.0, x(float(high)) - x(float(low))), height=16, rx=3
    )
    lines = "".join(
        element("line", x1=x(value), x2=x(value), y1=middle - size, y2=middle + size, class_=name)
        for name, value, size in (("p50", latency.p50, 11), ("p95", latency.p95, 7), ("p99", latency.p99, 7))
        if value is not None
    )
    label = text(named(row), x=10, y=middle - 17, class_="row")
    high_name, highest = next(
        ((name, value) for name in ("p99", "p95", "p90") if (value := getattr(latency, name)) is not None),
        ("max", max(latency.samples)),
    )
    short = f"p50 {_number(latency.p50)}, {high_name} {_number(highest)} ms"
    shown = short if width >= 600 else f"{_number(latency.p50)} · {_number(highest)} ms"
    value = text(shown, x=width - 12, y=middle - 17, class_="value", text_anchor="end")
    title = element("title", escape(f"{named(row)}: {short}, {len(latency.samples)} samples kept"))
    marks = element("g", dots, class_="dots") + element("g", box, class_="half") + lines
    return element("g", title + label + value + marks, class_=f"series {colour(row)}")


def _times(values: list[float], start: float, end: float, pad: float) -> Scale:
    if max(values) > 4 * min(values):
        return logarithmic(values, start, end, pad=pad)
    return linear(values, start, end, pad=pad)


def _change(row: Row) -> tuple[float, tuple[float, float]]:
    """Change in points and its interval; the baseline is where it is."""
    assert row.quality is not None
    if row.quality.delta is None or row.quality.delta_ci95 is None:
        return 0.0, (0.0, 0.0)
    low, high = row.quality.delta_ci95
    return 100 * row.quality.delta, (100 * low, 100 * high)


def _grid(x: Scale, y: Scale, left: float, right: float, top: float, bottom: float) -> str:
    parts = []
    for tick in y.ticks:
        parts.append(element("line", x1=left, x2=right, y1=y(tick), y2=y(tick), class_="grid"))
        shown = f"{'−' if tick < 0 else '+' if tick > 0 else ''}{abs(tick):g}"
        parts.append(text(shown, x=left - 8, y=y(tick) + 4, class_="tick", text_anchor="end"))
    for tick in x.ticks:
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=top, y2=bottom, class_="grid"))
        parts.append(text(f"{tick:g}", x=x(tick), y=bottom + 18, class_="tick", text_anchor="middle"))
    return "".join(parts)


def _point(row: Row, x: Scale, y: Scale, on_front: bool) -> str:
    assert row.latency is not None and row.quality is not None
    value, (low, high) = _change(row)
    px, py = x(row.latency.ms.p50), y(value)
    words = f"{named(row)}: {_number(row.latency.ms.p50)} ms, {row.quality.metric} {100 * row.quality.value:.2f} %"
    if row.quality.delta is not None:
        words += f", {points(row.quality.delta)} points"
    title = element("title", escape(words))
    whisker = element("line", x1=px, x2=px, y1=y(low), y2=y(high), class_="whisker") if high > low else ""
    kind = f"series {colour(row)}" + (" on-front" if on_front else "")
    return element("g", title + whisker + mark(row.backend, px, py), class_=kind)


def _placed(label: str, px: float, py: float, taken: list[_Box], border: _Box) -> str:
    """A label beside its point, where it covers least of what is there already."""
    width = _CHARACTER * len(label)
    options = []
    for step in (0, 15, 30, 45):
        for dy in {4 - step, 4 + step}:
            options += [("start", px + 12, py + dy), ("end", px - 12, py + dy)]
        options += [("middle", px, py - 14 - step), ("middle", px, py + 22 + step)]
    best: tuple[float, str, float, float, _Box] | None = None
    for rank, (anchor, lx, ly) in enumerate(options):
        start = lx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        box = _Box(start - 4, ly - 11, start + width + 4, ly + 3)  # with its outline
        outside = max(
            0.0, border.left - box.left, box.right - border.right, border.top - box.top, box.bottom - border.bottom
        )
        covered = [area for area in map(box.overlap, taken) if area > 0]
        cost = sum(covered) + 40 * len(covered) + 100 * outside + rank
        if best is None or cost < best[0]:
            best = (cost, anchor, lx, ly, box)
    assert best is not None
    taken.append(best[4])
    return text(label, x=best[2], y=best[3], class_="label", text_anchor=best[1])


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
