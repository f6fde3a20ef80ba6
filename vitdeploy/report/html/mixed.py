"""The section on an index that one form made and another searches."""

from __future__ import annotations

from html import escape

from vitdeploy.evaluation.vectors import Kept
from vitdeploy.report.html.markup import name_cell, section
from vitdeploy.report.mixed import Mixed, mixed
from vitdeploy.report.records import BenchReport

__all__ = ["mixed_section"]


def mixed_section(report: BenchReport) -> str:
    """Of every form that rounds, what it finds together with the baseline."""
    found = mixed(report)
    if not found:
        return ""
    base = escape(str(report.baseline.get("name") or "the baseline"))
    heads = ("queries and index of its own", f"its queries, index of {base}", f"queries of {base}, its index")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    lines = "".join(
        f"<tr>{name_cell(each.row)}{''.join(_cell(each, kept) for kept in (each.alone, each.queries, each.index))}</tr>"
        for each in found
    )
    least = found[0].least
    limit = "" if least is None else f" Yes and no are by the lower end of its interval against recall {least:g}."
    lead = (
        f"Whether vectors of one form may search an index that another made: the share of {base}'s {found[0].k} nearest"
        f" that is found. Where the mixtures lose too much, an index has to be made anew.{limit}"
    )
    card = (
        f'<div class="card scroll"><table><thead><tr><th class="name" scope="col">form</th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
    return section("Mixed with the baseline's index", lead, card)


def _cell(each: Mixed, kept: Kept) -> str:
    low, high = kept.ci95
    may = each.may(kept)
    verdict = "" if may is None else f'<span class="{"good" if may else "bad"}">{"yes" if may else "no"}</span> '
    return f"<td>{verdict}{kept.value:.4f}<small>{low:.4f} to {high:.4f}</small></td>"
