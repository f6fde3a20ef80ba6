"""Which split a run learns from, chooses by and is tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.core.errors import DatasetError, InputError
from vitdeploy.training import FinetuneConfig
from vitdeploy.training.splits import load_splits

COUNTS = {"train": 20, "val": 4, "test": 3}


def photos(root: Path, *splits: str) -> Path:
    for split in splits:
        for name in ("cat", "dog"):
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
