"""The three splits of a run: train and test as the data has them, validation carved out of train."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

from vitdeploy.datasets import (
    ImageDataset,
    find_bad_images,
    load_dataset,
    stratified_sample,
    stratified_split,
    without_images,
)
from vitdeploy.errors import DatasetError
from vitdeploy.training.config import FinetuneConfig

__all__ = ["Splits", "load_splits"]

_MOST_VALIDATION_IMAGES = 1000
_USES = ("learning", "choosing: best weights, early stopping", "one look, after everything was decided")


@dataclass(frozen=True)
class Splits:
    """`skipped` names the images that can't be decoded, by split; `notes` say in words what was done."""

    train: ImageDataset
    validation: ImageDataset | None
    test: ImageDataset
    notes: tuple[str, ...]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """What a result says of its data, for JSON; `used_for` says what each split had a say in."""
        splits = zip((self.train, self.validation, self.test), _USES, strict=True)
        return {split.split: {**split.describe(), "used_for": use} for split, use in splits if split is not None}

    def digest(self) -> str:
        """SHA-256 of which images are in which split with which class; their content is not read."""
        digest = hashlib.sha256("\n".join(self.train.labels).encode())
        for split in (self.train, self.validation, self.test):
            if split is not None:
                digest.update(split.indices.tobytes() + split.label_ids.tobytes())
        return digest.hexdigest()


def load_splits(config: FinetuneConfig) -> Splits:
    """Open the dataset of a run.

    Raises:
        DatasetError: it can't be read, its splits do not fit together, or a class has no images in one of them.
    """
    whole, test = (
        load_dataset(
            config.dataset, split, image_column=config.image_column, label_column=config.label_column, seed=config.seed
        )
        for split in ("train", "test")
    )
    _check_classes(whole, test)
    skipped: dict[str, list[str]] = {}
    if config.limit_train is not None:
        whole = stratified_sample(whole, config.limit_train, seed=config.seed)
    if config.limit_test is not None:
        test = stratified_sample(test, config.limit_test, seed=config.seed)
    if config.skip_bad:
        whole, skipped["train"] = _good(whole)
        test, skipped["test"] = _good(test)
        _check_classes(whole, test)
    count = min(round(len(whole) / 10), _MOST_VALIDATION_IMAGES) if config.validation is None else config.validation
    if count >= len(whole):
        raise DatasetError(
            f"{count} validation images leave none of the {len(whole)} of {whole} to train on",
            hint="use a smaller --validation or a larger --limit-train",
        )
    notes = [
        f"{len(bad)} of the {split} images can't be decoded and are skipped." for split, bad in skipped.items() if bad
    ]
    if missing := _without_images(test):
        notes.append(f"The limited test images have none of {', '.join(missing[:5])}.")
    if count == 0:
        _check_learnable(whole)
        return Splits(whole, None, test, (*notes, "No validation images: the last weights are kept."), skipped)
    validation, train = stratified_split(whole, [count], seed=config.seed)
    _check_learnable(train)
    notes.append(f"{count} of the {len(whole)} training images are set aside to choose the best weights by.")
    missing = _without_images(validation)
    if missing:
        notes.append(f"The validation images are too few for every class: none of {', '.join(missing[:5])}.")
    return Splits(train, replace(validation, split="validation"), test, tuple(notes), skipped)


def _check_classes(train: ImageDataset, test: ImageDataset) -> None:
    if train.labels != test.labels:
        raise DatasetError(
            f"train and test of {train.name} have different classes", hint="give both splits the same class names"
        )
    if len(train.labels) < 2:
        raise DatasetError(
            f"{train.name} has one class only ({train.labels[0]})", hint="use a dataset with two or more"
        )
    for split in (train, test):
        empty = _without_images(split)
        if empty:
            raise DatasetError(
                f"{split} has no image of {', '.join(empty[:5])}", hint="add images of it, or remove the class"
            )


def _check_learnable(train: ImageDataset) -> None:
    """A sample, or what validation left, may lack a class that the whole split has."""
    missing = _without_images(train)
    if missing:
        raise DatasetError(
            f"the {len(train)} images to train on have none of {', '.join(missing[:5])}",
            hint="use a larger --limit-train or a smaller --validation, or add images of it",
        )


def _without_images(split: ImageDataset) -> list[str]:
    return [label for label, count in split.class_counts().items() if not count]


def _good(split: ImageDataset) -> tuple[ImageDataset, list[str]]:
    bad = find_bad_images(split)
    return without_images(split, [image.index for image in bad]), [f"{image.where}: {image.problem}" for image in bad]
