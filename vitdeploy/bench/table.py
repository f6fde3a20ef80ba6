"""The report as a table: in Markdown for documents, and in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vitdeploy.bench.page.words import count
from vitdeploy.bench.report import BenchReport, Latency, Memory, Row
from vitdeploy.bench.verdict import backend_name, form_name, named, points

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["about", "cells", "markdown", "size", "terminal_table"]

_HEAD = {  # column: (what it is called, in a narrow terminal)
    "form": ("form", "form"),
    "backend": ("backend", "backend"),
    "batch": ("batch", "batch"),
    "image": ("image", "image"),
    "size": ("size", "size"),
    "memory": ("memory", "memory"),
    "start": ("start", "start"),
    "p50": ("p50 ms", "p50"),
    "p95": ("p95 ms", "p95"),
    "p99": ("p99 ms", "p99"),
    "rate": ("images/s", "img/s"),
    "speedup": ("speed-up", "faster"),
    "top1": ("top-1", "top-1"),
    "change": ("change", "change"),
    "agreement": ("agreement", "agree"),
}
_WIDE_ONLY = ("start", "p99", "agreement")  # what a narrow terminal leaves out
_NONE = "–"


def markdown(report: BenchReport) -> str:
    """A document of the report: the sentence, the table, what was left out and why, and how it was measured."""
    columns = _columns(report)
    lines = [report.recommendation.get("sentence", ""), ""]
    lines.append("| " + " | ".join(_HEAD[name][0] for name in columns) + " |")
    lines.append("| " + " | ".join("---" if i < 2 else "---:" for i in range(len(columns))) + " |")
    for row, latency in _lines(report):
        values = cells(row, latency, is_baseline=row is report.base)
        lines.append("| " + " | ".join(_escape(values[name]) for name in columns) + " |")
    lines.append("")
    absent = [row for row in report.rows if row.status != "ok"]
    lines += [f"- {named(row)}: {row.status}: {_escape(row.reason or '')}" for row in absent]
    lines += [""] * bool(absent)
    lines += [f"- {_escape(line)}" for line in about(report)]
    return "\n".join(lines) + "\n"


def terminal_table(report: BenchReport, width: int = 240) -> RenderableType:
    """The table for a terminal, with the forms that are missing and the sentence below it.

    Args:
        report: what to show.
        width: columns there are; the intervals are left out where they would not fit.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    narrow = width < _full_width(report)
    columns = [name for name in _columns(report) if not (narrow and name in _WIDE_ONLY)]
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=not narrow, padding=0 if narrow else (0, 1), header_style="bold"
    )
    for place, name in enumerate(columns):
        justify: Any = "left" if place < 2 else "right"
        table.add_column(_HEAD[name][narrow], justify=justify, no_wrap=True, overflow="ellipsis")
    best = report.recommendation.get("key")
    for row, latency in _lines(report):
        values = cells(row, latency, is_baseline=row is report.base, intervals=not narrow)
        line = [values[name] for name in columns]
        if narrow:
            line = [value.replace(" %", "").replace("baseline", "base") for value in line]
        table.add_row(*map(Text, line), style="bold green" if row.key == best else None)
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


def _full_width(report: BenchReport) -> int:
    """Terminal columns that the table with all columns and intervals takes."""
    columns = _columns(report)
    lines = [{name: _HEAD[name][0] for name in columns}]
    lines += [cells(row, latency, is_baseline=row is report.base) for row, latency in _lines(report)]
    return sum(max(len(line[name]) for line in lines) + 3 for name in columns)


def about(report: BenchReport) -> list[str]:
    """How and on what it was measured, one plain line each; also what is wrong with it."""
    machine, settings, dataset = report.machine, report.settings, report.dataset
    gpu = ", ".join(item["name"] for item in machine.get("gpu", [])) or "no GPU"
    lines = [
        f"Machine: {machine.get('cpu')}, {count(machine.get('cores'), 'core')}, {gpu},"
        f" {count(settings.get('threads'), 'thread')} for every backend.",
        f"Data: {dataset.get('name', 'dataset')}, split {dataset.get('split', '?')},"
        f" {count(dataset.get('count'), 'image')}.",
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


def cells(row: Row, latency: Latency | None, *, is_baseline: bool, intervals: bool = True) -> dict[str, str]:
    """The texts of one line of the table, by column."""
    values = dict.fromkeys(_HEAD, _NONE)
    values.update(form=form_name(row.form), backend=backend_name(row), size=size(row.size_bytes))
    if row.cold_start_ms is not None:
        values["start"] = f"{row.cold_start_ms / 1000:.2f} s"
    if latency is not None:
        height, width = latency.image_size or (0, 0)
        values.update(
            batch=str(latency.batch_size),
            image=f"{height}x{width}",
            p50=_ms(latency.p50),
            p95=_ms(latency.p95),
            p99=_ms(latency.p99),
            rate=f"{latency.images_per_s:.0f}" if latency.images_per_s >= 100 else f"{latency.images_per_s:.1f}",
            speedup=_speedup(latency, is_baseline=is_baseline, interval=intervals),
            memory=_memory(latency.memory),
        )
    if row.accuracy is not None:
        accuracy = row.accuracy
        change = "baseline" if is_baseline else _NONE
        if accuracy.delta is not None and accuracy.delta_ci95 is not None:
            low, high = accuracy.delta_ci95
            change = points(accuracy.delta) + (f" [{points(low)}, {points(high)}]" if intervals else "")
        agreement = _NONE if accuracy.agreement is None else f"{100 * accuracy.agreement:.2f} %"
        values.update(top1=f"{100 * accuracy.top1:.2f} %", change=change, agreement=agreement)
    return values


def _columns(report: BenchReport) -> list[str]:
    """The columns that say something in this report."""
    left_out = {
        "batch": len(report.settings.get("batch_sizes", [])) < 2,
        "image": len(report.settings.get("image_sizes", [])) < 2,
        "memory": not any(row.memory for row in report.rows),
    }
    # What was not measured of any form is no column; a run of which nothing is left keeps them all.
    if any(row.latency or row.accuracy for row in report.rows):
        timed, compared = (any(getattr(row, name) for row in report.rows) for name in ("latency", "accuracy"))
        left_out.update(dict.fromkeys(("start", "p50", "p95", "p99", "rate", "speedup"), not timed))
        left_out.update(dict.fromkeys(("top1", "change", "agreement"), not compared))
    return [name for name in _HEAD if not left_out.get(name)]


def _lines(report: BenchReport) -> Iterator[tuple[Row, Latency | None]]:
    """A line per form and size that was measured."""
    for row in report.rows:
        if row.status == "ok":
            for latency in row.latencies or (None,):
                yield row, latency


def _memory(memory: Memory | None) -> str:
    if memory is None:
        return _NONE
    device = f" + {size(memory.device_peak_bytes)} GPU" if memory.device_peak_bytes else ""
    return f"{(memory.host_peak_bytes or 0) / 1e6:.0f} MB{device}"


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
