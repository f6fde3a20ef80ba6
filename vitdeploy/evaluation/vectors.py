"""What a form keeps of an embedding: its direction, its neighbours, and what a classifier by neighbours answers.

Each image is a query, and all others of the dataset are the gallery. With b the baseline's vectors, f the form's, and
N_k(q, G) the k of the gallery G that are nearest to the query q by cosine (the earlier one of equals first):

    cosine       cos(f_i, b_i): its mean, and the 1st percentile
    neighbour    how often the nearest of all is the same                     N_1(f_i, f) = N_1(b_i, b)
    recall@k     the share of the baseline's k nearest that are found         |N_k(f_i, f) & N_k(b_i, b)| / k
    queries      the same with the form's queries on the baseline's index     N_k(f_i, b)
    index        and with the baseline's queries on the form's index          N_k(b_i, f)
    kNN          the class of most of the k nearest (of equals that of the nearest), right or wrong

Intervals are percentiles of a bootstrap over the queries (Efron 1979), 95 %; the gallery is what it is. The change of
the classifier against the baseline's is one of paired shares, and has the intervals and the bound of `statistics`.

A bound that a decision rests on (`Comparison.bounds`) is the percentile of such a bootstrap in which the worst query is
there once more, and where every neighbour was found, one that missed one. Without that it lies above the truth up to
four times as often as it says, where few queries lost much; with it less than twice as often (simulated: 100 to 1,000
queries with losses of log-normal and binomial distributions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitdeploy.evaluation.accuracy import Answers
from vitdeploy.evaluation.statistics import (
    Difference,
    DifferenceInterval,
    Interval,
    Share,
    drop_bound,
    paired_difference,
    wilson,
)
from vitdeploy.models.tasks import cosines, unit

if TYPE_CHECKING:
    from vitdeploy.data import ImageDataset

__all__ = [
    "Bounds",
    "Comparison",
    "Kept",
    "Neighbours",
    "VectorQuality",
    "classes_of",
    "most_recall",
    "nearest",
    "summarise_vectors",
]

_RESAMPLES, _SEED = 500, 0
_AT_ONCE = 1 << 25  # numbers of similarities at a time
_LOW_PERCENT = 1.0
_Vectors = npt.NDArray[np.float32]
_Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Kept:
    """A number of 0..1 with its 95 % interval."""

    value: float
    ci95: Interval


@dataclass(frozen=True)
class Neighbours:
    """A classifier by the k nearest neighbours: its share of right answers, and that against the baseline's.

    `delta` is form minus baseline, `drop_bound` the most that may be lost, with 95 % confidence; None of the baseline.
    """

    top1: Share
    ci95: Interval
    delta: Difference | None = None
    delta_ci95: DifferenceInterval | None = None
    drop_bound: Difference | None = None


@dataclass(frozen=True)
class VectorQuality:
    """What a form keeps of the baseline's embedding on the same images: see the module.

    `k` is how many neighbours are looked at, `count` the images. All but `knn` is None of the baseline itself, and
    `knn` where the images have no classes.
    """

    k: int
    count: int
    cosine: Kept | None = None
    cosine_p1: Kept | None = None
    neighbour: Kept | None = None
    recall: Kept | None = None
    queries: Kept | None = None
    index: Kept | None = None
    knn: Neighbours | None = None

    @property
    def delta(self) -> float | None:
        """The change of the classifier's share of right answers."""
        return None if self.knn is None else self.knn.delta


@dataclass(frozen=True)
class Bounds:
    """What a form keeps at the least and loses at the most, each with the same confidence (one-sided): the mean cosine
    and recall@k, 0..1, and the drop of the classifier, a share of the images; None where they have no classes."""

    cosine: float
    recall: float
    drop: float | None


def classes_of(images: ImageDataset) -> npt.NDArray[np.int64] | None:
    """The class of each image for the classifier, (images,): any classes will do. None: they have none, or several."""
    return images.label_ids if len(images.labels) > 1 and images.label_sets is None else None


def summarise_vectors(
    form: Answers, classes: npt.NDArray[np.int64] | None, k: int, baseline: Answers | None = None
) -> VectorQuality | None:
    """Compare the images that were seen by the form (and by the baseline, where there is one).

    Args:
        form: its vectors, any length.
        classes: the class of each image, (images,); None: they have none.
        k: how many neighbours; fewer where there are fewer others.
        baseline: the vectors it is compared with.

    Returns:
        None if fewer than two images were seen: then nobody has a neighbour.
    """
    seen = form.done if baseline is None else form.done & baseline.done
    count = int(seen.sum())
    if count < 2:
        return None
    k = min(k, count - 1)
    own, truth = form.logits[seen], None if classes is None else classes[seen]
    if baseline is not None:
        return Comparison(own, baseline.logits[seen], truth, k).quality
    if truth is None:
        return VectorQuality(k, count)
    lengths = unit(own)
    return VectorQuality(k, count, knn=_alone(_vote(nearest(lengths, lengths, k), truth) == truth))


