"""Parts of a dataset that keep its class proportions: seeded, disjoint, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitdeploy.core.errors import DatasetError, InputError
from vitdeploy.data.dataset import ImageDataset

__all__ = ["stratified_indices", "stratified_sample", "stratified_split"]


def stratified_sample(dataset: ImageDataset, count: int, *, seed: int = 0) -> ImageDataset:
    """`count` images of `dataset` (all, if it has no more), in their original order."""
    if count < 1:
        raise InputError(f"a sample needs at least one image, not {count}", hint="give a --limit of 1 or more")
    if count >= len(dataset):
        return dataset
    return stratified_split(dataset, [count], seed=seed)[0]


def stratified_split(dataset: ImageDataset, sizes: Sequence[float], *, seed: int = 0) -> list[ImageDataset]:
    """Cut `dataset` into disjoint parts of the given sizes, and the rest.

    Args:
        dataset: what to cut.
        sizes: a size of type int is a number of images, one of type float a fraction of `dataset`.
        seed: the same seed gives the same parts.

    Returns:
        One dataset per size, then one with all that is left (it may be empty). Images keep their order.

    Raises:
        DatasetError: there are not that many images.

    Example:
        validation, rest = stratified_split(train, [0.1])
    """
    counts = [round(size * len(dataset)) if isinstance(size, float) else int(size) for size in sizes]
    if min(counts, default=0) < 0 or sum(counts) > len(dataset):
        raise DatasetError(
            f"{dataset} has {len(dataset)} images, so parts of {counts} can't be taken from it",
            hint="ask for fewer images, or use a larger dataset",
        )
    return [dataset.subset(part) for part in stratified_indices(dataset.label_ids, counts, seed=seed)]


def stratified_indices(label_ids: NDArray[np.int64], counts: Sequence[int], *, seed: int) -> list[NDArray[np.int64]]:
    """Positions in `label_ids` of one part per count, and of the rest; each part ascending."""
    generator = np.random.default_rng(seed)
    classes = np.unique(label_ids)
    # A shuffled queue per class; each part takes its share from the front.
    queues = [generator.permutation(np.flatnonzero(label_ids == label)) for label in classes]
    parts = []
    for count in counts:
        shares = _shares(np.array([len(queue) for queue in queues]), count, generator)
        taken = [queue[:share] for queue, share in zip(queues, shares, strict=True)]
        queues = [queue[share:] for queue, share in zip(queues, shares, strict=True)]
        parts.append(_joined(taken))
    return [*parts, _joined(queues)]


def _joined(pieces: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sort(np.concatenate([np.empty(0, np.int64), *pieces]))


def _shares(available: NDArray[np.int64], total: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Share `total` among classes in proportion to `available`: whole parts first, then the largest remainders."""
    exact = available * (total / max(1, available.sum()))
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    remainders = np.where(shares < available, exact - shares, -1.0)
    order = np.lexsort((generator.random(len(available)), -remainders.round(9)))  # ties fall at random
    shares[order[: total - shares.sum()]] += 1
    return shares
