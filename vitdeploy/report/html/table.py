"""The page's table: a line per form, and per size where several were measured."""

from __future__ import annotations

from html import escape

from vitdeploy.evaluation.vectors import VectorQuality
from vitdeploy.report.formatting import ms, percent, points, rate, size_words
from vitdeploy.report.html.markup import columns, name_cell, section, table_card
from vitdeploy.report.records import BenchReport, Latency, Quality, Ratio, Row
from vitdeploy.report.table import HEAD, VECTORS

__all__ = ["every_form"]

_ROOMY = 11  # columns that a desk's width holds with much space between them


def every_form(report: BenchReport) -> str:
    """All rows, the ones without numbers with their reason."""
    several = {
        "batch": len(report.settings.batch_sizes) > 1,
        "image": len(report.settings.image_sizes) > 1,
    }
    on_gpu = any(latency.device_ms for row in report.rows for latency in row.latencies)
    heads = [name for name, shown in several.items() if shown]
    timed, compared, probed = (any(getattr(row, n) for row in report.rows) for n in ("latency", "quality", "memory"))
    nothing = not (timed or compared)  # then all columns are there, and empty
    if timed or nothing:
        latencies = [latency for row in report.rows for latency in row.latencies]
        apart = any(latency.on_demand_ms for latency in latencies) or nothing  # an older report has steady times alone
        heads += ["p50 ms", "p95", *(["p99"] if any(item.ms.p99 for item in latencies) else []), "speed-up"]
        heads += [
            *(["steady p50", "steady speed-up"] if apart else []),
            *(["GPU p50", "GPU speed-up"] if on_gpu else []),
            "images/s",
        ]
    if compared or nothing:
        heads += _quality_heads(report)
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
    alone = any(row.cold_start for row in report.rows)  # each form in a fresh process, its import included
    start = "importing the backend in a fresh process" if alone else "opening the file"
    lead = "".join(
        sentence
        for sentence, shown in (
            ("Times run from decoded pixels to class scores, images already in memory. ", timed),
            ("p50 and p95 are of single calls, each after a rest; steady ones follow each other. ", timed),
            ("GPU: by the GPU's own clock, without what the machine adds. ", on_gpu),
            ("Small print under a value is its 95 % interval. ", True),
            ("Memory: the peak of a process that runs nothing else. ", probed),
            (f"Start: from {start} to the first scores.", timed),
        )
        if shown
    )
    kind = "dense" if len(heads) > _ROOMY else ""
    return section("Every form", lead, table_card("form", columns(map(escape, heads)), lines, kind))


def _quality_heads(report: BenchReport) -> list[str]:
    vectors = [row.embedding for row in report.rows if row.embedding]
    if vectors:
        knn = [f"{vectors[0].k}NN top-1", "change"] if any(found.knn for found in vectors) else []
        return [*(HEAD[name][0] for name in VECTORS), *knn]
    labels = any(row.multi_label for row in report.rows)
    return ["mAP", "change", "F1", "macro F1", "exact match"] if labels else ["top-1", "change"]


def _line(report: BenchReport, row: Row, latency: Latency | None, heads: list[str], *, first: bool) -> str:
    values = {**_performance(report, row, latency), **(_accuracy(row) if first else {})}
    if first:
        start = "–" if row.cold_start_ms is None else f"{row.cold_start_ms / 1000:.2f} s"
        values.update(size=escape(size_words(row.size_bytes)), start=start)
    best = ' class="best"' if first and row.key == report.recommendation.get("key") else ""
    note = "".join(f'<em class="broken">{escape(limit)}</em>' for limit in row.outside) if first else ""
    cells = "".join(f"<td>{values.get(head, '–' if first else '')}</td>" for head in heads)
    return f"<tr{best}>{name_cell(row, note)}{cells}</tr>"


def _performance(report: BenchReport, row: Row, latency: Latency | None) -> dict[str, str]:
    """Cells about time and memory, as markup, by their heads."""
    if latency is None:
        return {}
    is_baseline = row.key == report.baseline.get("key")
    height, width = latency.image_size or (0, 0)
    memory = latency.memory
    taken = "–" if memory is None else size_words(memory.host_peak_bytes)
    if memory is not None and memory.device_peak_bytes:
        taken += f"<small>GPU {size_words(memory.device_peak_bytes)}</small>"
    return {
        "batch": str(latency.batch_size),
        "image": f"{height}×{width}",
        "p50 ms": f"{ms(latency.ms.p50)}<small>n {latency.ms.count:,}</small>",
        "p95": ms(latency.ms.p95),
        "p99": ms(latency.ms.p99),
        "speed-up": _ratio(latency, latency.speedup, is_baseline),
        "steady p50": f"{ms(latency.steady_ms.p50)}<small>n {latency.steady_ms.count:,}</small>",
        "steady speed-up": _ratio(latency, latency.steady_speedup, is_baseline),
        "GPU p50": "–" if latency.device_ms is None else ms(latency.device_ms.p50),
        "GPU speed-up": "–" if latency.device_ms is None else _ratio(latency, latency.device_speedup, is_baseline),
        "images/s": rate(latency.images_per_s),
        "memory": taken,
    }


def _ratio(latency: Latency, speedup: Ratio | None, is_baseline: bool) -> str:
    if speedup is None:
        return "–<small>busy</small>" if latency.busy else "–"
    if is_baseline:
        return "1×<small>baseline</small>"
    interval = "" if speedup.ci95 is None else f"<small>{speedup.ci95[0]:.2f} to {speedup.ci95[1]:.2f}</small>"
    return f"{speedup.ratio:.2f}×{interval}"


def _vectors(found: VectorQuality, quality: Quality) -> dict[str, str]:
    """Cells about an embedding, as markup, by their heads."""
    values = {}
    for name in VECTORS:
        number = getattr(found, name)
        if number is not None:
            low, high = number.ci95
            values[HEAD[name][0]] = f"{number.value:.4f}<small>{low:.4f} to {high:.4f}</small>"
    if found.knn is not None:
        low, high = found.knn.ci95
        values[quality.metric] = f"{percent(found.knn.top1)}<small>{100 * low:.1f} to {100 * high:.1f}</small>"
    if quality.delta is not None and quality.delta_ci95 is not None:
        low, high = quality.delta_ci95
        values["change"] = f"{points(quality.delta)}<small>{points(low)} to {points(high)}</small>"
    return values


def _accuracy(row: Row) -> dict[str, str]:
    """Cells about accuracy, as markup, by their heads."""
    quality = row.quality
    if quality is None:
        return {}
    if row.embedding is not None:
        return _vectors(row.embedding, quality)
    accuracy, several = row.accuracy, row.multi_label
    low, high = (accuracy or several).ci95  # type: ignore[union-attr]
    values = {quality.metric: f"{percent(quality.value)}<small>{100 * low:.1f} to {100 * high:.1f}</small>"}
    if quality.delta is not None and quality.delta_ci95 is not None:
        low, high = quality.delta_ci95
        values["change"] = f"{points(quality.delta)}<small>{points(low)} to {points(high)}</small>"
    if several is not None:
        values["F1"] = _share(several.f1_micro, several.f1_micro_ci95)
        values["macro F1"] = _share(several.f1_macro, several.f1_macro_ci95)
        values["exact match"] = _share(several.exact_match, several.exact_match_ci95)
    return values


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return percent(value) + (
        "" if interval is None else f"<small>{100 * interval[0]:.1f} to {100 * interval[1]:.1f}</small>"
    )
