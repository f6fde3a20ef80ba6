"""The three splits of a run: train and test as the data has them, validation carved out of train."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitdeploy.core.errors import DatasetError
from vitdeploy.data import (
    ImageDataset,
    check_images,
    find_bad_images,
    load_dataset,
    stratified_sample,
    stratified_split,
    without_images,
)
from vitdeploy.models.tasks import THRESHOLD
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.scoring import targets

__all__ = ["Splits", "check_different", "load_splits", "validation_count"]

_MOST_VALIDATION_IMAGES = 1000
_USES = {
    "train": "learning",
    "validation": "choosing: best weights, early stopping",
    "test": "one look, after everything was decided",
}


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
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            role: {**split.describe(), "used_for": _USES[role]} for role, split in splits.items() if split is not None
        }

    def identity(self) -> dict[str, dict[str, Any]]:
        """What a run learns from and chooses by: how many images, and the SHA-256 of which they are with which class.

        Their content is not read, and the test images, which decide nothing, are not among them.
        """
        found = {}
        for role, split in (("training images", self.train), ("validation images", self.validation)):
            digest = hashlib.sha256("\n".join(self.train.labels).encode())
            if split is not None:
                answers = targets(split, np.arange(len(split))).astype(np.int64).tolist()
                for index, answer in zip(split.indices.tolist(), answers, strict=True):
                    digest.update(f"{split.source.where(index)}\0{answer}\n".encode("utf-8", "surrogateescape"))
            found[role] = {"count": 0 if split is None else len(split), "sha256": digest.hexdigest()}
        return found


def load_splits(config: FinetuneConfig, *, decode: bool = True) -> Splits:
    """Open the dataset of a run; not `decode`: without a look at every image that will be tested on.

    Raises:
        DatasetError: it can't be read, its splits do not fit together, or a class has no images in one of them.
    """
    asked = {"train": "train", "test": config.test_split, "validation": config.validation_split}
    loaded = {
        role: load_dataset(
            config.dataset, split, image_column=config.image_column, label_column=config.label_column, seed=config.seed
        )
        for role, split in asked.items()
        if split is not None
    }
    check_different(loaded)
    _check_classes(loaded)
    for role, limit in (("train", config.limit_train), ("test", config.limit_test)):
        if limit is not None:
            loaded[role] = stratified_sample(loaded[role], limit, seed=config.seed)
    skipped: dict[str, list[str]] = {}
    if config.skip_bad:
        for role in loaded:
            loaded[role], skipped[role] = _good(loaded[role])
        _check_classes(loaded)
    elif decode:  # what was only found after training would be a pity
        for role in ("test", "validation"):
            if role in loaded:
                check_images(loaded[role])
    whole, test = loaded["train"], loaded["test"]
    notes = [
        f"{len(bad)} of the {split} images can't be decoded and are skipped." for split, bad in skipped.items() if bad
    ]
    if test.split == "validation":
        notes.append(f"The final test is on {test}, so the validation split chooses nothing.")
    if missing := _without_images(test):
        which = "test" if config.limit_test is None else "limited test"
        notes.append(f"The {which} images have none of {', '.join(missing[:5])}.")
    if "validation" in loaded:
        notes.append(
            f"The best weights are chosen by the {len(loaded['validation'])} images of {loaded['validation']}."
        )
        _check_learnable(whole)
        _check_findable(loaded["validation"], test)
        return Splits(whole, loaded["validation"], test, tuple(notes), skipped)
    count = validation_count(whole, config.validation)
    if count == 0:
        _check_learnable(whole)
        _check_findable(test)
        kept = "No validation images: the last weights are kept"
        if test.label_sets is not None:
            kept += f", and labels count from a score of {THRESHOLD:g}"
        return Splits(whole, None, test, (*notes, f"{kept}."), skipped)
    validation, train = stratified_split(whole, [count], seed=config.seed)
    _check_learnable(train)
    _check_findable(validation, test)
    notes.append(f"{count} of the {len(whole)} training images are set aside to choose the best weights by.")
    missing = _without_images(validation)
    if missing:
        notes.append(f"The validation images are too few for every class: none of {', '.join(missing[:5])}.")
    return Splits(train, replace(validation, split="validation"), test, tuple(notes), skipped)


def validation_count(whole: ImageDataset, asked: int | None, *, least: int = 0) -> int:
    """How many training images are set aside to choose by: as many as asked for; None: a tenth, `least` to 1,000.

    Raises:
        DatasetError: none would be left to learn from.
    """
    count = max(least, min(round(len(whole) / 10), _MOST_VALIDATION_IMAGES)) if asked is None else asked
    if count >= len(whole):
        raise DatasetError(
            f"{count} validation images leave none of the {len(whole)} of {whole} to learn from",
            hint="use a smaller --validation or a larger --limit-train",
        )
    return count


def check_different(splits: dict[str, ImageDataset]) -> None:
    """Refuse one split in two roles ("train", "validation", "test").

    Raises:
        DatasetError: it is.
    """
    for role, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        if role in splits and other in splits and splits[role].split == splits[other].split:
            raise DatasetError(
                f"{splits[other]} would be used for {role} and for {other}: its accuracy would mean nothing",
                hint="name different splits with --test-split and --validation-split",
            )


def _check_classes(splits: dict[str, ImageDataset]) -> None:
    train = splits["train"]
    for role, split in splits.items():
        if split.labels != train.labels:
            raise DatasetError(
                f"train and {role} of {train.name} have different classes", hint="give both splits the same class names"
            )
        if (split.label_sets is None) != (train.label_sets is None):
            raise DatasetError(
                f"train and {role} of {train.name} differ: one has several labels an image, the other one class",
                hint="write both splits the same way; name the column of either with --label-column",
            )
        # Of several labels, rare ones are often not among the test images; of those that are the numbers are.
        required = ("train", "test") if split.label_sets is None else ("train",)
        empty = _without_images(split) if role in required else []
        if empty and len(train.labels) > 1:
            raise DatasetError(
                f"{split} has no image of {', '.join(empty[:5])}", hint="add images of it, or remove the class"
            )
    if len(train.labels) < 2:
        raise DatasetError(
            f"{train.name} has one class only ({train.labels[0]})", hint="use a dataset with two or more"
        )


def _check_learnable(train: ImageDataset) -> None:
    """A sample, or what validation left, may lack a class that the whole split has."""
    missing = _without_images(train)
    if missing:
        raise DatasetError(
            f"the {len(train)} images to train on have none of {', '.join(missing[:5])}",
            hint="use a larger --limit-train or a smaller --validation, or add images of it",
        )


def _check_findable(*splits: ImageDataset) -> None:
    """Of several labels an image, where no image has any there is nothing to choose or to judge by."""
    for split in splits:
        if split.label_sets is not None and not split.label_sets.any():
            raise DatasetError(
                f"none of the {len(split)} images of {split} has a label",
                hint="use a larger --validation or --limit-test, or add labelled images",
            )


def _without_images(split: ImageDataset) -> list[str]:
    return [label for label, count in split.class_counts().items() if not count]


def _good(split: ImageDataset) -> tuple[ImageDataset, list[str]]:
    bad = find_bad_images(split)
    return without_images(split, [image.index for image in bad]), [f"{image.where} {image.problem}" for image in bad]
