"""Markup that the sections of the page share."""

from __future__ import annotations

from html import escape

from vitdeploy.backends.registry import runs_bundles
from vitdeploy.report.formatting import backend_name, form_name
from vitdeploy.report.records import Row

__all__ = ["NARROW", "WIDE", "colour", "name_cell", "section"]

WIDE, NARROW = 1000, 360  # pictures are drawn twice, so that their text has one size on a phone and on a desk


def section(title: str, lead: str, content: str) -> str:
    """A heading, a sentence or two (markup), and what they are about (markup)."""
    return f"<h2>{escape(title)}</h2><p>{lead}</p>{content}\n"


def name_cell(row: Row, note: str = "") -> str:
    """The first cell of a form's line; `note` is markup below it."""
    return f'<td class="name"><b>{escape(form_name(row.form))}</b><small>{escape(backend_name(row))}</small>{note}</td>'


def colour(row: Row) -> str:
    """The class that colours a row's marks: by precision, and the ways to run PyTorch apart from each other."""
    if not runs_bundles(row.backend) and row.form in ("fp32", "bf16-compile"):
        return "c-baseline" if row.form == "fp32" else "c-compile"
    return f"c-{row.form.partition('-')[0]}"
