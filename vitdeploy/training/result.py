"""What a fine-tuning run gives back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.evaluation.multi_label import MultiLabelAccuracy

__all__ = ["Curve", "FinetuneResult", "SamplePrediction"]


@dataclass(frozen=True)
class Curve:
    """How training went. Points have `step`, `epoch` and: `loss`, `learning_rate` (train; the loss is the mean since
    the point before), or `loss` and `accuracy`, of several labels `mean_average_precision` (validation). `best_step` is
    the step whose weights were kept.
    """

    train: tuple[dict[str, float], ...]
    validation: tuple[dict[str, float], ...]
    best_step: int | None

    def to_json(self) -> dict[str, Any]:
        return {"train": list(self.train), "validation": list(self.validation), "best_step": self.best_step}


@dataclass(frozen=True)
class SamplePrediction:
    """What the model says of one test image. `score` is the probability of the best class, 0..1; of several labels both
    name all, with commas between them."""

    index: int
    label: str
    predicted: str
    score: float


@dataclass(frozen=True)
class FinetuneResult:
    """A finished run. `metrics` are those of all_results.json; accuracies go from 0 to 1.

    `test_accuracy` comes from one pass over the test split after everything was decided; `confusion` counts that
    pass: a row for each class of the labels, a column for each predicted class. `skipped` are the images that could
    not be decoded, by split. `resumed_from` are the steps at which an interrupted run was taken up again.

    Of several labels an image an accuracy is the share of images with all of them right (exact match), `multi_label`
    has the other numbers of the test split with intervals, `threshold` is the score from which a label counts, the best
    for micro F1 on the validation images (None where there are none: then 0.5 counts), and there is no confusion.
    """

    output: Path
    labels: tuple[str, ...]
    test_accuracy: float
    validation_accuracy: float | None
    steps: int
    seconds: float
    sample: SamplePrediction
    curve: Curve
    confusion: tuple[tuple[int, ...], ...]
    metrics: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: dict[str, list[str]] = field(default_factory=dict)
    resumed_from: tuple[int, ...] = ()
    multi_label: MultiLabelAccuracy | None = None
    threshold: float | None = None

    def __repr__(self) -> str:
        return f"<FinetuneResult {self.output}: test accuracy {self.test_accuracy:.4f}, {self.steps} steps>"

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "labels": list(self.labels),
            "test_accuracy": self.test_accuracy,
            "validation_accuracy": self.validation_accuracy,
            "steps": self.steps,
            "seconds": self.seconds,
            "sample": dataclasses.asdict(self.sample),
            "metrics": self.metrics,
            "data": self.data,
            "notes": list(self.notes),
            "skipped": self.skipped,
            "resumed_from": list(self.resumed_from),
            "confusion": [list(row) for row in self.confusion],
            "curve": self.curve.to_json(),
            "multi_label": None if self.multi_label is None else dataclasses.asdict(self.multi_label),
            "threshold": self.threshold,
        }
