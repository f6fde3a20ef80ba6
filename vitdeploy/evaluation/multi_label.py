"""Accuracy of models that give several labels an image: mean average precision, F1 at a threshold, exact match.

With the images in the order of a label's scores, P_k and R_k are its precision and recall among the first k (images of
equal scores enter together), and its average precision is AP = sum_k (R_k - R_(k-1)) P_k; mAP is the mean over the
labels that some image has. F1 = 2 tp / (2 tp + fp + fn): micro over all labels at once, macro the mean over labels.
A label counts from a threshold on; the best one for micro F1 is found among all scores of some images: with these in
falling order, the first k of them count, F1(k) = 2 tp_k / (k + the labels that the images have), and the threshold is
halfway between the score of the best k and the next one.

Intervals of mAP and F1, and of their change against a baseline, are percentiles of a paired bootstrap (Efron 1979): the
same resampled images for every form, and of macro F1 the labels that a resample has or finds. Exact match, all labels
of an image right, is a share of images, and has those of `statistics`: Wilson's, and Bonett and Price's for its change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.evaluation.accuracy import Answers
from vitdeploy.evaluation.statistics import Difference, DifferenceInterval, Interval, Share, paired_difference, wilson
from vitdeploy.models.tasks import reached, sigmoid

__all__ = [
    "UNKNOWN",
    "MultiLabelAccuracy",
    "SetMetrics",
    "average_precision",
    "best_threshold",
    "set_metrics",
    "summarise_sets",
]

UNKNOWN = -1  # in the truth: of labels that the dataset does not know
_RESAMPLES, _SEED = 500, 0
_AT_ONCE = 10**7  # numbers of a chunk of resamples
_Numbers = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class MultiLabelAccuracy:
    """How well a form finds the labels of images, and how that differs from the baseline on the same images.

    Shares are 0..1. `labels` is the number of labels that the dataset knows: the others are left out of everything.
    `per_label` holds the average precision of each label of the model, None where no image has it. `f1_micro` and
    `f1_macro` count a label from a score of `threshold` on; None where there is nothing to find and nothing was found.
    A `delta` is form minus baseline, `drop_bound` the most mAP that may be lost, with 95 % confidence, `agreement` how
    often both find the same labels; they are None without a baseline.
    """

    mean_average_precision: Share
    ci95: Interval
    f1_micro: Share | None
    f1_macro: Share | None
    exact_match: Share
    exact_match_ci95: Interval
    threshold: Share
    count: int
    labels: int
    per_label: tuple[Share | None, ...]
    delta: Difference | None = None
    delta_ci95: DifferenceInterval | None = None
    drop_bound: Difference | None = None
    f1_micro_delta: Difference | None = None
    f1_micro_delta_ci95: DifferenceInterval | None = None
    exact_match_delta: Difference | None = None
    exact_match_delta_ci95: DifferenceInterval | None = None
    agreement: Share | None = None
    f1_micro_ci95: Interval | None = None
    f1_macro_ci95: Interval | None = None


@dataclass(frozen=True)
class SetMetrics:
    """How well logits find the labels of images, without intervals: see `MultiLabelAccuracy` for each number."""

    mean_average_precision: float
    f1_micro: float
    f1_macro: float
    exact_match: float


def set_metrics(logits: _Numbers, has: npt.NDArray[np.bool_], threshold: float) -> SetMetrics:
    """The numbers alone, as training looks at them; F1 is 0 where there is nothing to find and nothing was found.

    Args:
        logits: (images, labels); `has`: whether the image has the label, the same shape, true somewhere.
        threshold: the score, 0..1, from which a label counts.
    """
    found = _Found(logits, has, threshold)
    return SetMetrics(found.map, found.micro or 0.0, found.macro or 0.0, float(found.exact.mean()))


def best_threshold(logits: _Numbers, has: npt.NDArray[np.bool_]) -> float:
    """The score, 0..1, from which labels must count for the highest micro F1 on these images.

    Args:
        logits: (images, labels); `has`: whether the image has the label, the same shape, true somewhere.
    """
    scores = sigmoid(logits).reshape(-1)
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(has.reshape(-1)[order])
    last = np.flatnonzero(np.append(ranked[:-1] > ranked[1:], True))  # those of one score count together
    f1 = 2 * hits[last] / (last + 1 + hits[-1])
    best = int(last[f1.argmax()])
    following = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(np.clip((ranked[best] + following) / 2, np.nextafter(0, 1), np.nextafter(1, 0)))


def summarise_sets(
    form: Answers, truth: npt.NDArray[np.int8], threshold: float, baseline: Answers | None = None
) -> MultiLabelAccuracy | None:
    """Compare the images that were seen by the form (and by the baseline, where there is one); None if none was.

    Args:
        truth: (images, labels of the model): 1 where the image has the label, 0 where not, `UNKNOWN` in the columns of
            labels that the dataset does not know.
        threshold: the score, 0..1, from which a label counts.
    """
    seen = form.done if baseline is None else form.done & baseline.done
    known = (truth != UNKNOWN).all(axis=0)
    has = truth[seen][:, known] == 1
    if not len(has) or not has.any():
        return None
    own = _Run(form.logits[seen][:, known], has, threshold)
    right = int(own.exact.sum())
    comparison: dict[str, Any] = {}
    if baseline is not None:
        base = _Run(baseline.logits[seen][:, known], has, threshold)
        change = own.maps - base.maps
        exact, exact_ci95 = paired_difference(
            int((base.exact & ~own.exact).sum()), int((own.exact & ~base.exact).sum()), len(has)
        )
        comparison = {
            "delta": own.map - base.map,
            "delta_ci95": _interval(change),
            "drop_bound": float(np.nanpercentile(-change, 95)),  # of few images a resample may have no label at all
            "exact_match_delta": exact,
            "exact_match_delta_ci95": exact_ci95,
            "agreement": float((own.found == base.found).all(axis=1).mean()),
        }
        if own.micro is not None and base.micro is not None:
            comparison["f1_micro_delta"] = own.micro - base.micro
            comparison["f1_micro_delta_ci95"] = _interval(own.micros - base.micros)
    precisions = iter(own.precisions)
    return MultiLabelAccuracy(
        mean_average_precision=own.map,
        ci95=_interval(own.maps),
        f1_micro=own.micro,
        f1_macro=own.macro,
        exact_match=right / len(has),
        exact_match_ci95=wilson(right, len(has)),
        threshold=threshold,
        count=len(has),
        labels=int(known.sum()),
        per_label=tuple(_share(next(precisions)) if is_known else None for is_known in known),
        f1_micro_ci95=None if own.micro is None else _interval(own.micros),
        f1_macro_ci95=None if own.macro is None else _interval(own.macros),
        **comparison,
    )


class _Found:
    """What one form's logits find of the labels, on all images.

    Args:
        logits: (images, labels).
        has: whether the image has the label, (images, labels).
    """

    def __init__(self, logits: _Numbers, has: npt.NDArray[np.bool_], threshold: float) -> None:
        self.found = reached(sigmoid(logits), threshold)
        self.exact: npt.NDArray[np.bool_] = (self.found == has).all(axis=1)
        everything = np.ones((1, len(has)))
        self.precisions = np.array(
            [average_precision(z, y, everything)[0] for z, y in zip(logits.T, has.T, strict=True)]
        )
        self.map = float(np.nanmean(self.precisions))
        self.hits, self.wrong = (self.found & has), (self.found != has)
        self.micro = _share(_f1(self.hits.sum(), self.wrong.sum()))
        by_label = _f1(self.hits.sum(axis=0), self.wrong.sum(axis=0))
        self.macro = None if np.isnan(by_label).all() else float(np.nanmean(by_label))


class _Run(_Found):
    """The same, and on each resample of the images."""

    def __init__(self, logits: _Numbers, has: npt.NDArray[np.bool_], threshold: float) -> None:
        super().__init__(logits, has, threshold)
        hits, wrong = self.hits, self.wrong
        generator = np.random.default_rng(_SEED)
        chunk = max(1, min(_RESAMPLES, _AT_ONCE // len(has)))
        maps, micros, macros = [], [], []
        for start in range(0, _RESAMPLES, chunk):
            count = min(chunk, _RESAMPLES - start)
            times = generator.multinomial(len(has), np.full(len(has), 1 / len(has)), count).astype(np.float32)
            drawn = [average_precision(z, y, times) for z, y in zip(logits.T, has.T, strict=True) if y.any()]
            maps.append(_mean_of_known(np.stack(drawn, axis=1)))
            micros.append(_f1(times @ hits.sum(axis=1), times @ wrong.sum(axis=1)))
            macros.append(_mean_of_known(_f1(times @ hits, times @ wrong)))
        self.maps, self.micros, self.macros = map(np.concatenate, (maps, micros, macros))


def average_precision(scores: _Numbers, has: npt.NDArray[np.bool_], times: _Numbers) -> _Numbers:
    """AP of one label on each resample; NaN where none of its images has the label.

    Args:
        scores: (images,), any that rise with the probability.
        has: whether the image has the label, (images,).
        times: how often each image is in a resample, (resamples, images).
    """
    order = np.argsort(-scores, kind="stable")
    ranked = -scores[order]
    last = np.searchsorted(ranked, ranked, side="right") - 1  # the last of those with the same score
    drawn = times[:, order]
    positives = drawn * has[order]
    hits, seen = np.cumsum(positives, axis=1), np.cumsum(drawn, axis=1)
    precision = hits[:, last] / np.maximum(seen[:, last], 1e-9)
    total = positives.sum(axis=1)
    with np.errstate(invalid="ignore"):
        result: _Numbers = np.where(total > 0, (positives * precision).sum(axis=1) / np.maximum(total, 1e-9), np.nan)
    return result


def _f1(hits: Any, wrong: Any) -> Any:
    """2 tp / (2 tp + fp + fn) of counts of hits (tp) and of wrong answers (fp + fn); NaN where all are 0."""
    hits, wrong = np.asarray(hits, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(hits + wrong > 0, 2 * hits / (2 * hits + wrong), np.nan)


def _mean_of_known(values: _Numbers) -> _Numbers:
    """The mean over the last axis, (resamples, labels), of what is no NaN; NaN where all is."""
    known = ~np.isnan(values)
    mean: _Numbers = np.where(known, values, 0).sum(axis=-1) / np.where(known.any(axis=-1), known.sum(axis=-1), np.nan)
    return mean


def _interval(drawn: _Numbers) -> Interval:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _share(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
