"""A comparison of two reports as a table, as Markdown and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.core.text import visible
from vitdeploy.report.comparison import Change, Comparison, RowComparison
from vitdeploy.report.conditions import Outcome
from vitdeploy.report.formatting import named, points
from vitdeploy.report.markdown import table_row
from vitdeploy.report.records import BenchReport, Row
from vitdeploy.report.text import fits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["SIGNS", "comparison_json", "comparison_markdown", "comparison_table", "outcome_words"]

SIGNS = {"met": "✗", "not met": "✓", "noise": "✓", "inconclusive": "?"}

_HEAD = ("form", "p50 ms", "ratio", "", "top-1", "change", "", "memory", "size")
_KEPT = 4  # the place of what answers are judged by, which depends on the task
_JUDGED_BY = ("top1", "map", "knn", "recall")  # of one class, several labels, and an embedding with and without classes
_NONE = "–"
# What a narrow terminal leaves out of _HEAD, by place, until the rest fits; first the intervals.
_LESS_NEEDED = ((-1,), (7,), (7, 8), (4, 7, 8))


def comparison_table(comparison: Comparison, width: int = 160) -> RenderableType:
    """For a terminal of so many columns: without intervals, memory, size and both sides' shares where they would not
    fit."""
    from rich.console import Group
    from rich.text import Text

    for left_out in ((), *_LESS_NEEDED):
        table = _drawn(comparison, left_out, intervals=not left_out)
        if fits(table, width):
            break
    notes = [Text(f"Note: {note}", style="dim") for note in (*comparison.notes, *_inconclusive(comparison))]
    return Group(table, *notes)


def _drawn(comparison: Comparison, left_out: tuple[int, ...], *, intervals: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = [place for place in range(len(_HEAD)) if place not in left_out]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1) if intervals else 0, header_style="bold")
    for place in shown:
        justify: Any = "left" if place in (0, 3, 6) else "right"
        table.add_column(_head(comparison)[place], justify=justify, no_wrap=place > 0, overflow="fold")
    styles = {"slower": "red", "lower": "red", "faster": "green", "higher": "green"}
    for row in comparison.rows:
        for line in _lines(row, several=_several(comparison)):
            texts = [line[place] if intervals else line[place].partition(" [")[0] for place in shown]
            table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in texts))
    return table


def comparison_markdown(comparison: Comparison, outcomes: Sequence[Outcome] = ()) -> str:
    """For a pull request or a job's summary."""
    lines = [f"- {SIGNS[item.state]} `{item.condition.text}`: {outcome_words(item)}" for item in outcomes]
    lines += [""] * bool(lines)
    lines += [table_row(*_head(comparison)), "| --- | ---: | ---: | --- | ---: | ---: | --- | ---: | ---: |"]
    for row in comparison.rows:
        cells = _lines(row, several=_several(comparison))
        lines += [table_row(*line) for line in cells]
    lines += ["", *(f"- {note}" for note in (*comparison.notes, *_inconclusive(comparison)))]
    return visible("\n".join(lines).rstrip() + "\n")


def comparison_json(comparison: Comparison, outcomes: Sequence[Outcome] = ()) -> dict[str, Any]:
    """JSON-ready: schema version 2, described in docs/compare.md."""
    return {
        "schema_version": 2,
        "before": [_facts(report) for report in comparison.before],
        "after": [_facts(report) for report in comparison.after],
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
        "conditions": [{"text": item.condition.text, "state": item.state, "why": list(item.why)} for item in outcomes],
    }


def outcome_words(outcome: Outcome) -> str:
    """What became of a condition, in words."""
    why = "; ".join(outcome.why)
    return {"met": why, "noise": f"no more than noise: {why}", "inconclusive": f"inconclusive: {why}"}.get(
        outcome.state, "not met"
    )


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


def _head(comparison: Comparison) -> list[str]:
    """The heads of the columns."""
    rows = [row for side in (comparison.after, comparison.before) for row in side[0].rows]
    metrics = (row.quality.metric for row in rows if row.quality is not None)
    return [*_HEAD[:_KEPT], next(metrics, _HEAD[_KEPT]), *_HEAD[_KEPT + 1 :]]


def _inconclusive(comparison: Comparison) -> list[str]:
    """Why times are inconclusive."""
    reasons = {change.inconclusive: None for row in comparison.rows for change in row.changes if change.inconclusive}
    return [f"times are inconclusive: {reason}" for reason in reasons]


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
        ratio = _NONE if time.inconclusive else f"{time.amount:.2f}× [{low:.2f}, {high:.2f}]"
        cells[1:] = [f"{time.before:.2f} → {time.after:.2f}", ratio, _word(time, "slower", "faster")]
    elif row.before is not None and row.after is not None and row.before.status != row.after.status:
        cells[3] = f"{row.before.status} → {row.after.status}"
    if not first:
        return [*cells, *[""] * 5]
    judged = next((found for metric in _JUDGED_BY if (found := row.find(metric)) is not None), None)
    kept = [_NONE, _NONE, ""]
    if judged is not None and judged.ci95 is not None:
        low, high = judged.ci95
        change = f"{points(judged.amount)} [{points(low)}, {points(high)}]"
        kept = [f"{judged.before:.2%} → {judged.after:.2%}", change, _word(judged, "higher", "lower", zero=0.0)]
    return [*cells, *kept, _bytes(row.find("memory")), _bytes(row.find("size"))]


def _word(change: Change, more: str, less: str, zero: float = 1.0) -> str:
    if change.inconclusive is not None:
        return "inconclusive"
    if not change.beyond_noise:
        return "noise" if change.amount != zero else "same"
    return more if change.amount > zero else less


def _bytes(change: Change | None) -> str:
    if change is None:
        return _NONE
    if change.before == change.after:
        return f"{change.after / 1e6:.1f} MB"
    return f"{change.before / 1e6:.1f} → {change.after / 1e6:.1f} MB"
