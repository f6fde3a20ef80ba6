"""Folders as people have them: each layout gives its classes and splits, or says what is there and what was wanted."""

from __future__ import annotations

import io
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from tests.tools.notes import kept_notes
from vitdeploy.core.errors import DatasetError, ImageError
from vitdeploy.data import ImageDataset, load_dataset
from vitdeploy.data.images import FORMATS, decode, image_suffixes
from vitdeploy.data.splits import choose_split

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12, 3)).astype(np.uint8))


def encoded(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    # Pillow before 13 writes an icon of no picture where it is smaller than its usual sizes
    PICTURE.save(buffer, kind, **({"sizes": [PICTURE.size]} if kind == "ICO" else {}))
    return buffer.getvalue()


def write(root: Path, *files: str, content: bytes = encoded()) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def classes(prefix: str = "", names: tuple[str, ...] = ("cat", "dog"), count: int = 5) -> list[str]:
    return [f"{prefix}{name}/{number}.png" for name in names for number in range(count)]


def load(root: Path, split: str, **options: Any) -> tuple[ImageDataset, str]:
    with kept_notes() as said:
        dataset = load_dataset(root, split, **options)
    return dataset, " ".join(said)


# what it shows: (files, split, classes and their images, a part of what is said)
LAYOUTS: dict[str, tuple[list[str], str, dict[str, int], str]] = {
    "splits": ([*classes("train/"), *classes("test/", count=2)], "test", {"cat": 2, "dog": 2}, ""),
    "no splits": (classes(count=10), "test", {"cat": 2, "dog": 2}, "test is 4 of its 20 images"),
    "everything": (classes(count=10), "all", {"cat": 10, "dog": 10}, ""),
    "a folder around classes": (classes("photos/"), "all", {"cat": 5, "dog": 5}, "everything lies in photos"),
    "two folders around splits": (
        [*classes("a/b/train/"), *classes("a/b/test/", count=1)],
        "test",
        {"cat": 1, "dog": 1},
        "everything lies in a/b",
    ),
    "split inside a folder of its name": (
        [*classes("seg_train/seg_train/"), *classes("seg_test/seg_test/", count=3), "seg_pred/seg_pred/1.png"],
        "test",
        {"cat": 3, "dog": 3},
        "left out is seg_pred/",
    ),
    "training_set and test_set": (
        [*classes("training_set/training_set/"), *classes("test_set/test_set/", count=2)],
        "test",
        {"cat": 2, "dog": 2},
        "",
    ),
    "a picture beside the folder around everything": (
        ["preview.png", *classes("photos/")],
        "all",
        {"cat": 5, "dog": 5},
        "everything lies in photos",
    ),
    "unlabelled images beside classes": ([*classes(), "unlabeled/1.png"], "all", {"cat": 5, "dog": 5}, "unlabeled/"),
    "val instead of a test without labels": (
        [*classes("train/"), *classes("val/", count=2), "test/1.png"],
        "test",
        {"cat": 2, "dog": 2},
        "what is tested on. d",
    ),
    "train/images/cat": (
        [*classes("train/images/"), *classes("valid/images/", count=3)],
        "validation",
        {"cat": 3, "dog": 3},
        "",
    ),
    "validation is the test": (
        [*classes("train/"), *classes("val/", count=3)],
        "test",
        {"cat": 3, "dog": 3},
        "its validation split is what is tested on",
    ),
    "an unlabelled test beside splits": (
        [*classes("train/"), "test/1.png", "test/2.png"],
        "train",
        {"cat": 5, "dog": 5},
        "left out is test/",
    ),
    "an unlabelled test beside classes": ([*classes(), "test/1.png"], "all", {"cat": 5, "dog": 5}, "left out is test/"),
    "a class called train": (classes(names=("bus", "train")), "all", {"bus": 5, "train": 5}, ""),
    "a class called bullet_train": (
        [*classes(names=("bus",)), "bullet_train/a/1.png", "bullet_train/b/1.png"],
        "all",
        {"bullet_train": 2, "bus": 5},
        "",
    ),
    "images beside the classes": ([*classes(), "1.png"], "all", {"cat": 5, "dog": 5}, "1 images beside the folders"),
    "what systems leave behind": (
        [*classes(), ".hidden/1.png", "__MACOSX/cat/1.png", "cat/._1.png", "cat/Thumbs.db", "@eaDir/x/1.png"],
        "all",
        {"cat": 5, "dog": 5},
        "",
    ),
    "other files": (
        [*classes(), "cat/notes.txt", "cat/a.heic", "cat/b.heic", "labels/1.xml"],
        "all",
        {"cat": 5, "dog": 5},
        "4 files that can't be read as images are left out (cat: 2 .heic, 1 .txt; labels: 1 .xml)",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_that_are_recognised(name: str, tmp_path: Path) -> None:
    files, split, counts, said = LAYOUTS[name]
    dataset, notes = load(write(tmp_path / "data", *files), split)
    assert dataset.class_counts() == counts
    assert said in notes if said else notes == ""
    assert dataset.image(0).shape == (12, 12, 3)


# (files, split, what the error says, its hint)
REFUSED: dict[str, tuple[list[str], str, str, str]] = {
    "no class folders": (
        ["1.png", "2.png"],
        "all",
        "no class folders with images: it has 2 images, no folders",
        "CLASS",
    ),
    "only an archive": (["cat.zip"], "all", "the archive cat.zip", "unpack cat.zip"),
    "a list of labels": (["train/1.png", "train.csv"], "train", "the file train.csv", "metadata.csv .*train.csv"),
    "splits without classes": (
        ["train/1.png", "test/1.png"],
        "test",
        "it has 2 images, the folders test, train",
        "CLASS",
    ),
    "only hidden things": ([".x/1.png"], "all", "no images, no folders", "CLASS"),
    "no test": ([*classes("train/"), "test/1.png"], "test", "has no split 'test'; it has train .*test/", "beside them"),
    "a split twice": (
        [*classes("train/"), *classes("training/")],
        "train",
        "are both the train split",
        "into one of them",
    ),
    "a class in a format that is not read": (
        [*classes(), "hen/1.heic", "hen/2.heic"],
        "all",
        "none of the 2 pictures of the class 'hen' .*2 .heic",
        "pillow-heif",
    ),
    "a split that is another": (classes(), "validation", "no splits", "folder of that name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_are_refused_with_what_was_found(name: str, tmp_path: Path) -> None:
    files, split, message, hint = REFUSED[name]
    with pytest.raises(DatasetError, match=message) as caught:
        load(write(tmp_path / "data", *files), split)
    assert re.search(hint, str(caught.value.hint))


@pytest.mark.parametrize("name", ["train", "test", "val", "valid", "validation"])
def test_a_folder_that_is_named_for_its_split_is_taken_whole(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / name, *classes(count=10))
    split = "validation" if name.startswith("val") else name
    dataset, notes = load(folder, split)
    assert (len(dataset), dataset.split, dataset.carved_from, notes) == (20, split, None, "")
    assert len(load(folder, "all")[0]) == 20
    other = "train" if split != "train" else "test"
    with pytest.raises(DatasetError, match=f"has no split '{other}'; it has {split}"):
        load(folder, other)


def test_a_carved_split_says_out_of_how_many(tmp_path: Path) -> None:
    dataset, notes = load(write(tmp_path / "photos", *classes(count=10)), "test", limit=2)
    assert (len(dataset), dataset.describe()["carved_from"]) == (2, 20)
    assert "photos has no splits: test is 4 of its 20 images" in notes
    assert "carved_from" not in load(tmp_path / "photos", "all")[0].describe()


def test_every_suffix_of_a_format_that_is_read_is_an_image(tmp_path: Path) -> None:
    kinds = {"jpg": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000", "ico": "ICO", "PNG": "PNG", "tif": "TIFF"}
    kinds |= {"pgm": "PPM", "webp": "WEBP"} | ({"avif": "AVIF"} if features.check("avif") else {})
    for suffix, kind in kinds.items():
        write(tmp_path, f"a_{suffix}/1.{suffix}", content=encoded(kind))
    dataset, notes = load(tmp_path, "all")
    assert dataset.class_counts() == {f"a_{suffix}": 1 for suffix in kinds} and notes == ""
    for image, _ in dataset:
        assert image.ndim == 3
    registered = Image.registered_extensions()
    assert image_suffixes() == {suffix for suffix, kind in registered.items() if kind in FORMATS and kind in Image.OPEN}


def test_what_was_left_out_is_in_the_record(tmp_path: Path) -> None:
    dataset, _ = load(write(tmp_path / "data", *classes(), "dog/a.heic", "dog/b"), "all")
    assert dataset.describe()["left_out"] == {"dog": {".heic": 1, "": 1}}


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    real = write(tmp_path / "real", *classes())
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("cat", "dog"):
        (linked / name).symlink_to(real / name)
    (real / "cat" / "again").symlink_to(real / "cat")
    (real / "cat" / "itself").symlink_to("itself")
    (real / "dog" / "more").symlink_to(write(tmp_path / "more", "7.png"))
    assert load(linked, "all")[0].class_counts() == {"cat": 5, "dog": 6}
    assert load(real, "all")[0].class_counts() == {"cat": 5, "dog": 6}


def test_a_link_out_of_a_class_never_brings_the_images_of_others(tmp_path: Path) -> None:
    root = write(tmp_path / "data", *classes())
    (root / "cat" / "up").symlink_to("..")
    (root / "dog" / "top").symlink_to(tmp_path)
    assert load(root, "all")[0].class_counts() == {"cat": 5, "dog": 5}
    (root / "kitten").symlink_to("cat")
    with pytest.raises(DatasetError, match="classes 'cat' and 'kitten' of .* are one folder") as caught:
        load(root, "all")
    assert caught.value.hint is not None and "remove the link" in caught.value.hint


def test_pipes_sockets_and_links_to_devices_are_never_opened(tmp_path: Path) -> None:
    root = write(tmp_path / "data", *classes())
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "device.png").symlink_to("/dev/zero")
    (root / "dog" / "gone.png").symlink_to("nowhere.png")
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(root / "dog")  # a socket's path is short
        listening.bind("s.png")
        os.chdir(here)
        dataset, notes = load(root, "all")
    assert dataset.class_counts() == {"cat": 5, "dog": 5} and "cat: 2 no regular file" in notes
    (root / "cat" / "0.png").unlink()
    os.mkfifo(root / "cat" / "0.png")  # between looking and reading
    with pytest.raises(DatasetError, match=r"cat/0\.png .*not a regular file"):
        dataset.image(0)
    for path in (root / "cat" / "pipe.png", root / "cat" / "device.png"):
        with pytest.raises(ImageError, match="not a regular file"):
            decode(path)


def test_a_flat_folder_will_do_where_no_labels_are_needed(tmp_path: Path) -> None:
    flat = write(tmp_path / "photos", *(f"{number}.png" for number in range(10)))
    dataset, notes = load(flat, "test", labelled=False)
    assert (len(dataset), dataset.labels, dataset.carved_from) == (2, ("unlabelled",), 10) and "2 of its 10" in notes
    assert len(load(flat, "all", labelled=False)[0]) == 10
    whole = write(tmp_path / "test", *(f"{number}.png" for number in range(10)))
    assert len(load(whole, "test", labelled=False)[0]) == 10
    assert load(write(tmp_path / "b", *classes()), "all", labelled=False)[0].labels == ("cat", "dog")
    both = write(tmp_path / "c", *(f"train/{number}.png" for number in range(7)), "test/1.png")
    train, notes = load(both, "train", labelled=False)
    assert (len(train), train.source.where(0), train.labels, notes) == (7, "train/0.png", ("unlabelled",), "")


def csv_of(rows: list[tuple[str, Any]]) -> str:
    return "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows)


def jsonl_of(rows: list[tuple[str, Any]]) -> str:
    return "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in rows)


@pytest.mark.parametrize(("file", "text"), [("metadata.csv", csv_of), ("metadata.jsonl", jsonl_of)])
def test_metadata_beside_the_images(file: str, text: Callable[[list[tuple[str, Any]]], str], tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 3)):
        write(tmp_path / "d" / split, *(f"x/{number}.png" for number in range(count)))
        rows = [(f"x/{number}.png", ["cat", "dog", "a, b"][number % 3].replace(", ", "-")) for number in range(count)]
        (tmp_path / "d" / split / file).write_text(text(rows))
    dataset, notes = load(tmp_path / "d", "test")
    assert dataset.class_counts() == {"a-b": 1, "cat": 1, "dog": 1} and "metadata names" in notes
    assert dataset.source.where(0) == "test/x/0.png" and dataset.image(2).shape == (12, 12, 3)
    rows = [(f"{split}/x/{number}.png", number % 2 + 9) for split in ("train", "test") for number in range(3)]
    for split in ("train", "test"):
        (tmp_path / "d" / split / file).unlink()
    (tmp_path / "d" / file).write_text(text(rows))  # one for both, with the splits in its paths
    assert load(tmp_path / "d", "train")[0].class_counts() == {"9": 2, "10": 1}
    assert len(load(tmp_path / "d", "test")[0]) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("file_name,label\nx.png,cat\nnone.png,dog\n", "there is no image .*none.png, which row 1"),
        ("file_name,label\nx.png,cat\n../../x.png,dog\n", "row 1 .* no image inside its folder"),
        ("file_name,label\nx.png,cat\n/etc/hostname,dog\n", "row 1 .* no image inside its folder"),
        ("file_name,label\nx.png,cat\nx.png,\n", "empty values"),
        ("file_name,text\nx.png,cat\n", "has no column of the labels; its columns are file_name, text"),
        ("file_name,label\n", "has no rows"),
        ("file_name,label\nx.png,cat\nx.png,dog\n", "rows 0 and 1 .* give x.png two labels: 'cat' and 'dog'"),
        ("file_name,label\nx.png,tench, Tinca tinca\n", "row 0 has more cells than columns: a text with a comma"),
        ("file_name,label,label\nx.png,cat,dog\n", "two columns 'label'"),
        ("file_name,label\nx.png,0\nx2.png,-1\n", r"negative classes \(-1\)"),
        ("file_name,label\nx.png,\x00\udcff\n", "can't be read"),
    ],
)
def test_metadata_that_is_wrong_is_named(rows: str, message: str, tmp_path: Path) -> None:
    root = write(tmp_path / "d", "x.png", "x2.png")
    (root / "metadata.csv").write_text(rows, errors="surrogateescape")
    with pytest.raises(DatasetError, match=message):
        load(root, "all")


def test_metadata_may_name_an_image_twice_and_end_its_rows_with_commas(tmp_path: Path) -> None:
    root = write(tmp_path / "d", "x.png", "y.png")
    (root / "metadata.csv").write_text("file_name,label\nx.png,cat,\nx.png,cat\ny.png,dog, \n")
    assert load(root, "all")[0].class_counts() == {"cat": 2, "dog": 1}


def test_metadata_nested_without_end_is_damaged(tmp_path: Path) -> None:
    root = write(tmp_path / "d", "x.png")
    (root / "metadata.jsonl").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="can't be read"):
        load(root, "all")


def test_captions_are_no_labels(tmp_path: Path) -> None:
    root = write(tmp_path / "d", *classes())
    (root / "metadata.csv").write_text("file_name,text\ncat/0.png,a cat\n")
    assert load(root, "all")[0].class_counts() == {"cat": 5, "dog": 5}


def table(path: Path, images: list[Any], labels: list[Any], kind: Any = None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image, "label": pa.array(labels, kind)}), path)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def test_paths_in_parquet_start_at_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tables"
    for part in ("a", "b"):
        write(root / part, "img/0.png", "img/1.png")
        rows = [{"bytes": None, "path": f"img/{number}.png"} for number in range(2)]
        table(root / part / "test.parquet", rows, ["cat", "dog"])
    write(root / "b", "img/1.png", content=encoded("JPEG"))
    monkeypatch.chdir("/")
    dataset, _ = load(root, "test")
    assert [bytes(dataset.encoded(index))[:2] for index in range(4)] == [b"\x89P"] * 3 + [b"\xff\xd8"]
    assert dataset.source.where(3) == "row 1 of test.parquet"
    (root / "b" / "img" / "1.png").unlink()
    with pytest.raises(ImageError, match="there is no image .*1.png, which row 1 of test.parquet names"):
        dataset.image(3)


