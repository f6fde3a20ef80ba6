"""How numbers and names are written on the page."""

from __future__ import annotations

from html import escape
from typing import Any

from vitdeploy.bench.report import Row
from vitdeploy.bench.verdict import backend_name, form_name

__all__ = ["NARROW", "WIDE", "colour", "count", "ms", "name_cell", "percent", "rate", "section", "size_words"]

WIDE, NARROW = 1000, 360  # pictures are drawn twice, so that their text has one size on a phone and on a desk


def section(title: str, lead: str, content: str) -> str:
    """A heading, a sentence or two (markup), and what they are about (markup)."""
    return f"<h2>{escape(title)}</h2><p>{lead}</p>{content}\n"


def name_cell(row: Row, note: str = "") -> str:
    """The first cell of a form's line; `note` is markup below it."""
    return f'<td class="name"><b>{escape(form_name(row.form))}</b><small>{escape(backend_name(row))}</small>{note}</td>'


def colour(row: Row) -> str:
    """The class that colours a row's marks: by precision, and the ways to run PyTorch apart from each other."""
    if row.backend == "pytorch" and row.form in ("fp32", "bf16-compile"):
        return "c-baseline" if row.form == "fp32" else "c-compile"
    return f"c-{row.form.partition('-')[0]}"


def size_words(size_bytes: int | None) -> str:
    """Bytes in GB, MB or kB (powers of ten)."""
    if size_bytes is None:
        return "–"
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.2f} GB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"


def count(number: Any, unit: str) -> str:
    """A number with its unit: "1 core", "8,000 images"."""
    return "" if number is None else f"{number:,} {unit}{'' if number == 1 else 's'}"


def ms(value: float) -> str:
    """Milliseconds with as many digits as mean something."""
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def rate(value: float) -> str:
    """Images per second."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f} %"
