"""How a run learns and is judged, by what an image has: one class, or several labels. A row here is all that differs.

    one class        cross-entropy of a softmax; top-1 accuracy
    several labels   binary cross-entropy of a sigmoid a label; mean average precision, F1, exact match

The best weights are chosen by the first number of each, ties by the loss: small validation sets have many ties, and the
first of them is the least trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.data import ImageDataset
from vitdeploy.evaluation.multi_label import best_threshold, set_metrics
from vitdeploy.models.tasks import SINGLE_LABEL, TASKS, THRESHOLD, Task
from vitdeploy.training.objective import BinaryCrossEntropy, CrossEntropy, Objective

__all__ = ["CHOICE", "CROSS_ENTROPY", "SCORINGS", "Scoring", "scoring_of", "targets"]

CHOICE = "choice"
CROSS_ENTROPY = "cross_entropy"
_Numbers = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scoring:
    """A way to learn and to be judged.

    Args:
        task: what the model will answer; `problem_type`: what its config.json calls that.
        metric: the number that the best weights are chosen by, 0..1; `title`: what people call it.
        right: the number that is the share of images of which everything is right.
        numbers: logits (images, classes), targets as `targets` gives them and a threshold -> the numbers by name, of
            0..1, and the mean loss as `CROSS_ENTROPY`.
        objective: the loss to minimise, for a share of label smoothing.
        names: of the numbers but the loss.
    """

    task: Task
    problem_type: str
    metric: str
    title: str
    right: str
    numbers: Callable[[_Numbers, npt.NDArray[Any], float], dict[str, float]]
    objective: Callable[[float], Objective]
    names: tuple[str, ...]

    def __call__(self, prediction: Any) -> dict[str, float]:
        """For the Trainer's `compute_metrics`: the numbers, and `CHOICE`, by which weights are compared."""
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        found = self.numbers(np.asarray(logits, np.float64), prediction.label_ids, THRESHOLD)
        return {**found, CHOICE: found[self.metric] - 1e-6 * min(found[CROSS_ENTROPY], 100.0)}

    def threshold(self, logits: _Numbers, dataset: ImageDataset) -> float | None:
        """The score from which labels must count for the highest micro F1 on a dataset; None of one class an image."""
        return best_threshold(logits, dataset.label_sets) if dataset.label_sets is not None else None


def _one_class(logits: _Numbers, truth: npt.NDArray[Any], threshold: float) -> dict[str, float]:
    top = logits.max(axis=-1, keepdims=True)
    log_sums = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1))
    loss = float(np.mean(log_sums - logits[np.arange(len(truth)), truth]))
    return {"accuracy": float(np.mean(np.argmax(logits, axis=-1) == truth)), CROSS_ENTROPY: loss}


def _several(logits: _Numbers, truth: npt.NDArray[Any], threshold: float) -> dict[str, float]:
    # log(1 + e^z) - y z, without overflow
    loss = float(np.mean(np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits))) - truth * logits))
    return {**asdict(set_metrics(logits, truth > 0.5, threshold)), CROSS_ENTROPY: loss}


SCORINGS = (
    Scoring(
        SINGLE_LABEL,
        "single_label_classification",
        "accuracy",
        "accuracy",
        "accuracy",
        _one_class,
        CrossEntropy,
        ("accuracy",),
    ),
    Scoring(
        TASKS["multi_label"],
        "multi_label_classification",
        "mean_average_precision",
        "mAP",
        "exact_match",
        _several,
        BinaryCrossEntropy,
        ("mean_average_precision", "f1_micro", "f1_macro", "exact_match"),
    ),
)


def scoring_of(dataset: ImageDataset) -> Scoring:
    """How a model of a dataset's images learns and is judged."""
    return SCORINGS[dataset.label_sets is not None]


def targets(dataset: ImageDataset, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """What images at `indices` are to be answered with: class ids (images,) int64, or of several labels 1 and 0 for
    each, (images, labels) float32."""
    return dataset.label_ids[indices] if dataset.label_sets is None else dataset.label_sets[indices].astype(np.float32)
