"""The report as lines of a table, for the renderers that write text: its columns, its cells, and what stands below."""

from __future__ import annotations

from collections.abc import Iterator

from vitdeploy.evaluation.vectors import Kept
from vitdeploy.report.formatting import NONE, backend_name, count, data_words, form_name, ms, points, rate, size_words
from vitdeploy.report.records import BenchReport, Latency, Memory, Ratio, Row

__all__ = ["HEAD", "VECTORS", "about", "cells", "columns", "lines"]

HEAD = {  # column: (what it is called, in a narrow terminal)
    "form": ("form", "form"),
    "backend": ("backend", "backend"),
    "batch": ("batch", "batch"),
    "image": ("image", "image"),
    "size": ("size", "size"),
    "memory": ("memory", "memory"),
    "start": ("start", "start"),
    "n": ("n", "n"),
    "p50": ("p50 ms", "p50"),
    "p95": ("p95 ms", "p95"),
    "p99": ("p99 ms", "p99"),
    "speedup": ("speed-up", "faster"),
    "steady": ("steady ms", "steady"),
    "steady_speedup": ("steady speed-up", "faster"),
    "rate": ("images/s", "img/s"),
    "top1": ("top-1", "top-1"),
    "map": ("mAP", "mAP"),
    "f1": ("F1", "F1"),
    "f1_macro": ("macro F1", "macro"),
    "exact": ("exact match", "exact"),
    "cosine": ("cosine", "cosine"),
    "cosine_p1": ("cosine p1", "p1"),
    "neighbour": ("nearest", "nearest"),
    "recall": ("recall@k", "recall"),
    "queries": ("queries on the baseline's index", "queries"),
    "index": ("index for the baseline's queries", "index"),
    "knn": ("kNN top-1", "kNN"),
    "change": ("change", "change"),
    "agreement": ("agreement", "agree"),
}
VECTORS = ("cosine", "cosine_p1", "neighbour", "recall", "queries", "index")
"""The columns of what an embedding keeps: fields of `VectorQuality`."""
_TIMES = ("start", "n", "p50", "p95", "p99", "speedup", "steady", "steady_speedup", "rate")


def lines(report: BenchReport) -> Iterator[tuple[Row, Latency | None]]:
    """A line per form and size that was measured."""
    for row in report.rows:
        if row.status == "ok":
            for latency in row.latencies or (None,):
                yield row, latency


def columns(report: BenchReport) -> list[str]:
    """The columns that say something in this report."""
    latencies = [latency for row in report.rows for latency in row.latencies]
    left_out = {
        "batch": len(report.settings.batch_sizes) < 2,
        "image": len(report.settings.image_sizes) < 2,
        "memory": not any(row.memory for row in report.rows),
        "p99": not any(latency.ms.p99 for latency in latencies),
        # An older report has steady times alone, and these are its p50 and its speed-up.
        **dict.fromkeys(("steady", "steady_speedup"), not any(latency.on_demand_ms for latency in latencies)),
    }
    # What was not measured of any form has no column; a run of which nothing is left keeps them all.
    if any(row.latency or row.quality for row in report.rows):
        if not latencies:
            left_out.update(dict.fromkeys(_TIMES, True))
        if not any(row.quality for row in report.rows):
            left_out.update(dict.fromkeys(("top1", "change", "agreement"), True))
    several = any(row.multi_label for row in report.rows)
    left_out.update(dict.fromkeys(("map", "f1", "f1_macro", "exact"), not several))
    vectors = [row.embedding for row in report.rows if row.embedding]
    left_out.update(dict.fromkeys(VECTORS, not any(found.cosine for found in vectors)))
    left_out["knn"] = not any(found.knn for found in vectors)
    left_out["top1"] = left_out.get("top1", False) or several or bool(vectors)
    if vectors:
        left_out.update(agreement=True, change=left_out["knn"])
    return [name for name in HEAD if not left_out.get(name)]


