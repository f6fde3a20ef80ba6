"""Sections about what each form costs: latency, its parts, its growth with the batch, load, memory and size."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from vitdeploy.backends.registry import backend_title
from vitdeploy.core.svg import element
from vitdeploy.report.formatting import ms, named, percent, rate, size_words
from vitdeploy.report.html.lines import Series, line_chart
from vitdeploy.report.html.markup import NARROW, WIDE, colour, columns, name_cell, section, table_card
from vitdeploy.report.html.scatter import compared, distributions, mark, tradeoff
from vitdeploy.report.records import BenchReport, OpenLoad, Row

__all__ = [
    "distribution_section",
    "load_section",
    "memory_section",
    "phases_section",
    "sizes_section",
    "tradeoff_section",
]


def tradeoff_section(report: BenchReport) -> str:
    """Accuracy against latency, with the Pareto front."""
    wide, narrow = tradeoff(report, WIDE, "wide"), tradeoff(report, NARROW, "narrow")
    if wide is None or narrow is None:
        return ""
    shown = {row.backend: None for row in compared(report)}
    shapes = "".join(
        f"<li>{element('svg', element('g', mark(backend, 8, 8, 5), class_='shape'), viewBox='0 0 16 16')}"
        f"{escape(backend_title(backend))}</li>"
        for backend in shown
    )
    lead = (
        "Up is more accurate, left is faster. Filled marks are on the Pareto front: no other is both faster and more "
        "accurate. The lines are paired 95 % intervals of the change."
    )
    card = f'<div class="card plot"><ul class="key">{shapes}</ul>{wide}{narrow}</div>'
    return section("Accuracy against latency", lead, card)


def distribution_section(report: BenchReport) -> str:
    """The kept samples of every form."""
    wide, narrow = distributions(report, WIDE, "wide"), distributions(report, NARROW, "narrow")
    if wide is None or narrow is None:
        return ""
    lead = (
        "Every dot is a call on demand, the band holds the middle half of them; lines mark p50 (thick), p95 (thin) and "
        "p99 (dashed), where there are calls enough to tell, p50 and the highest of them in numbers."
    )
    return section("Distribution of latencies", lead, f'<div class="card plot">{wide}{narrow}</div>')


def sizes_section(report: BenchReport) -> str:
    """Latency against the batch, and against the size of images, where several were measured."""
    batches, sizes, names = {}, {}, dict[float, str]()
    for row in report.rows:
        if row.latency is None:
            continue
        first = row.latency
        by_batch = [item for item in row.latencies if item.image_size == first.image_size]
        by_size = [item for item in row.latencies if item.batch_size == first.batch_size and item.image_size]
        batches[row.key] = _series(row, [(item.batch_size, item.ms.p50 / item.batch_size) for item in by_batch])
        sizes[row.key] = _series(row, [(_area(item.image_size), item.ms.p50) for item in by_size])
        names.update({_area(item.image_size): "×".join(map(str, item.image_size or ())) for item in by_size})
    lead = "Median time of one image in a batch of so many. A line that falls is worth a larger batch."
    parts = [_chart("Latency against batch", lead, list(batches.values()), "images in a batch", "ms per image")]
    lead = "Median time of a call by the size of the raw image, which the graph itself resizes."
    axis = "image, height × width"
    parts.append(_chart("Latency against image size", lead, list(sizes.values()), axis, "ms per call", names))
    return "".join(parts)


def _area(size: tuple[int, int] | None) -> float:
    """Pixels of an image; 0 where its size is not known."""
    return float(size[0] * size[1]) if size else 0.0


def _series(row: Row, values: list[tuple[float, float]]) -> Series:
    return Series(named(row), colour(row), row.backend, tuple(sorted(values)))


def _chart(
    title: str, lead: str, series: list[Series], x: str, y: str, names: Mapping[float, str] | None = None
) -> str:
    series = [item for item in series if len(item.values) > 1]
    if not series:
        return ""
    shapes = ((WIDE, "wide"), (NARROW, "narrow"))
    pictures = "".join(line_chart(series, width, name, x, y, names or {}) for width, name in shapes)
    return section(title, lead, f'<div class="card plot">{_legend(series)}{pictures}</div>')


def _legend(series: list[Series]) -> str:
    items = "".join(
        "<li>"
        + element("svg", element("g", mark(item.shape, 8, 8, 5), class_=f"series {item.colour} on-front"),
                  viewBox="0 0 16 16")
        + f"{escape(item.name)}</li>"
        for item in series
    )  # fmt: skip
    return f'<ul class="key">{items}</ul>'


_PHASES = (("decode", "decode_ms"), ("preprocess", "preprocess_ms"), ("model", "model_ms"), ("post", "post_ms"))


def phases_section(report: BenchReport) -> str:
    """Where the time of one call goes."""
    rows = [row for row in report.rows if row.phases]
    if not rows:
        return ""
    totals = {row.key: sum(getattr(row.phases, name) or 0.0 for _, name in _PHASES) for row in rows}
    most = max(totals.values()) or 1.0
    lines = []
    for row in rows:
        assert row.phases is not None
        parts = "".join(
            f'<i class="p-{label}" style="width:{100 * (getattr(row.phases, name) or 0.0) / most:.2f}%"'
            f' title="{label} {ms(getattr(row.phases, name) or 0.0)} ms"></i>'
            for label, name in _PHASES
        )
        cells = "".join(
            f"<td>{'–' if getattr(row.phases, name) is None else ms(getattr(row.phases, name))}</td>"
            for _, name in _PHASES
        )
        share = percent(row.phases.preprocess_share, 1)
        if row.phases.preprocess_share_ci95 is not None:
            low, high = row.phases.preprocess_share_ci95
            share += f"<small>{100 * low:.1f} to {100 * high:.1f}</small>"
        lines.append(f'<tr>{name_cell(row)}<td class="stack"><span>{parts}</span></td>{cells}<td>{share}</td></tr>')
    heads = columns(f'<i class="dot p-{label}"></i>{label}' for label, _ in _PHASES)
    lead = (
        "Medians in milliseconds of one call. Preprocessing is PyTorch's image processor, or the part of the graph "
        "before the model, cut out and run by the same backend in turns with the whole. Decoding the file and softmax "
        "with the five best classes come on top of the latency above. The last column is the preprocessing's share of "
        "that latency."
    )
    head = f'<th class="stack" scope="col"></th>{heads}{columns(["share"])}'
    return section("Where the time goes", lead, table_card("form", head, lines, "phases"))


def load_section(report: BenchReport) -> str:
    """Throughput with several callers, and latency at a given rate."""
    return _closed(report) + _open(report)


def _closed(report: BenchReport) -> str:
    rows = [row for row in report.rows if row.load.closed]
    if not rows:
        return ""
    callers = list(dict.fromkeys(load.callers for row in rows for load in row.load.closed))
    most = max(load.images_per_s for row in rows for load in row.load.closed)
    head = columns(f"{number} caller{'' if number == 1 else 's'}" for number in callers)
    lines = []
    for row in rows:
        found = {load.callers: load for load in row.load.closed}
        cells = "".join(
            f'<td class="meter {colour(row)}"><i style="width:{100 * found[number].images_per_s / most:.1f}%"></i>'
            f"<span>{rate(found[number].images_per_s)}<small>p95 {ms(found[number].latency_ms.p95)} ms</small></span>"
            "</td>"
            if number in found
            else "<td>–</td>"
            for number in callers
        )
        lines.append(f"<tr>{name_cell(row)}{cells}</tr>")
    lead = "Images per second while so many callers each send the next request as soon as the last one is answered."
    return section("Throughput", lead, table_card("form", head, lines))


def _open(report: BenchReport) -> str:
    rows = [row for row in report.rows if row.load.open]
    if not rows:
        return ""
    rates = list(dict.fromkeys(load.rate for row in rows for load in row.load.open))
    head = columns(f"{number:g} a second" for number in rates)
    lines = []
    for row in rows:
        found = {load.rate: load for load in row.load.open}
        cells = "".join(_under(found[number]) if number in found else "<td>–</td>" for number in rates)
        lines.append(f"<tr>{name_cell(row)}{cells}</tr>")
    lead = (
        "Milliseconds at p50 and p95 while requests arrive at random at this mean rate, counted from the moment each "
        "was due. In small print what it looks like when waiting is not counted: that hides the tail."
    )
    return section("Latency under load", lead, table_card("form", head, lines))


def _under(load: OpenLoad) -> str:
    if not load.keeps_up:
        return '<td><span class="tag failed">does not keep up</span></td>'
    own, naive = load.latency_ms, load.service_ms
    return f"<td>{ms(own.p50)} · {ms(own.p95)}<small>{ms(naive.p50)} · {ms(naive.p95)} not counted</small></td>"


def memory_section(report: BenchReport) -> str:
    """File, memory of the process, memory of the GPU."""
    rows = [row for row in report.rows if row.size_bytes or row.memory]
    on_gpu = any(row.memory and row.memory.device_peak_bytes for row in rows)
    shown = [("file", [row.size_bytes for row in rows])]
    shown.append(("memory of the process", [row.memory.host_peak_bytes if row.memory else None for row in rows]))
    if on_gpu:
        shown.append(("memory of the GPU", [row.memory.device_peak_bytes if row.memory else None for row in rows]))
    shown = [(name, values) for name, values in shown if any(values)]
    if not shown:
        return ""
    head = columns(name for name, _ in shown)
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(_meter(row, values[place], max(value or 0 for value in values)) for _, values in shown)
        lines.append(f"<tr>{name_cell(row)}{cells}</tr>")
    lead = "What has to be shipped to a device, and the peak of a process that runs this form and nothing else."
    return section("File size and memory", lead, table_card("form", head, lines))


def _meter(row: Row, value: int | None, most: int) -> str:
    if value is None:
        return "<td>–</td>"
    bar = f'<i style="width:{100 * value / most:.1f}%"></i>'
    return f'<td class="meter {colour(row)}">{bar}<span>{escape(size_words(value))}</span></td>'
