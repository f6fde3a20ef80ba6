"""Markup that the sections of the page share."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from vitdeploy.backends.registry import runs_bundles
from vitdeploy.report.formatting import backend_name, form_name
from vitdeploy.report.records import Row

__all__ = ["NARROW", "WIDE", "colour", "columns", "name_cell", "section", "table_card"]

WIDE, NARROW = 1000, 360  # pictures are drawn twice, so that their text has one size on a phone and on a desk


def section(title: str, lead: str, content: str) -> str:
    """A heading, a sentence or two (markup), and what they are about (markup)."""
    return f"<h2>{escape(title)}</h2><p>{lead}</p>{content}\n"


def columns(heads: Iterable[str]) -> str:
    """The heads (markup) of a table's columns."""
    return "".join(f'<th scope="col">{head}</th>' for head in heads)


def table_card(first: str, head: str, lines: Iterable[str], kind: str = "") -> str:
    """A table on a card: the head of the column of names, the other heads (markup), its lines; `kind` is its class."""
    style = f' class="{kind}"' if kind else ""
    return (
        f'<div class="card scroll"><table{style}><thead>'
        f'<tr><th class="name" scope="col">{first}</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def name_cell(row: Row, note: str = "") -> str:
    """The first cell of a form's line; `note` is markup below it."""
    return f'<td class="name"><b>{escape(form_name(row.form))}</b><small>{escape(backend_name(row))}</small>{note}</td>'


def colour(row: Row) -> str:
    """The class that colours a row's marks: by precision, and the ways to run PyTorch apart from each other."""
    if not runs_bundles(row.backend) and row.form in ("fp32", "bf16-compile"):
        return "c-baseline" if row.form == "fp32" else "c-compile"
    return f"c-{row.form.partition('-')[0]}"