def cells(row: Row, latency: Latency | None, *, is_baseline: bool, intervals: bool = True) -> dict[str, str]:
    """The texts of one line of the table, by column."""
    values = dict.fromkeys(HEAD, NONE)
    values.update(form=form_name(row.form), backend=backend_name(row), size=size_words(row.size_bytes))
    if row.cold_start_ms is not None:
        values["start"] = f"{row.cold_start_ms / 1000:.2f} s"
    if latency is not None:
        height, width = latency.image_size or (0, 0)
        values.update(
            batch=str(latency.batch_size),
            image=f"{height}x{width}",
            n=str(latency.ms.count),
            p50=ms(latency.ms.p50),
            p95=ms(latency.ms.p95),
            p99=ms(latency.ms.p99),
            speedup=_ratio(latency, latency.speedup, is_baseline=is_baseline, interval=intervals),
            steady=ms(latency.steady_ms.p50),
            steady_speedup=_ratio(latency, latency.steady_speedup, is_baseline=is_baseline, interval=intervals),
            rate=rate(latency.images_per_s),
            memory=_memory(latency.memory),
        )
    quality, several = row.quality, row.multi_label
    if quality is not None:
        change = "baseline" if is_baseline else NONE
        if quality.delta is not None and quality.delta_ci95 is not None:
            low, high = quality.delta_ci95
            change = points(quality.delta) + (f" [{points(low)}, {points(high)}]" if intervals else "")
        agreement = NONE if quality.agreement is None else f"{100 * quality.agreement:.2f} %"
        main = "knn" if row.embedding is not None else "top1" if several is None else "map"
        values.update({main: f"{100 * quality.value:.2f} %", "change": change, "agreement": agreement})
    if row.embedding is not None:
        kept = {name: getattr(row.embedding, name) for name in VECTORS}
        values.update({name: _kept(number, intervals) for name, number in kept.items()})
    if several is not None:
        values.update(
            f1=_share(several.f1_micro, several.f1_micro_ci95 if intervals else None),
            f1_macro=_share(several.f1_macro, several.f1_macro_ci95 if intervals else None),
            exact=_share(several.exact_match, several.exact_match_ci95 if intervals else None),
        )
    return values


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.2f} %" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def _kept(number: Kept | None, interval: bool) -> str:
    if number is None:
        return NONE
    low, high = number.ci95
    return f"{number.value:.4f}" + (f" [{low:.4f}, {high:.4f}]" if interval else "")


def _memory(memory: Memory | None) -> str:
    if memory is None:
        return NONE
    device = f" + {size_words(memory.device_peak_bytes)} GPU" if memory.device_peak_bytes else ""
    return f"{(memory.host_peak_bytes or 0) / 1e6:.0f} MB{device}"


def _ratio(latency: Latency, speedup: Ratio | None, *, is_baseline: bool, interval: bool) -> str:
    if speedup is None:
        return "busy" if latency.busy else NONE
    if is_baseline:
        return "1×"
    shown = f" [{speedup.ci95[0]:.2f}, {speedup.ci95[1]:.2f}]" if interval and speedup.ci95 else ""
    return f"{speedup.ratio:.2f}×{shown}"


def about(report: BenchReport) -> list[str]:
    """How and on what it was measured, one plain line each; also what is wrong with it."""
    machine, settings, dataset = report.machine, report.settings, report.dataset
    gpu = ", ".join(item["name"] for item in machine.get("gpu", [])) or "no GPU"
    found = [
        f"Machine: {machine.get('cpu')}, {count(machine.get('cores'), 'core')}, {gpu},"
        f" {count(settings.threads, 'thread')} for every backend.",
        f"Data: {data_words(dataset)}.",
        f"Baseline: {report.baseline.get('description')}.",
    ]
    if settings.latency and settings.image_sizes:
        height, width = settings.image_sizes[0]
        found += [
            f"Latency: from decoded uint8 pixels ({height}x{width}) to logits, up to {settings.rounds} interleaved"
            " rounds in random order after a warm-up; p50, p95 and p99 of n calls on demand (each after a rest),"
            " steady: the median of calls that follow each other.",
            "Speed-up: the median over rounds of baseline time / form time, with a 95 % interval by order statistics.",
        ]
    if any(row.accuracy for row in report.rows):
        found.append(
            "Accuracy: the same images for every form; change in percentage points with a paired 95 % interval"
            " (Bonett-Price); agreement is how often a form's best class is the baseline's."
        )
    several = next((row.multi_label for row in report.rows if row.multi_label), None)
    if several is not None:
        found.append(
            f"Accuracy: the same images for every form, each with any of {several.labels} labels; mAP, its change in"
            " percentage points with a paired 95 % interval (bootstrap), micro and macro F1 (bootstrap) and exact match"
            f" (Wilson) of labels that count from a score of {several.threshold:.4g}; agreement is how often a form's"
            " labels are the baseline's."
        )
    vectors = next((row.embedding for row in report.rows if row.embedding), None)
    if vectors is not None:
        found.append(
            f"Embedding: the same {vectors.count:,} images for every form, each a query and all others the gallery;"
            " cosine to the baseline's vector (mean, and the 1st percentile p1); how often the nearest image is the"
            f" baseline's; the share of the baseline's {vectors.k} nearest that are found (recall@k) by the form alone,"
            " by its queries on the baseline's index, and by the baseline's queries on its index; a classifier by the"
            f" {vectors.k} nearest, where there are classes. 95 % intervals: bootstrap over queries; of the"
            " classifier's change Bonett-Price."
        )
    found += [f"Note: {note}." for note in report.notes]
    found += [f"Noisy: {reason}." for reason in report.noise]
    if report.partial:
        found.append("Partial: the benchmark was interrupted; only what was measured until then is here.")
    if report.command:
        found.append(f"Command: `{report.command}`")
    return found
