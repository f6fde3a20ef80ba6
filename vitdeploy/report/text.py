"""The report in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.report.formatting import named
from vitdeploy.report.mixed import mixed_sentences
from vitdeploy.report.records import BenchReport
from vitdeploy.report.table import HEAD, cells, columns, lines

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["fits", "terminal_table"]

# What a narrow terminal leaves out, the first first, until the rest fits.
_LESS_NEEDED = (
    "n",
    "neighbour",
    "queries",
    "index",
    "start",
    "p99",
    "steady_speedup",
    "steady",
    "agreement",
    "memory",
    "size",
    "rate",
    "p95",
    "image",
)


def terminal_table(report: BenchReport, width: int = 240) -> RenderableType:
    """The table for a terminal, with the forms that are missing and the sentence below it.

    Args:
        report: what to show.
        width: columns there are; the intervals, then whole columns are left out where they would not fit.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_table(report, width)]
    for row in report.rows:
        if row.status != "ok":
            label = f"{named(row)}: {row.status}: {row.reason}"
            parts.append(Text(label, style="red" if row.status == "failed" else "dim"))
    parts.append(Text(""))
    parts.append(Text(report.recommendation.get("sentence", ""), style="bold"))
    parts += [Text(sentence) for sentence in mixed_sentences(report)]
    for note in report.notes:
        parts.append(Text(f"Note: {note}", style="dim"))
    if report.noisy:
        parts.append(Text(_noise_line(report), style="yellow"))
    if report.partial:
        parts.append(Text("Partial: the benchmark was interrupted.", style="yellow"))
    return Group(*parts)


def _noise_line(report: BenchReport) -> str:
    """How many times are noisy, in one line; the report has the reasons."""
    timed = [latency for row in report.rows for latency in row.latencies]
    noisy = sum(latency.noise is not None for latency in timed)
    reason = f"{noisy} of {len(timed)} timings" if noisy else "the machine was not at rest"
    return f"Noisy: {reason}; the report says why (--json, --report)"


def _table(report: BenchReport, width: int) -> Table:
    """The widest that fits."""
    shown = columns(report)
    table = _drawn(report, shown, narrow=False)
    if fits(table, width):
        return table
    for name in (None, *_LESS_NEEDED):
        shown = [each for each in shown if each != name]
        table = _drawn(report, shown, narrow=True)
        if fits(table, width):
            break
    return table


def _drawn(report: BenchReport, shown: list[str], *, narrow: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=not narrow, padding=0 if narrow else (0, 1), header_style="bold"
    )
    for place, name in enumerate(shown):
        justify: Any = "left" if place < 2 else "right"
        table.add_column(HEAD[name][narrow], justify=justify, no_wrap=place > 1, overflow="fold")
    best = report.recommendation.get("key")
    for row, latency in lines(report):
        values = cells(row, latency, is_baseline=row is report.base, intervals=not narrow)
        line = [values[name] for name in shown]
        if narrow:
            line = [value.replace(" %", "").replace("baseline", "base") for value in line]
        table.add_row(*map(Text, line), style="bold green" if row.key == best else None)
    return table


def fits(table: Table, width: int) -> bool:
    """Whether all of a table can be drawn in `width` columns without a fold."""
    from rich.console import Console

    return Console(width=10**6).measure(table).maximum <= width
