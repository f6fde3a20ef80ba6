"""The section on layers: what each costs in accuracy when it alone is INT8, where `vitdeploy analyze` has been run."""

from __future__ import annotations

from html import escape
from typing import Any

from vitdeploy.bench.page.words import section
from vitdeploy.bench.report import BenchReport

__all__ = ["layers_section"]

_MOST = 24


def layers_section(report: BenchReport) -> str:
    """The layers that cost most, as bars."""
    rows = [row for row in (report.analysis or {}).get("rows", []) if row.get("layer")]
    if not rows:
        return ""
    key = "drop" if any(row.get("drop") is not None for row in rows) else "sqnr_db"
    rows = [row for row in rows if row.get(key) is not None]
    # A large drop is bad, and so is a low signal-to-noise ratio.
    rows.sort(key=lambda row: -row["drop"] if key == "drop" else row["sqnr_db"])
    shown = rows[:_MOST]
    most = max((abs(row["drop"]) for row in shown), default=0) if key == "drop" else 0
    lines = "".join(_line(row, most) for row in shown)
    lead = (
        "What happens when one layer alone is in INT8: points of top-1 that are lost, the signal-to-noise ratio of its "
        "output, and how often the best class stays the same. The most sensitive first"
        + (f", {len(shown)} of {len(rows)}." if len(shown) < len(rows) else ".")
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("points lost", "SQNR dB", "agreement", "of all work"))
    card = (
        f'<div class="card scroll"><table><thead><tr><th class="name" scope="col">layer</th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
    return section("Layer by layer", lead, card)


def _line(row: dict[str, Any], most: float) -> str:
    drop = row.get("drop")
    share = 0.0 if drop is None or not most else 100 * abs(drop) / most
    tint = "loss" if (drop or 0) > 0 else "gain"
    bar = f'<td class="meter {tint}"><i style="width:{share:.1f}%"></i><span>{_number(drop, "{:+.2f}")}</span></td>'
    name = f"<b>{escape(str(row['layer']))}</b><small>{escape(str(row.get('kind') or ''))}</small>"
    others = "".join(
        f"<td>{value}</td>"
        for value in (
            _number(row.get("sqnr_db"), "{:.1f}"),
            _number(_percent(row.get("agreement")), "{:.2f} %"),
            _number(_percent(row.get("macs_share")), "{:.1f} %"),
        )
    )
    return f'<tr><td class="name layer">{name}</td>{bar}{others}</tr>'


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value).replace("-", "−")
