"""The page around the sections: what it says first, what to be careful about, and how all of it was measured."""

from __future__ import annotations

from html import escape
from typing import Any

from vitdeploy.report.formatting import count, data_words, ms, named, percent, points, size_words
from vitdeploy.report.html import accuracy, explained, layers, mixed, performance, table
from vitdeploy.report.html.markup import section
from vitdeploy.report.html.style import CSS
from vitdeploy.report.records import BenchReport
from vitdeploy.report.table import about

__all__ = ["render_html"]

# Each gives its section's markup, or nothing where the report has nothing to say about it.
_SECTIONS = (
    table.every_form,
    mixed.mixed_section,
    performance.tradeoff_section,
    performance.distribution_section,
    performance.sizes_section,
    performance.phases_section,
    performance.load_section,
    performance.memory_section,
    accuracy.changes_section,
    accuracy.classes_section,
    accuracy.confusion_section,
    layers.layers_section,
    explained.explained_section,
    accuracy.images_section,
)


def render_html(report: BenchReport) -> str:
    """The page; every text that comes from outside is escaped."""
    title = f"{report.bundle.get('name') or 'bundle'} · vitdeploy benchmark"
    body = _head(report) + _banners(report) + _numbers(report)
    body += "".join(part(report) for part in _SECTIONS) + _method(report)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _head(report: BenchReport) -> str:
    facts = [
        str(report.machine.get("cpu", "")),
        ", ".join(item["name"] for item in report.machine.get("gpu", [])),
        count(report.settings.threads, "thread"),
        data_words(report.dataset),
        report.created[:10],
    ]
    items = "".join(f"<li>{escape(fact)}</li>" for fact in facts if fact)
    name, sentence = str(report.bundle.get("name") or "bundle"), report.recommendation.get("sentence", "")
    return (
        f'<header><p class="over">vitdeploy benchmark</p><h1>{escape(name)}</h1>'
        f'<p class="lead">{escape(sentence)}</p><ul class="facts">{items}</ul></header>\n'
    )


def _banners(report: BenchReport) -> str:
    parts = []
    if report.partial:
        parts.append("<b>Partial.</b> The benchmark was interrupted; this page holds what was measured until then.")
    if report.noisy:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.noise)
        parts.append(
            "<details><summary><b>Noisy.</b> Take these times with care, and measure again on a quiet machine."
            f"</summary><ul>{reasons}</ul></details>"
        )
    return "".join(f'<div class="banner" role="note">{part}</div>\n' for part in parts)


def _numbers(report: BenchReport) -> str:
    row, base = report.best, report.base
    if row is None:
        return ""
    cards = []
    if row.latency is not None:
        latency = row.latency
        if latency.speedup is not None and row is not base:
            words = f"as fast as {report.baseline.get('name')}"
            if latency.speedup.ci95 is not None:
                words += ", 95 % interval {:.2f} to {:.2f}".format(*latency.speedup.ci95)
            cards.append((f"{latency.speedup.ratio:.2f}×", words))
        if latency.busy and row is not base:
            cards.append(("–", f"speed-up not measured: the machine was busy ({latency.busy})"))
        tail = "" if latency.ms.p95 is None else f", {ms(latency.ms.p95)} ms at p95"
        cards.append((f"{ms(latency.ms.p50)} ms", f"median latency{tail}, of {count(latency.ms.count, 'call')}"))
    if row.quality is not None:
        words = f"{row.quality.metric} of {named(row)}"
        if row.quality.delta is not None:
            words = f"{row.quality.metric}, {points(row.quality.delta)} points against the baseline"
        cards.append((percent(row.quality.value), words))
    if row.size_bytes is not None:
        against = base.size_bytes if base is not None and base is not row else None
        words = f", the baseline's is {size_words(against)}" if against else ""
        cards.append((size_words(row.size_bytes), f"size of the file{words}"))
    memory = row.memory.total_bytes if row.memory else None
    if memory is not None:
        against = base.memory.total_bytes if base is not None and base is not row and base.memory else None
        words = f", the baseline's {size_words(against)}" if against else ""
        both = " and of the GPU" if row.memory and row.memory.device_peak_bytes else ""
        cards.append((size_words(memory), f"peak memory of its process{both}{words}"))
    inside = "".join(f'<div class="number"><b>{escape(n)}</b><span>{escape(w)}</span></div>' for n, w in cards)
    return f'<section class="numbers" aria-label="The recommended form">{inside}</section>\n'


