"""Accuracy from an earlier report: what a file answers to the same images does not change with the hour.

Comparing thousands of images takes long and needs no quiet machine; timing is short and does. So the two can be done
apart, and joined where nothing that decides an answer differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitdeploy.bench.assemble import judged
from vitdeploy.bench.report import BenchReport, Row
from vitdeploy.errors import InputError

__all__ = ["with_accuracy"]

_PACKAGES = {  # what decides the answers of a backend
    "pytorch": ("torch", "torchvision", "transformers", "pillow", "numpy"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}


def with_accuracy(report: BenchReport, earlier: BenchReport) -> BenchReport:
    """`report` with the accuracy that `earlier` found of the same files on the same images, and a note that says so.

    A row gets it where file, backend, the versions of its packages and the processor are the same; others stay as they
    are.

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
    known = {row.key: row for row in earlier.rows}
    rows = tuple(_taken(row, known.get(row.key), report, earlier) for row in report.rows)
    count = sum(row.accuracy is not None for row in rows)
    if count == 0:
        raise InputError(
            "no row of the earlier report has the same file, backend and versions",
            hint="measure accuracy here: leave --accuracy-from out",
        )
    note = f"accuracy of {count} rows was measured on {earlier.created[:10]} and taken from that report"
    facts: dict[str, Any] = {
        "disagreements": earlier.disagreements,
        "disagreement_count": earlier.disagreement_count,
        "notes": (*report.notes, note),
        "settings": {**report.settings, "accuracy": True},
    }
    return judged(replace(report, rows=rows, **facts))


def _taken(row: Row, old: Row | None, report: BenchReport, earlier: BenchReport) -> Row:
    if old is None or row.status != "ok" or old.accuracy is None or row.artifact is None:
        return row
    packages = _PACKAGES[row.backend]
    same = (
        row.artifact == old.artifact
        and row.artifact.sha256 is not None
        and row.device == old.device
        and report.machine.get("cpu") == earlier.machine.get("cpu")
        and all(report.versions.get(name) == earlier.versions.get(name) for name in packages)
    )
    return replace(row, accuracy=old.accuracy) if same else row
