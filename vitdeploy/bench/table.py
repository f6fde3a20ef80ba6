"""The report as a table: in Markdown for documents, and in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.bench.report import BenchReport, Latency, Row
from vitdeploy.bench.verdict import NAMES, form_name, named, points

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["about", "cells", "markdown", "size", "terminal_table"]

_HEAD = (
    "form",
    "backend",
    "batch",
    "size",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "images/s",
    "speed-up",
    "top-1",
    "change",
    "agreement",
)
_BATCH = 2  # the column that is left out where only one batch size was measured
_NONE = "–"
_FULL_WIDTH = 137  # terminal columns that the table with its intervals takes


def markdown(report: BenchReport) -> str:
    """A document of the report: the sentence, the table, what was left out and why, and how it was measured."""
    head, body = _grid(report)
    lines = [report.recommendation.get("sentence", ""), ""]
    lines.append("| " + " | ".join(head) + " |")
    lines.append("| " + " | ".join("---" if i < 2 else "---:" for i in range(len(head))) + " |")
    for row in body:
        lines.append("| " + " | ".join(_escape(value) for value in row) + " |")
    lines.append("")
    absent = [row for row in report.rows if row.status != "ok"]
    lines += [f"- {named(row)}: {row.status}: {_escape(row.reason or '')}" for row in absent]
    lines += [""] * bool(absent)
    lines += [f"- {_escape(line)}" for line in about(report)]
    return "\n".join(lines) + "\n"


def terminal_table(report: BenchReport, width: int = _FULL_WIDTH) -> RenderableType:
    """The table for a terminal, with the forms that are missing and the sentence below it.

    Args:
        report: what to show.
        width: columns there are; the intervals are left out where they would not fit.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    narrow = width < _FULL_WIDTH
    head, body = _grid(report, intervals=not narrow)
    if narrow:
        head = [name.replace(" ms", "").replace("images/s", "img/s").replace("agreement", "agree") for name in head]
        body = [[value.replace(" %", "").replace("baseline", "base") for value in line] for line in body]
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=not narrow, padding=0 if narrow else (0, 1), header_style="bold"
    )
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True, overflow="ellipsis")
    best = report.recommendation.get("key")
    keys = [row.key for row in report.rows if row.status == "ok" for _ in row.latencies or (None,)]
    for key, line in zip(keys, body, strict=True):
        table.add_row(*(Text(value) for value in line), style="bold green" if key == best else None)
    parts: list[RenderableType] = [table]
    for row in report.rows:
        if row.status != "ok":
            label = f"{named(row)}: {row.status}: {row.reason}"
            parts.append(Text(label, style="red" if row.status == "failed" else "dim"))
    parts.append(Text(""))
    parts.append(Text(report.recommendation.get("sentence", ""), style="bold"))
    for note in report.notes:
        parts.append(Text(f"Note: {note}", style="dim"))
    if report.noisy:
        parts.append(Text("Noisy: " + "; ".join(report.noise), style="yellow"))
    if report.partial:
        parts.append(Text("Partial: the benchmark was interrupted.", style="yellow"))
    return Group(*parts)


def about(report: BenchReport) -> list[str]:
    """How and on what it was measured, one plain line each; also what is wrong with it."""
    machine, settings, dataset = report.machine, report.settings, report.dataset
    gpu = ", ".join(item["name"] for item in machine.get("gpu", [])) or "no GPU"
    lines = [
        f"Machine: {machine.get('cpu')}, {machine.get('cores')} cores, {gpu}, {settings.get('threads')} threads"
        " for every backend.",
        f"Data: {dataset.get('name', 'dataset')}, split {dataset.get('split', '?')}, {dataset.get('count')} images.",
        f"Baseline: {report.baseline.get('description')}.",
    ]
    latency = settings.get("latency")
    if latency and settings.get("image_size"):
        height, width = settings["image_size"]
        lines += [
            f"Latency: from decoded uint8 pixels ({height}x{width}) to logits, up to {latency['rounds']} interleaved"
            " rounds in random order after a warm-up.",
            "Speed-up: the median over rounds of baseline time / form time, with a bootstrap 95 % interval.",
        ]
    if any(row.accuracy for row in report.rows):
        lines.append(
            "Accuracy: the same images for every form; change in percentage points with a paired 95 % interval"
            " (Bonett-Price); agreement is how often a form's best class is the baseline's."
        )
    lines += [f"Note: {note}." for note in report.notes]
    lines += [f"Noisy: {reason}." for reason in report.noise]
    if report.partial:
        lines.append("Partial: the benchmark was interrupted; only what was measured until then is here.")
    if report.command:
        lines.append(f"Command: `{report.command}`")
    return lines


def size(size_bytes: int | None) -> str:
    """Bytes in MB or kB (powers of ten)."""
    if size_bytes is None:
        return _NONE
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"


def cells(row: Row, latency: Latency | None, *, is_baseline: bool, intervals: bool = True) -> tuple[str, ...]:
    """The texts of one line of the table, as the columns of `_HEAD`."""
    times: tuple[str, ...] = (_NONE,) * 5
    batch = _NONE
    if latency is not None:
        batch = str(latency.batch_size)
        times = (
            *(_ms(value) for value in (latency.p50, latency.p95, latency.p99)),
            f"{latency.images_per_s:.0f}" if latency.images_per_s >= 100 else f"{latency.images_per_s:.1f}",
            _speedup(latency, is_baseline=is_baseline, interval=intervals),
        )
    kept: tuple[str, ...] = (_NONE,) * 3
    if row.accuracy is not None:
        accuracy = row.accuracy
        change = "baseline" if is_baseline else _NONE
        if accuracy.delta is not None and accuracy.delta_ci95 is not None:
            low, high = accuracy.delta_ci95
            change = points(accuracy.delta) + (f" [{points(low)}, {points(high)}]" if intervals else "")
        agreement = _NONE if accuracy.agreement is None else f"{100 * accuracy.agreement:.2f} %"
        kept = (f"{100 * accuracy.top1:.2f} %", change, agreement)
    return (form_name(row.form), NAMES[row.backend], batch, size(row.size_bytes), *times, *kept)


def _grid(report: BenchReport, *, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """Heads, and a line per form and batch size that was measured."""
    body = []
    for row in report.rows:
        if row.status == "ok":
            is_baseline = row.key == report.baseline.get("key")
            body += [
                list(cells(row, latency, is_baseline=is_baseline, intervals=intervals))
                for latency in row.latencies or (None,)
            ]
    head = list(_HEAD)
    if len(report.settings.get("batch_sizes", [])) < 2:
        for line in [head, *body]:
            del line[_BATCH]
    return head, body


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _speedup(latency: Latency, *, is_baseline: bool, interval: bool) -> str:
    if latency.speedup is None or latency.speedup_ci95 is None:
        return _NONE
    if is_baseline:
        return "1×"
    low, high = latency.speedup_ci95
    return f"{latency.speedup:.2f}×" + (f" [{low:.2f}, {high:.2f}]" if interval else "")


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
