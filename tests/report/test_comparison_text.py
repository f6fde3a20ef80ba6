"""A comparison as a table, for terminals of any width and in Markdown."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import pytest
from rich.console import Console

from tests.tools.forms import report_of
from vitdeploy.evaluation.vectors import Kept, VectorQuality
from vitdeploy.report.comparison import Comparison, compare
from vitdeploy.report.comparison_text import comparison_markdown, comparison_table


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    before, after = report_of(seed=1), report_of(seed=5)
    grown = tuple(
        replace(row, size_bytes=row.size_bytes and row.size_bytes + 10**6) if row.key == "int8/openvino" else row
        for row in after.rows
    )
    return compare(before, replace(after, rows=grown))


def drawn(comparison: Comparison, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, color_system=None)
    console.print(comparison_table(comparison, width))
    return console.export_text()


def test_what_does_not_fit_is_left_out_in_order(comparison: Comparison) -> None:
    wide, narrow = drawn(comparison, 200), drawn(comparison, 60)
    assert "[" in wide and all(head in wide for head in ("p50 ms", "ratio", "top-1", "memory", "size"))
    assert "[" not in narrow and "ratio" in narrow and "memory" not in narrow and "size" not in narrow
    lines = [max(map(len, drawn(comparison, width).splitlines())) for width in (60, 80, 100, 200)]
    assert all(line <= width for line, width in zip(lines, (60, 80, 100, 200), strict=True))
    heads = [{head for head in ("memory", "size") if head in drawn(comparison, width)} for width in (60, 80, 100, 200)]
    assert all(fewer <= more for fewer, more in itertools.pairwise(heads))


def test_sizes_that_changed_show_both(comparison: Comparison) -> None:
    sizes = {row.key: row.find("size") for row in comparison.rows}
    grown, same = sizes["int8/openvino"], next(size for size in sizes.values() if size and size.before == size.after)
    assert grown is not None and same is not None
    for text in (drawn(comparison, 220), comparison_markdown(comparison)):
        assert f"{grown.before / 1e6:.1f} → {grown.after / 1e6:.1f} MB" in text
        assert f"→ {same.after / 1e6:.1f} MB" not in text and f"{same.after / 1e6:.1f} MB" in text


def test_the_column_is_called_what_the_task_is_judged_by() -> None:
    quality = VectorQuality(5, 200, recall=Kept(0.97, (0.96, 0.98)))
    report = report_of(seed=1)
    rows = tuple(replace(row, accuracy=None, embedding=quality if row.form == "int8" else None) for row in report.rows)
    same = replace(report, rows=rows)
    text = drawn(compare(same, replace(same, created="2026-01-02")), 200)
    assert "recall@5" in text and "top-1" not in text and "97.00% → 97.00%" in text and "same" in text
