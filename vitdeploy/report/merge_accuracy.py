"""Accuracy from an earlier report: what a file answers to the same images does not change with the hour.

Comparing thousands of images takes long and needs no quiet machine; timing is short and does. So the two can be done
apart, and joined where nothing that decides an answer differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitdeploy.backends.registry import known
from vitdeploy.core.errors import InputError
from vitdeploy.evaluation.accuracy import Accuracy
from vitdeploy.evaluation.changes import Disagreement
from vitdeploy.report.recommendation import recommended
from vitdeploy.report.records import BenchReport, Row

__all__ = ["with_accuracy"]


def with_accuracy(report: BenchReport, earlier: BenchReport) -> BenchReport:
    """`report` with the accuracy that `earlier` found of the same files on the same images, and a note that says so.

    A row gets it where nothing that decides an answer differs: its files (a checkpoint's image processor among
    them), the model's labels, the dataset's classes and images, the backend, the versions of its packages, the
    processor. Others stay as they are. Where the baseline's row does not get it, the changes against it go.

    Raises:
        InputError: the images or the baselines differ, or no row can take its accuracy from there.
    """
    if report.dataset["fingerprint"] != earlier.dataset["fingerprint"]:
        raise InputError(
            "the earlier report is on other images",
            hint="name the same --dataset, --split, --limit and --seed as there",
        )
    if report.baseline["key"] != earlier.baseline["key"]:
        raise InputError(
            f"the earlier report compares with {earlier.baseline['key']}, this one with {report.baseline['key']}",
            hint="name the same --baseline as there",
        )
    if any(row.multi_label or row.embedding for row in earlier.rows):
        raise InputError(
            "only top-1 is supported for --accuracy-from, no several labels an image and no embeddings",
            hint="measure accuracy here: leave --accuracy-from out",
        )
    known = {row.key: row for row in earlier.rows}
    rows = tuple(_taken(row, known.get(row.key), report, earlier) for row in report.rows)
    taken = [row for row in rows if row.accuracy is not None]
    if not taken:
        raise InputError(
            "no row of the earlier report has the same files, labels, backend and versions",
            hint="measure accuracy here: leave --accuracy-from out",
        )
    if not any(row.key == report.baseline["key"] for row in taken):
        rows = tuple(replace(row, accuracy=row.accuracy and _alone(row.accuracy)) for row in rows)
    notes = [f"accuracy of {len(taken)} rows was measured on {earlier.created[:10]} and taken from that report"]
    shown, number = earlier.disagreements, earlier.disagreement_count
    if len(taken) < sum(row.accuracy is not None for row in earlier.rows):
        shown = _among({row.key for row in taken}, earlier)
        # Which images the forms left out had in common with these is not known.
        number = max(len(shown), *(_differ(row) for row in taken))
        notes.append("the number of images on which forms disagree is the least it can be: not all forms were taken")
    facts: dict[str, Any] = {
        "disagreements": shown,
        "disagreement_count": number,
        "notes": (*report.notes, *notes),
        "settings": replace(report.settings, accuracy=True),
    }
    return recommended(replace(report, rows=rows, **facts))


def _alone(accuracy: Accuracy) -> Accuracy:
    """What is known without the baseline's answers."""
    return replace(accuracy, delta=None, delta_ci95=None, drop_bound=None, mcnemar_p=None, agreement=None, changes=None)


def _among(keys: set[str], report: BenchReport) -> tuple[Disagreement, ...]:
    """The disputed images on which forms of `keys` differ from the baseline, with the answers of these forms."""
    found = []
    for item in report.disagreements:
        answers = {key: answer for key, answer in item.answers.items() if key in keys}
        if len({label for label, _ in answers.values()}) > 1:
            found.append(replace(item, answers=answers))
    return tuple(found)


def _differ(row: Row) -> int:
    """On how many images a form's best class is not the baseline's."""
    accuracy = row.accuracy
    return 0 if accuracy is None or accuracy.agreement is None else round((1 - accuracy.agreement) * accuracy.count)


def _taken(row: Row, old: Row | None, report: BenchReport, earlier: BenchReport) -> Row:
    if old is None or row.status != "ok" or old.accuracy is None:
        return row
    backend = known(row.backend)
    packages = () if backend is None else backend.decisive
    same = (
        backend is not None
        and row.answers_sha256 is not None
        and row.answers_sha256 == old.answers_sha256
        and row.device == old.device
        and report.machine.get("cpu") == earlier.machine.get("cpu")
        and all(report.versions.get(name) == earlier.versions.get(name) for name in packages)
    )
    return replace(row, accuracy=old.accuracy) if same else row
