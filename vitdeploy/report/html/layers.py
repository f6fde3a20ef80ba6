"""The section on layers: what each does to the model when it alone is rounded, as `vitdeploy analyze` found."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from vitdeploy.core.precisions import title
from vitdeploy.report.html.markup import columns, section, table_card
from vitdeploy.report.records import BenchReport

__all__ = ["layers_section"]

_MOST = 24
_COLUMNS = (  # head, field, how it is written
    ("SQNR, its output", "sqnr_db", "{:.1f} dB"),
    ("SQNR, the answer", "logits_db", "{:.1f} dB"),
    ("cosine", "cosine", "{:.5f}"),
    ("recall", "recall", "{:.4f}"),
    ("agreement", "agreement", "{:.2f} %"),
    ("of all work", "macs_share", "{:.1%}"),
)


def layers_section(report: BenchReport) -> str:
    """The most damaging layers, as bars."""
    rows: list[dict[str, Any]] = [
        {**row} for row in (report.analysis["rows"] if report.analysis else []) if row.get("layer")
    ]
    if not rows:
        return ""
    rows.sort(key=_damage, reverse=True)
    shown = rows[:_MOST]
    most = max(_noise(row) for row in shown) or 1.0
    parts = [column for column in _COLUMNS if any(row.get(column[1]) is not None for row in shown)]
    heads = ("points lost", *(name for name, _, _ in parts))
    cut = f" The first {len(shown)} of {len(rows)}." if len(shown) < len(rows) else ""
    same = "how often the best class stays the same"
    if any(row.get("cosine") is not None for row in shown):
        same = "what is kept of FP32's vectors: their cosine, their neighbours (recall), the nearest (agreement)"
    lead = (
        f"One group of layers in {_rounded_to(report)}, the rest in FP32: what is lost, the signal-to-noise ratio, and"
        f" {same}. The most damaging first; the bars compare the noise that reaches the answer."
        f"{_images(report)}{cut}"
    )
    lines = (_line(row, most, parts) for row in shown)
    return section("Layer by layer", lead, table_card("layer", columns(heads), lines))


def _rounded_to(report: BenchReport) -> str:
    precision = report.analysis.get("precision") if report.analysis else None
    return escape(title(precision or "int8"))


def _images(report: BenchReport) -> str:
    data = report.analysis["data"] if report.analysis else None
    if not isinstance(data, dict) or "count" not in data:
        return ""
    words = f" On {data['count']} images of {data.get('name')}, {data.get('split')}."
    return escape(words)


def _damage(row: dict[str, Any]) -> tuple[float, float]:
    """A large drop is bad, and so is much noise."""
    return row.get("drop") or 0.0, _noise(row)


def _noise(row: dict[str, Any]) -> float:
    """The amplitude of the noise relative to the signal, at the logits if that is known."""
    decibels = row.get("logits_db") if row.get("logits_db") is not None else row.get("sqnr_db")
    return 0.0 if decibels is None else float(10 ** (-decibels / 20))


def _line(row: dict[str, Any], most: float, columns: list[tuple[str, str, str]]) -> str:
    drop = row.get("drop")
    tint = "loss" if (drop or 0) > 0 else "even"
    lost = "–" if drop is None else f"{drop:+.2f}".replace("-", "−").replace("+0.00", "0.00")
    bar = f'<i style="width:{100 * _noise(row) / most:.1f}%"></i><span>{lost}</span>'
    layer = re.sub(r"([.+])", r"\1<wbr>", escape(str(row["layer"])))  # where a narrow column may break it
    name = f"<b>{layer}</b><small>{escape(str(row.get('kind') or ''))}</small>"
    cells = "".join(f"<td>{_written(row, field, form)}</td>" for _, field, form in columns)
    return f'<tr><td class="name layer">{name}</td><td class="meter {tint}">{bar}</td>{cells}</tr>'


def _written(row: dict[str, Any], field: str, form: str) -> str:
    value = row.get(field)
    return "–" if value is None else form.format(value).replace("-", "−")