def _method(report: BenchReport) -> str:
    entries = [*_circumstances(report), *_how(report), ("McNemar p", _p_values(report))]
    entries.append(("Notes", "; ".join(report.notes)))
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in entries if value
    )
    if report.command:
        lines += f"<div><dt>Command</dt><dd><code>{escape(report.command)}</code></dd></div>"
    card = f'<div class="card method"><dl>{lines}</dl></div><footer>{escape(report.created)}</footer>'
    return section("How this was measured", "Enough to do it again.", card)


def _circumstances(report: BenchReport) -> list[tuple[str, Any]]:
    machine, dataset = report.machine, report.dataset
    memory = machine.get("memory_bytes")
    return [
        (
            "Machine",
            f"{machine.get('cpu')}, {count(machine.get('cores'), 'core')}"
            + (f", {memory / 1e9:.0f} GB" if memory else ""),
        ),
        ("CPU features", " ".join(machine.get("cpu_flags", []))),
        ("GPU", ", ".join(f"{g['name']} (driver {g.get('driver')})" for g in machine.get("gpu", [])) or "none"),
        ("Clocks and heat", _sensors(report)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("Data", data_words(dataset)),
        ("Data fingerprint", dataset.get("fingerprint")),
        ("Bundle", f"{report.bundle.get('name')}, manifest {report.bundle.get('manifest_sha256')}"),
        ("Baseline", report.baseline.get("description")),
        ("Threads", f"{report.settings.threads}, the same for every backend"),
    ]


def _how(report: BenchReport) -> list[tuple[str, Any]]:
    settings = report.settings
    timed = [row.latency for row in report.rows if row.latency]
    rounds = max((item.ms.count // item.ms.calls_per_round for item in timed), default=0)
    timing = (
        f"{rounds} rounds after a warm-up that ends when the time is stable (at the latest after "
        f"{settings.warmup_seconds:g} s). In each round every form has one turn, in random order: one call that is "
        f"not kept, {1000 * settings.rest_seconds:g} ms of rest, the call on demand, and {settings.steady_calls} "
        "that follow it without a rest, the steady ones. A percentile is left out where fewer than two calls lie "
        "beyond it."
    )
    if any(item.on_demand_ms is None for item in timed):
        timing = f"{rounds} rounds of steady calls, more of a fast form than of a slow one (an older schema)."
    ratio = "median over rounds of baseline time / form time in the same round; interval by order statistics"
    kept = (
        "the same images for all forms; Wilson's interval for top-1; for the change, Bonett and Price's interval "
        "for paired shares and McNemar's exact test"
    )
    several = next((row.multi_label for row in report.rows if row.multi_label), None)
    if several is not None:
        kept = (
            "the same images for all forms; for mAP, F1 and their change, percentiles of a paired bootstrap; for exact "
            f"match, Wilson's interval; a label counts from a score of {several.threshold:.4g}"
        )
    if any(row.embedding for row in report.rows):
        kept = next(line for line in about(report) if line.startswith("Embedding: ")).removeprefix("Embedding: ")
    probed = any(row.memory for row in report.rows)
    apart = "each form in a fresh process, one after the other; the file was in the system's cache" if probed else None
    return [
        ("Latency", timing if timed else "not measured"),
        ("Speed-up", ratio if timed else None),
        ("Memory and start", apart),
        ("Accuracy", kept if settings.accuracy else "not measured"),
    ]


def _sensors(report: BenchReport) -> str:
    """The ranges that were read while latency was measured."""
    found, readings = [], [dict[str, Any](reading) for reading in report.readings]
    for name, label, unit in (("cpu_mhz", "processor", "MHz"), ("cpu_celsius", "processor", "°C")):
        values = [reading[name] for reading in readings if reading.get(name) is not None]
        found += _range(label, values, unit)
    for number in range(max((len(reading.get("gpu", [])) for reading in readings), default=0)):
        taken = [reading["gpu"][number] for reading in readings if len(reading.get("gpu", [])) > number]
        for name, unit in (("clock_mhz", "MHz"), ("celsius", "°C"), ("watt", "W")):
            values = [gpu[name] for gpu in taken if gpu.get(name) is not None]
            found += _range(f"GPU {number}", values, unit)
    return "; ".join(found) + (", read now and then, never set" if found else "")


def _range(label: str, values: list[float], unit: str) -> list[str]:
    if not values:
        return []
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return [f"{label} {low if low == high else f'{low} to {high}'} {unit}"]


def _p_values(report: BenchReport) -> str:
    shown = []
    for row in report.rows:
        if row.accuracy is not None and row.accuracy.mcnemar_p is not None:
            p = row.accuracy.mcnemar_p
            shown.append(f"{named(row)} {'< 0.001' if p < 0.001 else f'{p:.3f}'}")
    return ", ".join(shown)
