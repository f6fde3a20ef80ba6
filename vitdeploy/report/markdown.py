"""The report in Markdown, for documents."""

from __future__ import annotations

from vitdeploy.core.text import visible
from vitdeploy.report.formatting import named
from vitdeploy.report.mixed import mixed_sentences
from vitdeploy.report.records import BenchReport
from vitdeploy.report.table import HEAD, about, cells, columns, lines

__all__ = ["markdown", "table_row"]


def markdown(report: BenchReport) -> str:
    """A document of the report: the sentence, the table, what was left out and why, and how it was measured."""
    shown = columns(report)
    text = [report.recommendation.get("sentence", ""), ""]
    text.append(table_row(*(HEAD[name][0] for name in shown)))
    text.append(table_row(*("---" if i < 2 else "---:" for i in range(len(shown)))))
    for row, latency in lines(report):
        values = cells(row, latency, is_baseline=row is report.base)
        text.append(table_row(*(values[name] for name in shown)))
    text.append("")
    absent = [row for row in report.rows if row.status != "ok"]
    text += [f"- {named(row)}: {row.status}: {_escape(row.reason or '')}" for row in absent]
    text += [""] * bool(absent)
    text += [f"- {_escape(line)}" for line in (*mixed_sentences(report), *about(report))]
    return visible("\n".join(text) + "\n")


def table_row(*cells: str) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(map(_escape, cells)) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