@pytest.mark.parametrize(
    ("labels", "found", "message"),
    [
        ([3.0, 11.0, 3.0], ("3", "11"), ""),
        ([3.0, 11.5, 3.0], (), "not classes \\(11.5\\)"),
        ([3.0, float("nan"), 3.0], (), "empty values"),
        ([3.0, float("inf"), 3.0], (), "not classes \\(inf\\)"),
        ([3.0, -1.0, 3.0], (), "negative classes \\(-1\\)"),
        (["03", "3", "a"], ("03", "3", "a"), ""),
        (["", "3", "a"], (), "empty values"),
        ([True, False, True], ("False", "True"), ""),
    ],
)
def test_label_columns(labels: list[Any], found: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = table(tmp_path / "test.parquet", [{"bytes": encoded(), "path": None}] * 3, labels)
    if message:
        with pytest.raises(DatasetError, match=message):
            load(path, "test")
    else:
        dataset, _ = load(path, "test")
        assert dataset.labels == found and dataset.labels[dataset.label_ids[0]] == str(
            int(labels[0]) if isinstance(labels[0], float) else labels[0]
        )


def test_a_table_without_rows_is_named(tmp_path: Path) -> None:
    import pyarrow as pa

    with pytest.raises(DatasetError, match=r"test\.parquet has no rows"):
        load(table(tmp_path / "test.parquet", [], [], pa.int64()), "test")


def test_a_folder_of_parquet_that_is_named_for_its_split(tmp_path: Path) -> None:
    images = [{"bytes": encoded(), "path": None}] * 10
    table(tmp_path / "test" / "0000.parquet", images, ["a", "b"] * 5)
    assert len(load(tmp_path / "test", "test")[0]) == 10
    for split in ("train", "val"):  # unless its files say that they are several
        table(tmp_path / "validation" / f"{split}.parquet", images[:4], ["a", "b"] * 2)
    table(tmp_path / "validation" / "test.parquet", images, ["a", "b"] * 5)
    assert [len(load(tmp_path / "validation", split)[0]) for split in ("train", "test")] == [4, 10]


@pytest.mark.parametrize(
    ("existing", "asked", "expected"),
    [
        (["train", "test"], "test", "test"),
        (["train", "validation"], "test", "validation"),
        (["train", "validation", "test"], "val", "validation"),
        (["train"], "all", "train"),
        (["train"], "test", None),
        (["validation"], "train", None),
        (["train", "test"], "all", None),
    ],
)
def test_which_split_is_taken(existing: list[str], asked: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(DatasetError, match="has no split"):
            choose_split("d", asked, existing)
    else:
        chosen = choose_split("d", asked, existing)
        assert (chosen.name, chosen.carve) == (expected, False)
