"""Which split a run learns from, chooses by and is tested on."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.core.errors import DatasetError, InputError
from vitdeploy.training import FinetuneConfig
from vitdeploy.training.splits import Splits, load_splits

COUNTS = {"train": 20, "val": 4, "test": 3}


def photos(root: Path, *splits: str, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(COUNTS[split]):
                pixels = np.full((8, 8, 3), 10 * number, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


# (folders, options, images of train, validation and test, the test's split, a word of the notes)
CASES: list[tuple[tuple[str, ...], dict[str, Any], tuple[int, int, int], str, str]] = [
    (("train", "test"), {}, (36, 4, 6), "test", "set aside"),
    (("train", "val"), {}, (36, 4, 8), "validation", "The final test is on photos/validation"),
    (("train", "val", "test"), {}, (36, 4, 6), "test", "set aside"),
    (("train", "val", "test"), {"validation_split": "val"}, (40, 8, 6), "test", "by the 8 images of photos/validation"),
    (("train", "val", "test"), {"test_split": "val"}, (36, 4, 8), "validation", "The final test is on"),
    (
        ("train", "val", "test"),
        {"test_split": "validation", "validation_split": "test"},
        (40, 6, 8),
        "validation",
        "by the 6 images of photos/test",
    ),
]


@pytest.mark.parametrize(("folders", "options", "counts", "tested", "word"), CASES)
def test_each_role_has_its_split(
    folders: tuple[str, ...],
    options: dict[str, Any],
    counts: tuple[int, int, int],
    tested: str,
    word: str,
    tmp_path: Path,
) -> None:
    root = photos(tmp_path / "photos", *folders)
    splits = load_splits(FinetuneConfig("m", root, tmp_path / "out", **options))
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == counts and splits.test.split == tested
    assert any(word in note for note in splits.notes)
    described = splits.describe()
    assert list(described) == ["train", "validation", "test"] and described["test"]["split"] == tested
    assert described["test"]["used_for"].startswith("one look")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_split": "train"}, "photos/train would be used for train and for test"),
        ({"validation_split": "test"}, "photos/test would be used for validation and for test"),
        ({"test_split": "dev"}, "no split 'dev'"),
    ],
)
def test_one_split_has_one_role(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "train", "test")
    with pytest.raises(DatasetError, match=message):
        load_splits(FinetuneConfig("m", root, tmp_path / "out", **options))


def test_validation_that_is_also_the_test_is_refused(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "train", "val")
    with pytest.raises(DatasetError, match="for validation and for test"):
        load_splits(FinetuneConfig("m", root, tmp_path / "out", validation_split="val"))
    for wrong in ({"test_split": "all"}, {"validation_split": "val", "validation": 3}):
        with pytest.raises(InputError):
            FinetuneConfig("m", root, tmp_path / "out", **wrong)


@pytest.mark.parametrize("role", ["train", "val"])
def test_a_changed_label_is_another_dataset(role: str, tmp_path: Path) -> None:
    """The same images in the same places: only what metadata.csv calls one of them is another."""
    root = photos(tmp_path / "photos", "train", "val", "test")
    config = FinetuneConfig("m", root, tmp_path / "out", validation_split="val")
    for split in ("train", "val", "test"):
        names = [f"{label}/{number}.png,{label}" for label in ("cat", "dog") for number in range(COUNTS[split])]
        (root / split / "metadata.csv").write_text("\n".join(["file_name,label", *names]) + "\n")
    before = load_splits(config).identity()
    assert before == load_splits(config).identity()
    assert before["training images"]["count"] == 40 and before["validation images"]["count"] == 8
    file = root / role / "metadata.csv"
    file.write_text(file.read_text().replace("cat/1.png,cat", "cat/1.png,dog"))
    now = load_splits(config).identity()
    changed = {"train": "training images", "val": "validation images"}[role]
    assert {name for name in now if now[name] != before[name]} == {changed}
    assert now[changed]["count"] == before[changed]["count"]
    file.write_text(file.read_text().replace("cat/1.png,dog", "cat/1.png,cat"))
    assert load_splits(config).identity() == before
    for split in ("train", "val", "test"):  # another name for a class is another class
        file = root / split / "metadata.csv"
        file.write_text(file.read_text().replace(",dog", ",wolf"))
    assert all(load_splits(config).identity()[name] != before[name] for name in before)


def load(root: Path, **options: Any) -> Splits:
    return load_splits(FinetuneConfig("m", root, root.parent / "out", **options))


@pytest.mark.parametrize(
    ("options", "counts", "word"),
    [
        ({}, (36, 4, 6), "4 of the 40 training images are set aside"),
        ({"validation": 10}, (30, 10, 6), "10 of the 40 training images are set aside"),
        ({"validation": 1}, (39, 1, 6), "too few for every class: none of (cat|dog)"),
        ({"validation": 0}, (40, None, 6), "the last weights are kept"),
        ({"limit_train": 20}, (18, 2, 6), "2 of the 20 training images"),
        ({"limit_test": 2}, (36, 4, 2), "set aside"),
        ({"limit_test": 1}, (36, 4, 1), "The limited test images have none of (cat|dog)"),
    ],
)
def test_as_many_images_as_were_asked_for(
    options: dict[str, Any], counts: tuple[int, int | None, int], word: str, tmp_path: Path
) -> None:
    splits = load(photos(tmp_path / "photos", "train", "test"), **options)
    found = splits.validation and len(splits.validation)
    assert (len(splits.train), found, len(splits.test)) == counts
    assert any(re.search(word, note) for note in splits.notes)
    assert not any("none of" in note for note in splits.notes) or "none of" in word
    # no image is in two of them
    assert splits.validation is None or not {*splits.train.indices} & {*splits.validation.indices}


def test_of_many_images_a_thousand_choose(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "test")
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        for number in range(5010):
            (root / "train" / name / f"{number}.png").touch()
    splits = load(root)
    assert splits.validation is not None and (len(splits.train), len(splits.validation)) == (9020, 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 40}, "40 validation images leave none of the 40 of photos/train"),
        ({"validation": 39}, "the 1 images to train on have none of (cat|dog)"),
        ({"limit_train": 1, "validation": 0}, "the 1 images to train on have none of (cat|dog)"),
        ({"limit_train": 1, "validation_split": "val"}, "the 1 images to train on have none of (cat|dog)"),
    ],
)
def test_too_few_images_to_learn_from_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        load(photos(tmp_path / "photos", "train", "val", "test"), **options)
    assert "--limit-train" in str(error.value.hint)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (("cat", "dog"), ("cat", "wolf"), "photos/train has no image of wolf"),
        (("cat", "dog"), ("cat",), "photos/test has no image of dog"),
        (("cat",), ("cat", "dog"), "photos/train has no image of dog"),
        (("cat",), ("cat",), "photos has one class only .cat."),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    train: tuple[str, ...], test: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    photos(tmp_path / "photos", "train", classes=train)
    with pytest.raises(DatasetError, match=message):
        load(photos(tmp_path / "photos", "test", classes=test))


def test_a_class_that_only_validation_lacks_is_no_matter(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "train", "test")
    photos(root, "val", classes=("cat",))
    splits = load(root, validation_split="val")
    assert splits.validation is not None and splits.validation.class_counts() == {"cat": 4, "dog": 0}


@pytest.mark.parametrize("damaged", ["val", "test"])
def test_what_can_not_be_decoded_is_named_before_training_or_left_out(damaged: str, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "train", "val", "test")
    for name in (f"{damaged}/dog/1.png", "train/cat/7.png"):
        (root / name).write_bytes(b"oops")
    config = FinetuneConfig("m", root, tmp_path / "out", validation_split="val")
    with pytest.raises(DatasetError, match="dog/1.png"):
        load_splits(config)
    assert len(load_splits(config, decode=False).train) == 40
    splits = load_splits(replace(config, skip_bad=True))
    role = {"val": "validation", "test": "test"}[damaged]
    assert {name: len(bad) for name, bad in splits.skipped.items() if bad} == {"train": 1, role: 1}
    assert splits.skipped["train"][0].startswith("train/cat/7.png ") and len(splits.train) == 39
    assert f"1 of the {role} images can't be decoded and are skipped." in splits.notes
    assert splits.notes[0] == "1 of the train images can't be decoded and are skipped."


def test_a_class_of_damaged_images_alone_is_refused(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", "train", "test")
    for number in range(COUNTS["test"]):
        (root / "test" / "dog" / f"{number}.png").write_bytes(b"oops")
    with pytest.raises(DatasetError, match="photos/test has no image of dog"):
        load(root, skip_bad=True)
