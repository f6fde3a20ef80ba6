"""Sections about accuracy: changed answers, classes, confusion, and the images in dispute."""

from __future__ import annotations

from html import escape

from vitdeploy.evaluation.changes import Changes, Disagreement
from vitdeploy.report.formatting import backend_name, count, form_name, named, percent, points
from vitdeploy.report.html.markup import columns, name_cell, section, table_card
from vitdeploy.report.records import BenchReport, Row

__all__ = ["changes_section", "classes_section", "confusion_section", "images_section"]

_MOST_CLASSES = 20
_FLOWS = 8


def changes_section(report: BenchReport) -> str:
    """How many answers each form changes, how sure it is, and between which classes INT8 moves them."""
    rows = [row for row in report.rows if row.accuracy and row.accuracy.changes]
    base = report.base
    if not rows or base is None or base.accuracy is None:
        return ""
    lines = [_changes_line(row) for row in rows]
    heads = ("agreement", "right → wrong", "wrong → right", "wrong → wrong", "confidence", "calibration error", "top-5")
    lead = (
        f"How often each form has the same best class as {escape(str(report.baseline.get('name')))} on the same "
        f"{_images(rows)}, what became of the other answers, and how sure of them it is: the "
        "mean score of its best class, and its expected calibration error (the baseline's is "
        f"{percent(base.accuracy.calibration_error)})."
    )
    return section("Changed answers", lead, table_card("form", columns(heads), lines)) + _flows(report, rows)


def _images(rows: list[Row]) -> str:
    """On how many images rows were compared: after an interruption some on fewer than others."""
    counts = sorted({row.accuracy.count for row in rows if row.accuracy})
    return " to ".join([*(f"{number:,}" for number in counts[:-1][:1]), count(counts[-1], "image")])


def _changes_line(row: Row) -> str:
    accuracy = row.accuracy
    assert accuracy is not None and accuracy.changes is not None
    changes = accuracy.changes
    shift = 100 * (changes.confidence - changes.baseline_confidence)
    cells = (
        "–" if accuracy.agreement is None else percent(accuracy.agreement),
        f'<span class="{"bad" if changes.lost else ""}">{changes.lost:,}</span>',
        f'<span class="{"good" if changes.won else ""}">{changes.won:,}</span>',
        f"{changes.moved:,}",
        f"{percent(changes.confidence, 1)}<small>{points(shift / 100)} points</small>",
        percent(accuracy.calibration_error),
        "–" if accuracy.top5 is None else percent(accuracy.top5),
    )
    return f"<tr>{name_cell(row)}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _flows(report: BenchReport, rows: list[Row]) -> str:
    """From which class to which the answers of INT8 forms move."""
    shown = [row for row in rows if row.form.startswith("int8") and row.accuracy and row.accuracy.changes]
    cards = "".join(
        _flow_card(row, row.accuracy.changes, report.labels)
        for row in shown
        if row.accuracy and row.accuracy.changes and row.accuracy.changes.count
    )
    if not cards:
        return ""
    lead = "The most frequent changes of the best class, from the baseline's answer to INT8's."
    return section("What INT8 changed", lead, f'<div class="flows">{cards}</div>')


def _flow_card(row: Row, changes: Changes, labels: tuple[str, ...]) -> str:
    most = max(changes.count)
    flows = list(zip(changes.before, changes.after, changes.count, strict=True))[:_FLOWS]
    lines = "".join(
        f"<li><span>{escape(labels[before])} → {escape(labels[after])}</span>"
        f'<i style="width:{100 * number / most:.0f}%"></i><em>{number}</em></li>'
        for before, after, number in flows
    )
    return f'<div class="card flow"><h3>{escape(named(row))}</h3><ul>{lines}</ul></div>'


