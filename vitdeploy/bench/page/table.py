"""The page's table: a line per form, and per size where several were measured."""

from __future__ import annotations

from html import escape

from vitdeploy.bench.page.words import ms, name_cell, percent, rate, section, size_words
from vitdeploy.bench.report import BenchReport, Latency, Row
from vitdeploy.bench.verdict import points

__all__ = ["every_form"]

_ROOMY = 11  # columns that a desk's width holds with much space between them


def every_form(report: BenchReport) -> str:
    """All rows, the ones without numbers with their reason."""
    several = {
        "batch": len(report.settings.get("batch_sizes", [])) > 1,
        "image": len(report.settings.get("image_sizes", [])) > 1,
    }
    on_gpu = any(latency.device for row in report.rows for latency in row.latencies)
    heads = [name for name, shown in several.items() if shown]
    timed, compared, probed = (any(getattr(row, n) for row in report.rows) for n in ("latency", "accuracy", "memory"))
    nothing = not (timed or compared)  # then all columns are there, and empty
    if timed or nothing:
        heads += ["p50 ms", "p95", "p99", *(["GPU p50"] if on_gpu else []), "images/s", "speed-up"]
    heads += ["top-1", "change"] if compared or nothing else []
    heads += ["size", *(["memory"] if probed else []), *(["start"] if timed or nothing else [])]
    lines = []
    for row in report.rows:
        if row.status != "ok":
            why = f'<span class="tag {row.status}">{row.status}</span> {escape(row.reason or "")}'
            lines.append(
                f'<tr class="off">{name_cell(row)}<td class="why" colspan="{len(heads)}"><div>{why}</div></td></tr>'
            )
            continue
        for place, latency in enumerate(row.latencies or (None,)):
            lines.append(_line(report, row, latency, heads, first=place == 0))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    apart = any(row.cold_start for row in report.rows)  # each form in a fresh process, its import included
    start = "importing the backend in a fresh process" if apart else "opening the file"
    lead = "".join(
        sentence
        for sentence, shown in (
            ("Times run from decoded pixels to class scores, images already in memory. ", timed),
            ("Small print under a value is its 95 % interval. ", True),
            ("Memory: the peak of a process that runs nothing else. ", probed),
            (f"Start: from {start} to the first scores.", timed),
        )
        if shown
    )
    dense = ' class="dense"' if len(heads) > _ROOMY else ""
    card = (
        f'<div class="card scroll"><table{dense}><thead><tr><th class="name" scope="col">form</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    return section("Every form", lead, card)


def _line(report: BenchReport, row: Row, latency: Latency | None, heads: list[str], *, first: bool) -> str:
    values = {**_cost(report, row, latency), **(_kept(row) if first else {})}
    if first:
        start = "–" if row.cold_start_ms is None else f"{row.cold_start_ms / 1000:.2f} s"
        values.update(size=escape(size_words(row.size_bytes)), start=start)
    best = ' class="best"' if first and row.key == report.recommendation.get("key") else ""
    note = "".join(f'<em class="broken">{escape(limit)}</em>' for limit in row.outside) if first else ""
    cells = "".join(f"<td>{values.get(head, '–' if first else '')}</td>" for head in heads)
    return f"<tr{best}>{name_cell(row, note)}{cells}</tr>"


def _cost(report: BenchReport, row: Row, latency: Latency | None) -> dict[str, str]:
    """Cells about time and memory, as markup, by their heads."""
    if latency is None:
        return {}
    ratio = "–"
    if latency.speedup is not None and latency.speedup_ci95 is not None:
        low, high = latency.speedup_ci95
        ratio = f"{latency.speedup:.2f}×<small>{low:.2f} to {high:.2f}</small>"
        if row.key == report.baseline.get("key"):
            ratio = "1×<small>baseline</small>"
    height, width = latency.image_size or (0, 0)
    memory = latency.memory
    taken = "–" if memory is None else size_words(memory.host_peak_bytes)
    if memory is not None and memory.device_peak_bytes:
        taken += f"<small>GPU {size_words(memory.device_peak_bytes)}</small>"
    return {
        "batch": str(latency.batch_size),
        "image": f"{height}×{width}",
        "p50 ms": ms(latency.p50),
        "p95": ms(latency.p95),
        "p99": ms(latency.p99),
        "GPU p50": "–" if latency.device is None else ms(latency.device.p50),
        "images/s": rate(latency.images_per_s),
        "speed-up": ratio,
        "memory": taken,
    }


def _kept(row: Row) -> dict[str, str]:
    """Cells about accuracy, as markup, by their heads."""
    accuracy = row.accuracy
    if accuracy is None:
        return {}
    low, high = accuracy.ci95
    values = {"top-1": f"{percent(accuracy.top1)}<small>{100 * low:.1f} to {100 * high:.1f}</small>"}
    if accuracy.delta is not None and accuracy.delta_ci95 is not None:
        low, high = accuracy.delta_ci95
        values["change"] = f"{points(accuracy.delta)}<small>{points(low)} to {points(high)}</small>"
    return values