class Comparison:
    """A form's vectors beside the baseline's, of the same images in the same order.

    Args:
        form, baseline: (images, dimensions), of any length; two images at least.
        classes: the class of each image, (images,); None: they have none.
        k: how many neighbours; fewer where there are fewer others.
    """

    def __init__(
        self,
        form: npt.NDArray[np.float32],
        baseline: npt.NDArray[np.float32],
        classes: npt.NDArray[np.int64] | None,
        k: int,
    ) -> None:
        self.count = len(form)
        self.k = min(k, self.count - 1)
        self._own, self._base = unit(form), unit(baseline)
        self._mine, self._theirs = (nearest(vectors, vectors, self.k) for vectors in (self._own, self._base))
        self._cosines = cosines(form, baseline)
        self._recalls = _found(self._mine, self._theirs)
        self._right, self._before = (
            None if classes is None else _vote(places, classes) == classes for places in (self._mine, self._theirs)
        )

    @property
    def quality(self) -> VectorQuality:
        """Everything, with intervals."""
        draw = _Bootstrap(self.count)
        return VectorQuality(
            self.k,
            self.count,
            cosine=draw.mean(self._cosines),
            cosine_p1=draw.percentile(self._cosines),
            neighbour=draw.mean(self._mine[:, 0] == self._theirs[:, 0]),
            recall=draw.mean(self._recalls),
            queries=draw.mean(_found(nearest(self._own, self._base, self.k), self._theirs)),
            index=draw.mean(_found(nearest(self._base, self._own, self.k), self._theirs)),
            knn=None if self._right is None or self._before is None else _paired(self._right, self._before),
        )

    def bounds(self, confidence: float) -> Bounds:
        """What the limits of a decision are held against."""
        draw = _Bootstrap(self.count + 1)
        drop = None
        if self._right is not None and self._before is not None:
            drop = drop_bound(*_changes(self._right, self._before), confidence)
        return Bounds(
            draw.least(np.append(self._cosines, self._cosines.min()), confidence),
            draw.least(np.append(self._recalls, min(self._recalls.min(), 1 - 1 / self.k)), confidence),
            drop,
        )


def most_recall(count: int, k: int, confidence: float) -> float:
    """The bound of recall@k that `count` images have where all neighbours are found."""
    return _Bootstrap(count + 1).least(np.append(np.ones(count), 1 - 1 / k), confidence)


def nearest(queries: _Vectors, gallery: _Vectors, k: int) -> _Places:
    """The places of the k of the gallery that are nearest to each query but itself, (queries, k), the nearest first.

    Args:
        queries, gallery: of the same images in the same order, (images, dimensions), of length 1.
    """
    count, rows = len(gallery), max(1, _AT_ONCE // len(gallery))
    found = np.empty((count, k), np.int64)
    for start in range(0, count, rows):
        part = queries[start : start + rows] @ gallery.T  # (rows, images)
        places = np.arange(len(part))
        part[places, start + places] = -np.inf  # an image is not its own neighbour
        some = np.sort(np.argpartition(-part, k - 1, axis=1)[:, :k], axis=1)
        order = np.argsort(-np.take_along_axis(part, some, axis=1), axis=1, kind="stable")
        found[start : start + rows] = np.take_along_axis(some, order, axis=1)
    return found


def _found(places: _Places, wanted: _Places) -> npt.NDArray[np.float64]:
    """The share of the wanted places that are among those found, (images,)."""
    share: npt.NDArray[np.float64] = (places[:, :, np.newaxis] == wanted[:, np.newaxis, :]).any(axis=1).mean(axis=1)
    return share


def _vote(places: _Places, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The class that most of an image's neighbours have; of equals the one whose neighbour is nearest."""
    given = classes[places]  # (images, k)
    votes = (given[:, :, np.newaxis] == given[:, np.newaxis, :]).sum(axis=2)
    best: npt.NDArray[np.int64] = given[np.arange(len(given)), votes.argmax(axis=1)]
    return best


def _alone(right: npt.NDArray[np.bool_]) -> Neighbours:
    return Neighbours(float(right.mean()), wilson(int(right.sum()), len(right)))


def _paired(right: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_]) -> Neighbours:
    changes = _changes(right, before)
    own = _alone(right)
    return Neighbours(own.top1, own.ci95, *paired_difference(*changes), drop_bound(*changes))


def _changes(right: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """How many images only the baseline has right, how many only the form, and of how many."""
    return int((before & ~right).sum()), int((right & ~before).sum()), len(right)


class _Bootstrap:
    """Resamples of the queries, the same for every number of a form."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(_SEED)
        # how often each query is in a resample, (resamples, queries)
        self._times = generator.multinomial(count, np.full(count, 1 / count), _RESAMPLES).astype(np.float32)

    def mean(self, values: npt.NDArray[Any]) -> Kept:
        """The mean of a number of each query, (queries,)."""
        return Kept(float(values.mean()), _interval(self._means(values)))

    def least(self, values: npt.NDArray[Any], confidence: float) -> float:
        """What the mean of a number of each query is at least, with that confidence (one-sided)."""
        return float(np.percentile(self._means(values), 100 * (1 - confidence)))

    def _means(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The mean in each resample."""
        drawn: npt.NDArray[np.float64] = self._times @ values.astype(np.float64) / self._times.shape[1]
        return drawn

    def percentile(self, values: npt.NDArray[np.float64]) -> Kept:
        """The value below which 1 % of the queries are."""
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(self._times[:, order], axis=1) >= len(values) * _LOW_PERCENT / 100
        place = max(0, math.ceil(len(values) * _LOW_PERCENT / 100) - 1)
        return Kept(float(values[order][place]), _interval(values[order][reached.argmax(axis=1)]))


def _interval(drawn: Sequence[float] | npt.NDArray[Any]) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
