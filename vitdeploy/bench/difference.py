"""A comparison of two reports as a table, as Markdown and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.bench.compare import Change, Comparison, RowComparison
from vitdeploy.bench.conditions import Verdict
from vitdeploy.bench.report import BenchReport, Row
from vitdeploy.bench.verdict import named, points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

__all__ = ["comparison_json", "comparison_markdown", "comparison_table", "verdict_words"]

_HEAD = ("form", "p50 ms", "ratio", "", "top-1", "change", "", "memory", "size")
_NONE = "–"


def comparison_table(comparison: Comparison) -> RenderableType:
    """For a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, name in enumerate(_HEAD):
        table.add_column(name, justify="left" if place in (0, 3, 6) else "right", no_wrap=True)
    for row in comparison.rows:
        styles = {"slower": "red", "lower": "red", "faster": "green", "higher": "green"}
        for line in _lines(row, several=_several(comparison)):
            table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in line))
    notes = [Text(f"Note: {note}", style="dim") for note in comparison.notes]
    return Group(table, *notes)


def comparison_markdown(comparison: Comparison, verdicts: Sequence[Verdict] = ()) -> str:
    """For a pull request or a job's summary."""
    lines = [f"- {'✗' if v.met else '✓'} `{v.condition.text}`: {verdict_words(v)}" for v in verdicts]
    lines += [""] * bool(lines)
    lines += ["| " + " | ".join(_HEAD) + " |", "| --- | ---: | ---: | --- | ---: | ---: | --- | ---: | ---: |"]
    for row in comparison.rows:
        cells = _lines(row, several=_several(comparison))
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
    lines += ["", *(f"- {note}" for note in comparison.notes)]
    return "\n".join(lines).rstrip() + "\n"


def comparison_json(comparison: Comparison, verdicts: Sequence[Verdict] = ()) -> dict[str, Any]:
    """JSON-ready: schema version 1, described in docs/compare.md."""
    return {
        "schema_version": 1,
        "before": _facts(comparison.before),
        "after": _facts(comparison.after),
        "notes": list(comparison.notes),
        "baseline_drift": comparison.drift,
        "rows": [
            {
                "key": row.key,
                "status": [None if item is None else item.status for item in (row.before, row.after)],
                "changes": [_change_json(change) for change in row.changes],
            }
            for row in comparison.rows
        ],
        "conditions": [
            {"text": v.condition.text, "met": v.met, "within_noise": v.within_noise, "why": list(v.why)}
            for v in verdicts
        ],
    }


def verdict_words(verdict: Verdict) -> str:
    """What a condition's verdict is, in words."""
    if verdict.met:
        return "; ".join(verdict.why)
    if verdict.within_noise:
        return f"no more than noise: {'; '.join(verdict.why)}"
    return "not met"


def _facts(report: BenchReport) -> dict[str, Any]:
    return {
        "created": report.created,
        "command": report.command,
        "bundle": report.bundle,
        "dataset": {name: report.dataset.get(name) for name in ("name", "split", "count", "fingerprint")},
    }


def _change_json(change: Change) -> dict[str, Any]:
    values = dict(vars(change))
    return {**values, **{name: value and list(value) for name, value in values.items() if isinstance(value, tuple)}}


def _several(comparison: Comparison) -> bool:
    points_seen = {(c.batch_size, c.image_size) for row in comparison.rows for c in row.changes if c.metric == "p50"}
    return len(points_seen) > 1


def _lines(row: RowComparison, *, several: bool) -> list[list[str]]:
    """The cells of a row, a line for each size that both runs timed."""
    shown = row.after or row.before
    assert shown is not None
    if row.before is None or row.after is None or "ok" not in (row.before.status, row.after.status):
        status = " → ".join("absent" if item is None else item.status for item in (row.before, row.after))
        return [[named(shown), *[_NONE] * 2, status, *[_NONE] * 2, "", *[_NONE] * 2]]
    times: list[Change | None] = [change for change in row.changes if change.metric == "p50"]
    times = times or [None]
    return [_line(row, shown, time, first=place == 0, several=several) for place, time in enumerate(times)]


def _line(row: RowComparison, shown: Row, time: Change | None, *, first: bool, several: bool) -> list[str]:
    name = named(shown)
    if several and time is not None:
        height, width = time.image_size or (0, 0)
        name += f", {time.batch_size} of {height}x{width}"
    cells = [name, _NONE, _NONE, ""]
    if time is not None and time.ci95 is not None:
        low, high = time.ci95
        ratio = f"{time.amount:.2f}× [{low:.2f}, {high:.2f}]"
        cells[1:] = [f"{time.before:.2f} → {time.after:.2f}", ratio, _word(time, "slower", "faster")]
    elif row.before is not None and row.after is not None and row.before.status != row.after.status:
        cells[3] = f"{row.before.status} → {row.after.status}"
    if not first:
        return [*cells, *[""] * 5]
    top1 = row.find("top1")
    kept = [_NONE, _NONE, ""]
    if top1 is not None and top1.ci95 is not None:
        low, high = top1.ci95
        change = f"{points(top1.amount)} [{points(low)}, {points(high)}]"
        kept = [f"{top1.before:.2%} → {top1.after:.2%}", change, _word(top1, "higher", "lower", zero=0.0)]
    return [*cells, *kept, _bytes(row.find("memory")), _bytes(row.find("size"))]


def _word(change: Change, more: str, less: str, zero: float = 1.0) -> str:
    if not change.beyond_noise:
        return "noise" if change.amount != zero else "same"
    return more if change.amount > zero else less


def _bytes(change: Change | None) -> str:
    if change is None:
        return _NONE
    if change.before == change.after:
        return f"{change.after / 1e6:.1f} MB"
    return f"{change.before / 1e6:.1f} → {change.after / 1e6:.1f} MB"