def classes_section(report: BenchReport) -> str:
    """Share of each class that is recognised, or of several labels an image the average precision of each, and its
    change by form."""
    base = report.base
    shares = _by_class(base)
    others = [row for row in report.rows if _by_class(row) and row is not base]
    if base is None or not shares or not others:
        return ""
    changes = {
        label: [_class_change(row, base, index) for row in others]
        for index, label in enumerate(report.labels)
        if shares[index] is not None
    }
    strongest = sorted(changes, key=lambda label: -max(abs(change or 0) for change in changes[label]))[:_MOST_CLASSES]
    shown = [label for label in changes if label in set(strongest)]
    most = max((abs(change or 0) for label in shown for change in changes[label]), default=0) or 1
    head = columns(["baseline", *(f"{escape(form_name(row.form))}<br>{escape(backend_name(row))}" for row in others)])
    index = {label: place for place, label in enumerate(report.labels)}
    lines = "".join(
        f'<tr><td class="name">{escape(label)}</td><td>{100 * (shares[index[label]] or 0):.1f} %</td>'
        + "".join(_heat(change, most) for change in changes[label])
        + "</tr>"
        for label in shown
    )
    several = base.multi_label is not None
    one, many, title = ("label", "labels", "Label by label") if several else ("class", "classes", "Class by class")
    cut = f" The {len(shown)} {many} that change most, of {len(changes)}." if len(shown) < len(changes) else ""
    what = (
        "The baseline's average precision of each label"
        if several
        else "Share of each class that the baseline recognises"
    )
    lead = f"{what}, and the change in points by form. One {one} has few images, so small changes mean little.{cut}"
    return section(title, lead, table_card(one, head, lines, "heat"))


def _by_class(row: Row | None) -> tuple[float | None, ...]:
    """How well each class or label is found, 0..1, None where no image has it; nothing where that is not known."""
    if row is None:
        return ()
    if row.multi_label is not None:
        return row.multi_label.per_label
    return row.accuracy.per_class if row.accuracy is not None else ()


def _class_change(row: Row, base: Row, index: int) -> float | None:
    own, theirs = _by_class(row)[index], _by_class(base)[index]
    return None if own is None or theirs is None else own - theirs


def _heat(change: float | None, most: float) -> str:
    if change is None:
        return "<td>–</td>"
    tint = "loss" if change < 0 else "gain"
    return f'<td style="background:rgba(var(--{tint}),{0.42 * abs(change) / most:.2f})">{points(change)}</td>'


def confusion_section(report: BenchReport) -> str:
    """Which classes the recommended form mixes up."""
    row = report.best or report.base
    if row is None or row.accuracy is None or row.accuracy.confusion is None or len(report.labels) > _MOST_CLASSES:
        return ""
    found = row.accuracy.confusion
    counts = {(t, a): n for t, a, n in zip(found.true, found.answer, found.count, strict=True)}
    totals = [sum(n for (t, _), n in counts.items() if t == label) for label in range(len(report.labels))]
    wrong = max((n / totals[t] for (t, a), n in counts.items() if t != a), default=0) or 1
    head = "".join(f'<th scope="col" class="up"><span>{escape(label)}</span></th>' for label in report.labels)
    lines = "".join(
        f'<tr><td class="name">{escape(label)}</td>'
        + "".join(_confused(counts.get((t, a), 0), totals[t], wrong, t == a) for a in range(len(report.labels)))
        + "</tr>"
        for t, label in enumerate(report.labels)
    )
    lead = f"{escape(named(row))}: each line is a true class, each column an answer, in images."
    return section("Confused classes", lead, table_card("true class", head, lines, "heat confusion"))


def _confused(number: int, total: int, most: float, right: bool) -> str:
    if not number:
        return '<td class="none">·</td>'
    share = number / total
    shade = 0.32 * share if right else 0.1 + 0.45 * share / most
    return f'<td style="background:rgba(var(--{"gain" if right else "loss"}),{shade:.2f})">{number:,}</td>'


def images_section(report: BenchReport) -> str:
    """The images on which forms disagree most."""
    if not report.disagreements:
        return ""
    cards = "".join(_image(report, item) for item in report.disagreements)
    seen = min((row.accuracy.count for row in report.rows if row.accuracy), default=report.dataset.get("count"))
    lead = (
        f"On {report.disagreement_count:,} of {count(seen, 'image')} some form's best class is not the baseline's."
        " These are the most disputed, with each answer and its score."
    )
    return section("Where the forms disagree", lead, f'<div class="images">{cards}</div>')


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
        f'<div class="card image{"" if picture else " bare"}">{picture}'
        f'<div><p>{escape(item.label)} <span class="no">no. {item.index}</span></p><ul>{lines}</ul></div></div>'
    )


def _span(given: list[tuple[Row, float]]) -> str:
    low, high = (round(100 * end(score for _, score in given)) for end in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _who(given: list[tuple[Row, float]]) -> str:
    """The forms in words: "FP32 PyTorch, OpenVINO; INT8 OpenVINO"."""
    forms: dict[str, list[str]] = {}
    for row, _ in given:
        forms.setdefault(form_name(row.form), []).append(backend_name(row))
    return "; ".join(f"{form} {', '.join(backends)}" for form, backends in forms.items())
