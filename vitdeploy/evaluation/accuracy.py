"""Accuracy of each form: all forms see the same images, their logits are kept, and they are compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitdeploy.core import progress
from vitdeploy.core.errors import InputError
from vitdeploy.core.specs import answer_of
from vitdeploy.evaluation.batches import Images, Pixels, image_batches
from vitdeploy.evaluation.changes import Changes, Confusion, changed, confusion, packed
from vitdeploy.evaluation.statistics import (
    Difference,
    DifferenceInterval,
    Interval,
    Share,
    calibration_error,
    drop_bound,
    mcnemar_exact,
    paired_difference,
    wilson,
)
from vitdeploy.models.tasks import SINGLE_LABEL, Task

__all__ = ["Accuracy", "AccuracyRun", "Answers", "Infers", "check_repeatable", "summarise"]


class Infers(Protocol):
    """The part of a runner that is used here."""

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]], /) -> Mapping[str, npt.NDArray[Any]]:
        """`image` uint8 (batch, height, width, 3) in, the answer (batch, n) out: see `core.specs.answer_of`."""


@dataclass(frozen=True)
class Accuracy:
    """How often a form is right, and how that differs from the baseline on the same images.

    Shares are 0..1. `delta` is form minus baseline, `drop_bound` the most that may be lost, with 95 % confidence; they,
    the interval, `mcnemar_p` and `agreement` (how often both
    have the same best class) are None without a baseline, and so are `changes`. `per_class` holds the share of right
    answers per class. `correct` has one bit per image, in base64, in the order of the dataset: two reports on the same
    images can be compared in pairs; None where not all images were seen.
    """

    top1: Share
    top5: Share | None  # None where there are no more than five classes
    count: int
    ci95: Interval
    calibration_error: Share
    per_class: tuple[Share | None, ...]
    delta: Difference | None = None
    delta_ci95: DifferenceInterval | None = None
    drop_bound: Difference | None = None
    mcnemar_p: Share | None = None
    agreement: Share | None = None
    confusion: Confusion | None = None
    changes: Changes | None = None
    correct: str | None = None


@dataclass
class Answers:
    """The logits of one form; `done` says which images it has seen."""

    logits: npt.NDArray[np.float32]  # (count, classes)
    done: npt.NDArray[np.bool_]  # (count,)


class AccuracyRun:
    """Run forms over the images of a dataset; what was done survives an interruption of `run`.

    Args:
        runners: the forms, open.
        images: what to classify.
        classes: how many scores each form must give.
        batch_size: images per call; images of one size go together.
    """

    def __init__(self, runners: Mapping[str, Infers], images: Images, classes: int, batch_size: int = 16) -> None:
        self._runners = dict(runners)
        self._images = images
        self._classes = classes
        self._batch_size = batch_size
        self.failures: dict[str, Exception] = {}
        self.answers = {
            name: Answers(np.zeros((len(images), classes), np.float32), np.zeros(len(images), np.bool_))
            for name in self._runners
        }

    def run(self) -> None:
        """Classify every image with every form; a form that raises is dropped and the others go on."""
        checked: set[int] = set()
        with progress.task("Comparing accuracy", total=len(self._images), unit="images") as step:
            for indices, pixels in image_batches(self._images, self._batch_size):
                for name in list(self._runners):
                    try:
                        logits = classify(self._runners[name], pixels, self._classes)
                        if len(pixels) not in checked:  # backends prepare anew for each batch size, and may err there
                            check_repeatable(logits, classify(self._runners[name], pixels, self._classes))
                    except Exception as error:
                        self.failures[name] = error
                        del self._runners[name], self.answers[name]
                        continue
                    self.answers[name].logits[indices] = logits
                    self.answers[name].done[indices] = True
                checked.add(len(pixels))
                step.advance(len(indices))


def classify(runner: Infers, pixels: Pixels, classes: int) -> npt.NDArray[np.float32]:
    """Logits (batch, classes) of one batch; a batch that is too large for the form (an engine's range) is halved.

    Raises:
        InputError: the form gives another number of scores than `classes`.
    """
    try:
        made = runner.infer({"image": pixels})
        logits = np.asarray(made[answer_of(tuple(made))], dtype=np.float32)
    except InputError:
        if len(pixels) == 1:
            raise
        half = len(pixels) // 2
        return np.concatenate([classify(runner, pixels[:half], classes), classify(runner, pixels[half:], classes)])
    if logits.shape != (len(pixels), classes):
        raise InputError(
            f"it gives scores of shape {logits.shape} for {len(pixels)} images, where {classes} classes are expected",
            hint="compare forms of one model: the baseline must be the checkpoint that the bundle was exported from",
        )
    if not np.isfinite(logits).all():
        raise InputError("its scores hold NaN or infinity", hint="this form overflows: build it again in FP32 or FP16")
    return logits


def check_repeatable(first: npt.NDArray[np.float32], again: npt.NDArray[np.float32]) -> None:
    """Refuse a form whose answer to one image changes: its accuracy would be chance.

    Kernels that add in an order of their own differ in the last digits; 5 % of the largest score is far above that.
    """
    change = float(np.abs(again - first).max())
    if change > 0.05 * max(1.0, float(np.abs(again).max())):
        raise InputError(
            f"it gives two different answers to the same image (scores differ by {change:.2g})",
            hint="the backend runs this graph wrongly: use another backend, and report the graph",
        )


def summarise(
    form: Answers, labels: npt.NDArray[np.int64], baseline: Answers | None = None, task: Task = SINGLE_LABEL
) -> Accuracy | None:
    """Compare the images that were seen by the form (and by the baseline, where there is one); None if none was.

    Args:
        task: says what makes scores of logits, and so how sure a form is.
    """
    seen = form.done if baseline is None else form.done & baseline.done
    count = int(seen.sum())
    if count == 0:
        return None
    logits, truth = form.logits[seen], labels[seen]
    best = logits.argmax(axis=1)
    right = best == truth
    classes = logits.shape[1]
    top5 = None
    if classes > 5:
        own = logits[np.arange(count), truth][:, None]
        # Of equals the first is the better one, as it is for the best class.
        ahead = (logits > own) | ((logits == own) & (np.arange(classes) < truth[:, None]))
        top5 = float((ahead.sum(axis=1) < 5).mean())
    comparison: dict[str, Any] = {}
    if baseline is not None:
        base_best = baseline.logits[seen].argmax(axis=1)
        base_right = base_best == truth
        lost, won = int((base_right & ~right).sum()), int((right & ~base_right).sum())
        delta, interval = paired_difference(lost, won, count)
        comparison = {
            "delta": delta,
            "delta_ci95": interval,
            "drop_bound": drop_bound(lost, won, count),
            "mcnemar_p": mcnemar_exact(lost, won),
            "agreement": float((best == base_best).mean()),
            "changes": changed(logits, baseline.logits[seen], truth, task),
        }
    return Accuracy(
        top1=float(right.mean()),
        top5=top5,
        count=count,
        ci95=wilson(int(right.sum()), count),
        calibration_error=calibration_error(logits, truth, task),
        per_class=tuple(float(right[truth == c].mean()) if (truth == c).any() else None for c in range(classes)),
        confusion=confusion(best, truth, classes),
        correct=packed(right) if count == len(labels) else None,
        **comparison,
    )
