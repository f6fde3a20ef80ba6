"""The report as one page that needs nothing else: no network, no script, its pictures inside."""

from __future__ import annotations

from html import escape
from typing import Any

from vitdeploy.bench.plots import colour, distributions, mark, tradeoff
from vitdeploy.bench.report import BenchReport, Disagreement, Latency, Row
from vitdeploy.bench.style import CSS
from vitdeploy.bench.svg import element
from vitdeploy.bench.table import size
from vitdeploy.bench.verdict import NAMES, form_name, named, points

__all__ = ["render_html"]

_WIDE, _NARROW = 1000, 360  # pictures are drawn twice, so that their text has one size on a phone and on a desk
_MOST_CLASSES = 20


def render_html(report: BenchReport) -> str:
    """The page; every text that comes from outside is escaped."""
    title = f"{report.bundle.get('name') or 'bundle'} · vitdeploy benchmark"
    body = "".join(
        (
            _head(report),
            _banners(report),
            _numbers(report),
            _table(report),
            _tradeoff(report),
            _distributions(report),
            _sizes(report),
            _classes(report),
            _images(report),
            _method(report),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _head(report: BenchReport) -> str:
    facts = [
        str(report.machine.get("cpu", "")),
        ", ".join(item["name"] for item in report.machine.get("gpu", [])),
        _count(report.settings.get("threads"), "thread"),
        f"{report.dataset.get('name')}, {report.dataset.get('split')}: {_count(report.dataset.get('count'), 'image')}",
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
            f"<b>Noisy.</b> Take these times with care, and measure again on a quiet machine:<ul>{reasons}</ul>"
        )
    return "".join(f'<div class="banner" role="note">{part}</div>\n' for part in parts)


def _numbers(report: BenchReport) -> str:
    key = report.recommendation.get("key")
    if key is None:
        return ""
    row = report.row(key)
    latency, accuracy = row.latency, row.accuracy
    cards = []
    if latency is not None:
        if latency.speedup is not None and latency.speedup_ci95 is not None and key != report.baseline.get("key"):
            low, high = latency.speedup_ci95
            words = f"as fast as {report.baseline.get('name')}, 95 % interval {low:.2f} to {high:.2f}"
            cards.append((f"{latency.speedup:.2f}×", words))
        cards.append((f"{_ms(latency.p50)} ms", f"median latency, {_ms(latency.p99)} ms at p99"))
    if accuracy is not None:
        words = f"top-1 of {named(row)}"
        if accuracy.delta is not None:
            words = f"top-1, {points(accuracy.delta)} points against the baseline"
        cards.append((f"{100 * accuracy.top1:.2f} %", words))
    base = next((r for r in report.rows if r.key == report.baseline.get("key")), None)
    if row.size_bytes is not None:
        against = ""
        if base is not None and base is not row and base.size_bytes:
            against = f", the baseline's is {size(base.size_bytes)}"
        cards.append((size(row.size_bytes), f"size of the file{against}"))
    inside = "".join(f'<div class="number"><b>{escape(n)}</b><span>{escape(w)}</span></div>' for n, w in cards)
    return f'<section class="numbers" aria-label="The recommended form">{inside}</section>\n'


def _table(report: BenchReport) -> str:
    batches = len(report.settings.get("batch_sizes", [])) > 1
    heads = ["p50 ms", "p95", "p99", "images/s", "speed-up", "top-1", "change", "agreement", "size", "start"]
    if batches:
        heads.insert(0, "batch")
    lines = []
    for row in report.rows:
        if row.status != "ok":
            why = f'<span class="tag {row.status}">{row.status}</span> {escape(row.reason or "")}'
            lines.append(
                f'<tr class="off">{_name(row)}<td class="why" colspan="{len(heads)}"><div>{why}</div></td></tr>'
            )
            continue
        best = ' class="best"' if row.key == report.recommendation.get("key") else ""
        for place, latency in enumerate(row.latencies or (None,)):
            values = _values(report, row, latency, first=place == 0)
            if batches:
                values.insert(0, "–" if latency is None else str(latency.batch_size))
            body = "".join(f"<td>{value}</td>" for value in values)
            lines.append(f"<tr{best if place == 0 else ''}>{_name(row)}{body}</tr>")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        "<h2>Every form</h2><p>Times run from decoded pixels to class scores, images already in memory. "
        "Small print under a value is its 95 % interval. Start: from opening the file to its first scores.</p>"
        f'<div class="card scroll"><table><thead><tr><th class="name" scope="col">form</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>\n"
    )


def _name(row: Row) -> str:
    backend = escape(NAMES.get(row.backend, row.backend))
    return f'<td class="name"><b>{escape(form_name(row.form))}</b><small>{backend}</small></td>'


def _values(report: BenchReport, row: Row, latency: Latency | None, *, first: bool) -> list[str]:
    """One line of the table after the name, as markup."""
    is_baseline = row.key == report.baseline.get("key")
    values = ["–"] * 5
    if latency is not None:
        ratio = "–"
        if latency.speedup is not None and latency.speedup_ci95 is not None:
            low, high = latency.speedup_ci95
            ratio = (
                "1×<small>baseline</small>"
                if is_baseline
                else f"{latency.speedup:.2f}×<small>{low:.2f} to {high:.2f}</small>"
            )
        values = [_ms(latency.p50), _ms(latency.p95), _ms(latency.p99), _rate(latency.images_per_s), ratio]
    kept = ["–"] * 3 if first else [""] * 3
    if row.accuracy is not None and first:
        low, high = row.accuracy.ci95
        kept[0] = f"{100 * row.accuracy.top1:.2f} %<small>{100 * low:.1f} to {100 * high:.1f}</small>"
        if row.accuracy.delta is not None and row.accuracy.delta_ci95 is not None:
            low, high = row.accuracy.delta_ci95
            kept[1] = f"{points(row.accuracy.delta)}<small>{points(low)} to {points(high)}</small>"
        if row.accuracy.agreement is not None:
            kept[2] = f"{100 * row.accuracy.agreement:.2f} %"
    cold = "–" if row.cold_start_ms is None else f"{row.cold_start_ms / 1000:.2f} s"
    return [*values, *kept, escape(size(row.size_bytes)) if first else "", cold if first else ""]


def _tradeoff(report: BenchReport) -> str:
    wide, narrow = tradeoff(report, _WIDE, "wide"), tradeoff(report, _NARROW, "narrow")
    if wide is None or narrow is None:
        return ""
    backends = dict.fromkeys(row.backend for row in report.rows if row.latency and row.accuracy)
    shapes = "".join(
        f"<li>{element('svg', element('g', mark(backend, 8, 8, 5), class_='shape'), viewBox='0 0 16 16')}"
        f"{escape(NAMES.get(backend, backend))}</li>"
        for backend in backends
    )
    return (
        "<h2>What each form keeps, against what it costs</h2>"
        "<p>Up is more accurate, left is faster. Filled marks are on the front: nothing else is both faster and more "
        "accurate. The lines are paired 95 % intervals of the change.</p>"
        f'<div class="card plot"><ul class="key">{shapes}</ul>{wide}{narrow}</div>\n'
    )


def _distributions(report: BenchReport) -> str:
    wide, narrow = distributions(report, _WIDE, "wide"), distributions(report, _NARROW, "narrow")
    if wide is None or narrow is None:
        return ""
    return (
        "<h2>How steady each form is</h2><p>Every dot is a call, the band holds the middle half of them; lines mark "
        "p50 (thick), p95 (thin) and p99 (dashed). Calls beyond p99 of all forms sit at the border.</p>"
        f'<div class="card plot">{wide}{narrow}</div>\n'
    )


def _sizes(report: BenchReport) -> str:
    rows = [row for row in report.rows if row.size_bytes]
    files: dict[str, Row] = {}
    for row in rows:
        files.setdefault(row.artifact.path if row.artifact else row.key, row)
    if not files:
        return ""
    most = max(row.size_bytes or 0 for row in files.values())
    bars = "".join(
        f'<div class="bar {colour(row)}"><span>{escape(path)}</span><span class="track">'
        f'<i style="width:{82 * (row.size_bytes or 0) / most:.1f}%"></i>'
        f"<em>{escape(size(row.size_bytes))}</em></span></div>"
        for path, row in files.items()
    )
    return f'<h2>Size of each file</h2><p>What has to be shipped to a device.</p><div class="card bars">{bars}</div>\n'


def _classes(report: BenchReport) -> str:
    base = next((row for row in report.rows if row.key == report.baseline.get("key")), None)
    others = [row for row in report.rows if row.accuracy and row is not base]
    if base is None or base.accuracy is None or not others:
        return ""
    changes = {
        label: [_class_change(row, base, index) for row in others]
        for index, label in enumerate(report.labels)
        if base.accuracy.per_class[index] is not None
    }
    strongest = sorted(changes, key=lambda label: -max(abs(change or 0) for change in changes[label]))[:_MOST_CLASSES]
    shown = [label for label in changes if label in set(strongest)]
    most = max((abs(change or 0) for label in shown for change in changes[label]), default=0) or 1
    head = "".join(
        f'<th scope="col">{escape(form_name(row.form))}<br>{escape(NAMES.get(row.backend, row.backend))}</th>'
        for row in others
    )
    index = {label: place for place, label in enumerate(report.labels)}
    lines = "".join(
        f'<tr><td class="name">{escape(label)}</td><td>{100 * (base.accuracy.per_class[index[label]] or 0):.1f} %</td>'
        + "".join(_heat(change, most) for change in changes[label])
        + "</tr>"
        for label in shown
    )
    cut = f" The {len(shown)} classes that change most, of {len(changes)}." if len(shown) < len(changes) else ""
    return (
        "<h2>Class by class</h2><p>Share of each class that the baseline recognises, and the change in points by form. "
        f"One class has few images, so small changes mean little.{cut}</p>"
        '<div class="card scroll"><table class="heat"><thead><tr><th class="name" scope="col">class</th>'
        f'<th scope="col">baseline</th>{head}</tr></thead><tbody>{lines}</tbody></table></div>\n'
    )


def _class_change(row: Row, base: Row, index: int) -> float | None:
    assert row.accuracy is not None and base.accuracy is not None
    own, theirs = row.accuracy.per_class[index], base.accuracy.per_class[index]
    return None if own is None or theirs is None else own - theirs


def _heat(change: float | None, most: float) -> str:
    if change is None:
        return "<td>–</td>"
    tint = "loss" if change < 0 else "gain"
    return f'<td style="background:rgba(var(--{tint}),{0.42 * abs(change) / most:.2f})">{points(change)}</td>'


def _images(report: BenchReport) -> str:
    if not report.disagreements:
        return ""
    cards = "".join(_image(report, item) for item in report.disagreements)
    total = report.dataset.get("count")
    count, several = report.disagreement_count, "image" if report.disagreement_count == 1 else "images"
    return (
        f"<h2>Where the forms disagree</h2><p>On {count} of {escape(str(total))} {several} some form's"
        " best class is not the baseline's. These are the most disputed, with each answer and its probability.</p>"
        f'<div class="images">{cards}</div>\n'
    )


def _image(report: BenchReport, item: Disagreement) -> str:
    """A card: the picture, what it is, and per answer the forms that gave it."""
    answers: dict[str, list[tuple[Row, float]]] = {}
    for key, (label, score) in item.answers.items():
        answers.setdefault(label, []).append((report.row(key), score))
    lines = "".join(
        f'<li class="{"right" if label == item.label else "wrong"}"><b>{escape(label)}</b> {_span(given)}'
        f"<small>{escape(_who(given))}</small></li>"
        for label, given in answers.items()
    )
    alt = escape(f"image {item.index}: {item.label}", quote=True)
    picture = ""
    if item.image_png:
        picture = f'<img src="data:image/png;base64,{escape(item.image_png, quote=True)}" alt="{alt}">'
    return (
        f'<div class="card image">{picture}'
        f'<div><p>{escape(item.label)} <span class="no">no. {item.index}</span></p><ul>{lines}</ul></div></div>'
    )


def _span(given: list[tuple[Row, float]]) -> str:
    low, high = (round(100 * end(score for _, score in given)) for end in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _who(given: list[tuple[Row, float]]) -> str:
    """The forms in words: "FP32 PyTorch, OpenVINO; INT8 OpenVINO"."""
    forms: dict[str, list[str]] = {}
    for row, _ in given:
        forms.setdefault(form_name(row.form), []).append(NAMES.get(row.backend, row.backend))
    return "; ".join(f"{form} {', '.join(backends)}" for form, backends in forms.items())


def _method(report: BenchReport) -> str:
    machine, settings, dataset = report.machine, report.settings, report.dataset
    latency = settings.get("latency") or {}
    rounds = max((len(r.latency.samples) // r.latency.calls_per_round for r in report.rows if r.latency), default=0)
    memory = machine.get("memory_bytes")
    flags = " ".join(machine.get("cpu_flags", []))
    fewest = min((len(row.latency.samples) for row in report.rows if row.latency), default=0)
    timing = (
        f"{rounds} rounds after a warm-up that ends when the time is stable (at the latest after "
        f"{latency.get('warmup_seconds', 0):g} s). In each round every form has one turn, in random order: one call "
        f"that is not kept, then up to {latency.get('calls_per_round')} that are. {fewest} or more samples a form"
        + (", so p99 lies close to the slowest call." if fewest < 200 else ".")
    )
    entries: list[tuple[str, Any]] = [
        (
            "Machine",
            f"{machine.get('cpu')}, {_count(machine.get('cores'), 'core')}"
            + (f", {memory / 1e9:.0f} GB" if memory else ""),
        ),
        ("CPU features", flags),
        ("GPU", ", ".join(f"{g['name']} (driver {g.get('driver')})" for g in machine.get("gpu", [])) or "none"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("Data", f"{dataset.get('name')}, {dataset.get('split')}, {_count(dataset.get('count'), 'image')}"),
        ("Data fingerprint", dataset.get("fingerprint")),
        ("Bundle", f"{report.bundle.get('name')}, manifest {report.bundle.get('manifest_sha256')}"),
        ("Baseline", report.baseline.get("description")),
        ("Threads", f"{settings.get('threads')}, the same for every backend"),
        ("Latency", timing if latency else "not measured"),
        (
            "Speed-up",
            "median over rounds of baseline time / form time in the same round; bootstrap over rounds"
            if latency
            else None,
        ),
        (
            "Accuracy",
            "the same images for all forms; Wilson's interval for top-1; for the change, Bonett and Price's interval "
            "for paired shares and McNemar's exact test"
            if settings.get("accuracy")
            else "not measured",
        ),
        ("McNemar p", _p_values(report)),
        ("Notes", "; ".join(report.notes)),
    ]
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in entries if value
    )
    if report.command:
        lines += f"<div><dt>Command</dt><dd><code>{escape(report.command)}</code></dd></div>"
    return (
        "<h2>How this was measured</h2><p>Enough to do it again.</p>"
        f'<div class="card method"><dl>{lines}</dl></div><footer>{escape(report.created)}</footer>\n'
    )


def _p_values(report: BenchReport) -> str:
    shown = []
    for row in report.rows:
        if row.accuracy is not None and row.accuracy.mcnemar_p is not None:
            p = row.accuracy.mcnemar_p
            shown.append(f"{named(row)} {'< 0.001' if p < 0.001 else f'{p:.3f}'}")
    return ", ".join(shown)


def _count(number: Any, unit: str) -> str:
    return "" if number is None else f"{number:,} {unit}{'' if number == 1 else 's'}"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
