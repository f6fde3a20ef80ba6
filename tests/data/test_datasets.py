"""Datasets: every layout gives the same images, bad ones give an error with the next step."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.fuzz import rounds
from vitdeploy.bulk.sources import Done, find_images
from vitdeploy.core.errors import DatasetError, ImageError, InputError
from vitdeploy.data import ImageDataset, load_dataset, stratified_sample, stratified_split
from vitdeploy.data.check import find_bad_images, without_images
from vitdeploy.data.sampling import stratified_indices

CLASSES = ("bee", "cat", "dog")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the Arrow copies of `datasets` out of the user's cache, and the tests off the network."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def pixels(label: int, number: int) -> np.ndarray:
    """A (6, 9, 3) image that no other pair of arguments has."""
    return np.full((6, 9, 3), (label * 60, number * 20, 7), np.uint8)


def png(array: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_folders(root: Path, per_class: int = 3) -> Path:
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            (root / name / f"{number}.png").write_bytes(png(pixels(label, number)))
    return root


def rows(labels: list[Any], column: str = "label", per_class: int = 3) -> dict[str, list[Any]]:
    order = [(label, number) for label in range(len(labels)) for number in range(per_class)]
    return {
        "photo": [{"bytes": png(pixels(*pair)), "path": None} for pair in order],
        column: [labels[label] for label, _ in order],
    }


def write_parquet(path: Path, table: dict[str, list[Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def write_hub_layout(folder: Path) -> Path:
    """A dataset repository whose features name images and classes."""
    import datasets

    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=list(CLASSES))})
    for split, per_class in (("train", 3), ("test", 1)):
        table = datasets.Dataset.from_dict(rows([0, 1, 2], "kind", per_class), features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "  - split: test\n    path: data/test-*\n---\n# three kinds\n"
    )
    return folder


def same_images(dataset: ImageDataset, per_class: int = 3) -> bool:
    expected = [(label, number) for label in range(3) for number in range(per_class)]
    found = list(dataset)
    return [label for _, label in found] == [label for label, _ in expected] and all(
        np.array_equal(image, pixels(*pair)) for (image, _), pair in zip(found, expected, strict=True)
    )


def test_every_layout_gives_the_same_images_and_fingerprint(tmp_path: Path) -> None:
    write_folders(tmp_path / "folders" / "train")
    write_folders(tmp_path / "folders" / "test", per_class=1)
    write_hub_layout(tmp_path / "hub")
    write_parquet(tmp_path / "parquet" / "my-train-0.parquet", rows(list(CLASSES)))
    write_parquet(tmp_path / "parquet" / "my-test-0.parquet", rows(list(CLASSES), per_class=1))
    for name in ("folders", "hub"):
        train, test = load_dataset(tmp_path / name, "train"), load_dataset(str(tmp_path / name), "test")
        assert train.labels == test.labels == CLASSES
        assert (train.split, train.kind, len(train), len(test)) == ("train", "local", 9, 3)
        assert same_images(train) and same_images(test, per_class=1)
    table = load_dataset(tmp_path / "parquet", "train")  # no types here: "photo" and "label" are usual names
    assert table.labels == CLASSES and same_images(table)
    prints = [load_dataset(tmp_path / name, "train").fingerprint for name in ("folders", "hub")]
    assert prints == [table.fingerprint] * 2
    assert load_dataset(tmp_path / "hub", "test").fingerprint != prints[0]


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_a_table_may_name_images_beside_it(tmp_path: Path, hub: bool, plain: bool) -> None:
    top = tmp_path / "set"
    write_folders(top / "data" / "photos")
    names = [f"photos/{name}/{number}.png" for name in CLASSES for number in range(3)]
    images: list[Any] = names if plain else [{"bytes": None, "path": name} for name in names]
    table = {"file_name" if plain else "image": images, "label": [name for name in CLASSES for _ in range(3)]}
    write_parquet(top / "data" / "train-0.parquet", table)
    if hub:
        (top / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
        )
    dataset = load_dataset(top, "train")
    assert dataset.labels == CLASSES and same_images(dataset)
    (top / "data" / "photos" / "cat" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"there is no image .*cat/1.png, which row 4 of train-0.parquet names"):
        dataset.image(4)


@pytest.mark.parametrize("kind", ["texts", "numbers", "multi-hot", "jsonl"])
def test_lists_of_labels(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa

    wanted = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=bool)
    names = [[CLASSES[place] for place in np.flatnonzero(row)] for row in wanted]
    photos = [png(pixels(0, number)) for number in range(4)]
    if kind == "jsonl":
        (tmp_path / "train").mkdir()
        lines = []
        for number, photo in enumerate(photos):
            (tmp_path / "train" / f"{number}.png").write_bytes(photo)
            lines.append(json.dumps({"file_name": f"{number}.png", "labels": names[number]}))
        (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    else:
        values: dict[str, Any] = {
            "texts": pa.array(names, pa.list_(pa.string())),
            "numbers": pa.array([np.flatnonzero(row).tolist() for row in wanted], pa.list_(pa.int64())),
            "multi-hot": pa.array(wanted.astype(int).tolist(), pa.list_(pa.int64())),
        }
        write_parquet(tmp_path / "train.parquet", {"image": photos, "labels": values[kind]})
    dataset = load_dataset(tmp_path, "train")
    assert dataset.label_sets is not None and np.array_equal(dataset.label_sets, wanted)
    assert dataset.labels == (CLASSES if kind in ("texts", "jsonl") else ("0", "1", "2"))
    assert np.array_equal(dataset.subset([3, 0]).label_sets, wanted[[3, 0]])
    assert dataset.class_counts()[dataset.labels[0]] == 2 and dataset.describe()["labels_per_image"] == 1.5
    assert dataset.fingerprint != dataset.subset([1, 0, 2, 3]).fingerprint


def test_a_text_that_is_no_path_is_not_taken_for_the_image(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", {"caption": ["a cat", "a dog"], "label": [0, 1]})
    with pytest.raises(DatasetError, match="no column looks like the image"):
        load_dataset(path, "train")
    both = write_parquet(tmp_path / "b" / "train.parquet", {**rows(list(CLASSES)), "path": ["/etc/passwd"] * 9})
    assert same_images(load_dataset(both, "train"))  # bytes win over paths


def test_nothing_is_written_beside_the_data(tmp_path: Path) -> None:
    folder = write_hub_layout(tmp_path / "hub")
    before = sorted(str(path) for path in folder.rglob("*"))
    load_dataset(folder, "train")
    assert sorted(str(path) for path in folder.rglob("*")) == before


def test_changed_parquet_is_read_again(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", rows(list(CLASSES)))
    assert len(load_dataset(path, "train")) == 9
    write_parquet(path, rows(list(CLASSES), per_class=5))
    os.utime(path, (1, 1))
    assert len(load_dataset(path, "train")) == 15


def test_parquet_is_read_by_bytes_not_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` gathers single rows, so a table has two, however large they are."""
    from vitdeploy.data import tables

    sizes: list[int] = []
    real = tables._joined

    def joined(rows: Any) -> Any:
        for table in real(rows):
            sizes.append(len(table))
            yield table

    monkeypatch.setattr(tables, "_joined", joined)
    for most, expected in ((1 << 26, [9]), (1, [2, 2, 2, 2, 1])):
        monkeypatch.setattr(tables, "_HELD_BYTES", most)
        path = write_parquet(tmp_path / str(most) / "train.parquet", rows(list(CLASSES)))
        assert same_images(load_dataset(path, "train"))
        assert sizes == expected
        sizes.clear()
    monkeypatch.setattr(tables, "_HELD_ROWS", 4)
    monkeypatch.setattr(tables, "_HELD_BYTES", 1 << 26)
    assert same_images(load_dataset(write_hub_layout(tmp_path / "hub"), "train")) and sizes == [4, 4, 1, 3]


def test_a_small_parquet_file_that_unpacks_to_a_large_one_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"photo": [bytes(2**20)] * 300, "label": [0, 1] * 150})
    pq.write_table(table, tmp_path / "train.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "train.parquet").stat().st_size < 2**20
    with pytest.raises(DatasetError, match="unpacks to 300 MiB from .* KiB") as error:
        load_dataset(tmp_path / "train.parquet", "train")
    assert "smaller row groups" in (error.value.hint or "")
    with pytest.raises(DatasetError, match="unpacks to 300 MiB"):
        find_images([str(tmp_path / "train.parquet")])


def test_text_that_is_none_is_an_error_of_ours(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def wrong(texts: list[bytes]) -> Any:
        buffers = pa.array(texts, pa.binary()).buffers()
        return pa.StringArray.from_buffers(len(texts), buffers[1], buffers[2])

    paths = wrong([b"a.png", b"\xff.png", b"b.png"])
    images = pa.StructArray.from_arrays([pa.array([None] * 3, pa.binary()), paths], ["bytes", "path"])
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"photo": images, "label": [0, 1, 2]}), file)
    with pytest.raises(DatasetError, match="can't be read from row 1 on"):
        list(find_images([str(file)]).items(Done()))
    with pytest.raises(DatasetError, match="row 1 of train.parquet has a path that is no text|can't be loaded"):
        load_dataset(file, "train").image(1)
    pq.write_table(pa.table({"photo": [png(pixels(0, 0))] * 3, "label": wrong([b"a", b"\xff", b"b"])}), file)
    with pytest.raises(DatasetError):
        load_dataset(file, "train")


@pytest.mark.fuzz
def test_mutated_parquet_is_read_or_refused(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "train.parquet", rows(list(CLASSES))).read_bytes()
    draw, refused = random.Random(0), 0
    for number in range(rounds(60)):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        (tmp_path / "m.parquet").write_bytes(content if number % 3 else content[: draw.randrange(len(content))])
        try:
            list(find_images([str(tmp_path / "m.parquet")]).items(Done()))
        except DatasetError:
            refused += 1
    assert refused > 10


def test_few_large_images_are_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdeploy.data import dataset as module

    dataset = load_dataset(write_folders(tmp_path / "f"), "all")
    monkeypatch.setattr(module, "HELD_BYTES", 2 * 6 * 9 * 3)
    assert [len(part) for part in dataset.parts([8, 0, 3, 3, 1])] == [2, 2, 1]
    assert np.array_equal(np.stack([image for part in dataset.parts([8, 0, 3]) for image in part])[0], pixels(2, 2))
    monkeypatch.setattr(module, "HELD_BYTES", 1)
    assert [len(part) for part in dataset.parts(range(3))] == [1, 1, 1]


def test_data_without_splits_has_a_fixed_fifth_for_test(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "photos", per_class=10)
    train, test, whole = (load_dataset(folders, split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(whole)) == (24, 6, 30)
    assert test.class_counts() == {"bee": 2, "cat": 2, "dog": 2}
    assert set(train.indices) | set(test.indices) == set(range(30))
    path = write_parquet(tmp_path / "images.parquet", rows(list(CLASSES), per_class=10))
    assert np.array_equal(load_dataset(path, "test").indices, test.indices)
    with pytest.raises(DatasetError, match="has no splits") as error:
        load_dataset(folders, "validation")
    assert "validation" in str(error.value.hint)


def test_labels_without_names(tmp_path: Path) -> None:
    numbers = write_parquet(tmp_path / "train.parquet", rows([30, 4, 7]))
    dataset = load_dataset(numbers, "train")
    assert dataset.labels == ("4", "7", "30")
    assert dataset.label_ids[0] == 2  # the first image has the value 30
    negative = write_parquet(tmp_path / "b" / "train.parquet", rows([-1, 0, 1]))
    with pytest.raises(DatasetError, match="negative classes"):
        load_dataset(negative, "train")


def test_an_unlabelled_image_among_named_classes_is_refused(tmp_path: Path) -> None:
    """Test splits of the Hub have -1 for all of them."""
    kinds = datasets.Features({"photo": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    for name, labels in (("train", [0, 1]), ("test", [1, -1])):
        table = rows(labels, per_class=1)
        datasets.Dataset.from_dict(table, features=kinds).to_parquet(tmp_path / f"{name}.parquet")
    assert load_dataset(tmp_path, "train").labels == ("ant", "bee")
    with pytest.raises(DatasetError, match="has the class -1") as error:
        load_dataset(tmp_path, "test")
    assert "another split" in str(error.value.hint)


def test_a_bad_image_is_named_by_its_file_also_in_a_part_of_the_data(tmp_path: Path) -> None:
    write_folders(tmp_path / "photos")
    whole = load_dataset(tmp_path / "photos", "all")
    place = len(whole) - 2
    name = whole.source.where(place)
    (tmp_path / "photos" / name).write_bytes(b"oops")
    reordered = whole.subset(np.array([0, len(whole) - 1, place, 1]))
    (bad,) = find_bad_images(reordered)
    assert (bad.index, bad.where) == (2, name)
    kept = without_images(reordered, [bad.index])
    assert [int(index) for index in kept.indices] == [0, len(whole) - 1, 1] and not find_bad_images(kept)


def test_class_missing_from_one_split_keeps_the_numbering(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows(["ant", "bee", "cat"]))
    write_parquet(tmp_path / "test.parquet", rows(["bee", "cat"]))
    test = load_dataset(tmp_path, "test")
    assert test.labels == ("ant", "bee", "cat")
    assert test.class_counts() == {"ant": 0, "bee": 3, "cat": 3}


def test_columns_are_given_or_found(tmp_path: Path) -> None:
    table = rows(list(CLASSES), "animal")
    table["image"] = [row["bytes"] for row in table.pop("photo")]
    table["weight"] = [0.5] * 9
    write_parquet(tmp_path / "train.parquet", table)
    with pytest.raises(DatasetError, match="no column looks like the label.*animal, image, weight") as error:
        load_dataset(tmp_path, "train")
    assert "--label-column" in str(error.value.hint)
    assert same_images(load_dataset(tmp_path, "train", label_column="animal"))
    with pytest.raises(DatasetError, match="has no column 'beast'"):
        load_dataset(tmp_path, "train", label_column="beast")
    with pytest.raises(DatasetError, match="holds numbers that are not classes \\(0.5\\)"):
        load_dataset(tmp_path, "train", label_column="weight")
    with pytest.raises(DatasetError, match="can't be the image"):
        load_dataset(tmp_path, "train", image_column="weight", label_column="animal")
    with pytest.raises(DatasetError, match="has no columns"):
        load_dataset("digits", "train", image_column="image")


def test_unknown_names_say_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset 'cifr10'") as error:
        load_dataset("cifr10", "test")
    assert "did you mean cifar10" in str(error.value.hint)
    with pytest.raises(DatasetError, match="no dataset"):
        load_dataset(str(tmp_path / "nothing"), "test")
    for pattern in ("photos/*", "photos/train/*/?.jpg"):  # the first looks like a name on the Hub
        with pytest.raises(DatasetError, match="patterns are not expanded"):
            load_dataset(pattern, "test")
    with pytest.raises(DatasetError, match="an address"):
        load_dataset("https://example.com/photos.zip", "test")
    with pytest.raises(DatasetError, match="no split 'validation'; it has test, train"):
        load_dataset("digits", "validation")


@pytest.mark.parametrize("kind", ["one", "several"])
@pytest.mark.parametrize("others", [["cat", "bee", "dog"], ["bee", "cat", "dog", "emu"]])
def test_files_that_number_their_classes_otherwise_are_refused(tmp_path: Path, kind: str, others: list[str]) -> None:
    """The library behind it would read the second file's numbers by the first one's names."""
    labels = {"one": [0, 1, 2], "several": [[0], [1], [0, 2]]}[kind]
    for split, names in (("train", list(CLASSES)), ("test", others)):
        label = datasets.ClassLabel(names=names)
        features = {"photo": datasets.Image(), "label": label if kind == "one" else datasets.List(label)}
        table = datasets.Dataset.from_dict(rows(labels), features=datasets.Features(features))
        table.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(DatasetError, match=r"test.parquet and .*train.parquet have different classes in .* 'label'"):
        load_dataset(tmp_path, "train")
    (tmp_path / "test.parquet").unlink()
    assert load_dataset(tmp_path, "train").labels == CLASSES


@pytest.mark.parametrize(
    ("label", "values", "message", "hint"),
    [
        ({"_type": "ClassLabel", "names": "ant"}, [0, 1], "class names that are no list of texts: 'ant'", "a name for"),
        ({"_type": "ClassLabel", "names": ["ant", None]}, [0, 1], "no list of texts", "a name for each class"),
        ({"_type": "ClassLabel", "names": ["ant", "bee"]}, [0, 5], "row 1 .* has the class 5", "correct that row"),
        ({"_type": "ClassLabel", "names": ["ant", "bee"]}, [0, -1], "row 1 .* has the class -1", "unlabelled image"),
    ],
)
def test_names_and_numbers_of_classes_that_do_not_fit_are_refused(
    label: dict[str, Any], values: list[int], message: str, hint: str, tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    noted = json.dumps({"info": {"features": {"photo": {"_type": "Image"}, "label": label}}})
    table = pyarrow.table(rows(values, per_class=1)).replace_schema_metadata({"huggingface": noted})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(tmp_path, "train")
    assert hint in (caught.value.hint or "")


def test_unreachable_hub_is_said_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(DatasetError, match="can't be reached") as error:
        load_dataset("cifar10", "train")
    assert "--dataset PATH" in str(error.value.hint)
    # five retries of huggingface_hub take over 20 s; a generous bound that only they would break
    assert time.monotonic() - started < 60


def test_a_folder_named_like_a_known_dataset_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "cifar10" / "train.parquet", rows(list(CLASSES)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError) as error:
        load_dataset("cifar10", "train")
    assert "for what is here under that name write ./cifar10" in str(error.value.hint)
    assert load_dataset("./cifar10", "train").labels


def test_damaged_data_is_named(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "a" / "train.parquet", rows(list(CLASSES)))
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=r"a/train\.parquet is damaged"):
        load_dataset(tmp_path / "a", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no class folders with images"):
        load_dataset(tmp_path / "empty", "train")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DatasetError, match="not a parquet file"):
        load_dataset(tmp_path / "notes.txt", "train")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match="photos.zip is not a parquet file") as error:
        load_dataset(tmp_path / "photos.zip", "train")
    assert "unpack photos.zip" in str(error.value.hint)
    folders = write_folders(tmp_path / "photos")
    (folders / "cat" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = load_dataset(folders, "all")
    with pytest.raises(ImageError, match=r"photos/all \(cat/1\.png\)"):
        list(dataset)
    (folders / "bee" / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"bee/0\.png.*can't be read"):
        dataset.image(0)


def test_table_with_an_empty_image_names_the_row(tmp_path: Path) -> None:
    table = rows(list(CLASSES))
    table["photo"][4] = {"bytes": None, "path": None}
    dataset = load_dataset(write_parquet(tmp_path / "train.parquet", table), "train")
    assert np.array_equal(dataset.image(3), pixels(1, 0))
    with pytest.raises(DatasetError, match="row 4 of train.parquet has no image"):
        dataset.image(4)


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "photos")
    (folders / ".cache").mkdir()
    (folders / ".cache" / "x.png").write_bytes(b"")
    (folders / "cat" / "notes.txt").write_text("hello")
    (folders / "cat" / "deeper").mkdir()
    (folders / "cat" / "deeper" / "9.JPG").write_bytes(png(pixels(1, 9)))
    dataset = load_dataset(folders, "all")
    assert dataset.labels == CLASSES
    assert dataset.class_counts() == {"bee": 3, "cat": 4, "dog": 3}


def test_class_folders_need_no_heavy_package(tmp_path: Path) -> None:
    write_folders(tmp_path / "photos")
    script = (
        "import sys\nfrom vitdeploy.data import load_dataset\n"
        f"print(load_dataset({str(tmp_path / 'photos')!r}, 'all', limit=4).image(0).shape)\n"
        "heavy = {'datasets', 'pyarrow', 'sklearn', 'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(6, 9, 3)"), done.stderr


def test_digits() -> None:
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert not set(train.indices) & set(test.indices)
    assert min(test.class_counts().values()) >= 35
    image = train.image(0)
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert np.array_equal(image[..., 0], image[..., 2])
    assert max(test.image(index).max() for index in range(50)) == 255
    assert train.labels[int(train.label_ids[5])] in "0123456789"
    assert load_dataset("digits", "test").fingerprint == test.fingerprint != train.fingerprint
    described = test.describe()
    assert (described["count"], described["classes"], described["fingerprint"]) == (360, 10, test.fingerprint)


def test_limit_takes_a_seeded_stratified_sample() -> None:
    first, again = (load_dataset("digits", "train", limit=100, seed=3) for _ in range(2))
    assert len(first) == 100
    assert np.array_equal(first.indices, again.indices)
    assert not np.array_equal(first.indices, load_dataset("digits", "train", limit=100, seed=4).indices)
    assert set(first.class_counts().values()) <= {9, 10, 11}
    assert len(load_dataset("digits", "test", limit=10_000)) == 360
    with pytest.raises(InputError, match="at least one image"):
        load_dataset("digits", "test", limit=0)


def test_split_is_disjoint_and_stratified() -> None:
    train = load_dataset("digits", "train")
    calibration, validation, rest = stratified_split(train, [64, 0.1], seed=1)
    assert [len(part) for part in (calibration, validation, rest)] == [64, 144, 1229]
    parts = [set(part.indices) for part in (calibration, validation, rest)]
    assert set.union(*parts) == set(train.indices)
    assert sum(map(len, parts)) == len(train)
    with pytest.raises(DatasetError, match="1437 images"):
        stratified_split(train, [1000, 1000])
    assert stratified_sample(train, 5000) is train


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_split_is_exact_and_near_the_proportions(labels: list[int], share: float, seed: int) -> None:
    ids = np.array(labels, dtype=np.int64)
    count = round(share * len(ids))
    part, rest = stratified_indices(ids, [count], seed=seed)
    assert len(part) == count and sorted([*part, *rest]) == list(range(len(ids)))
    for label in set(labels):
        exact = count * (ids == label).sum() / len(ids)
        assert abs((ids[part] == label).sum() - exact) < 1 + 1e-9  # largest remainders: never a whole image off


def test_subset_keeps_order_and_refuses_what_is_not_there() -> None:
    test = load_dataset("digits", "test")
    part = test.subset([5, 2])
    assert np.array_equal(part.image(0), test.image(5)) and part.label_ids[1] == test.label_ids[2]
    assert part.fingerprint != test.subset([2, 5]).fingerprint
    with pytest.raises(InputError, match="from 0 to 359"):
        test.subset([360])


def test_cifar10_in_the_hub_layout(test_data: Path) -> None:
    train, test = load_dataset(test_data / "cifar10", "train"), load_dataset(test_data / "cifar10", "test", limit=50)
    assert (len(train), len(test)) == (50_000, 50)
    assert train.labels[3] == "cat"
    assert set(train.class_counts().values()) == {5000}
    assert train.image(49_999).shape == (32, 32, 3)


def test_a_table_that_is_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 34326\n")
    with pytest.raises(DatasetError, match="a.parquet is a Git LFS pointer") as error:
        load_dataset(tmp_path / "a.parquet", "train")
    assert "git lfs pull" in str(error.value.hint)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("reached", [True, False])
def test_a_known_name_wins_and_what_lies_here_under_it_is_mentioned(
    beside: bool, reached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tools.engines import Recorder
    from vitdeploy.core import progress
    from vitdeploy.data import load

    def from_hub(repository: str, name: str, *asked: object) -> object:
        assert (repository, name) == ("uoft-cs/cifar10", "cifar10")
        if not reached:
            raise DatasetError("the Hub can't be reached", hint="use a local copy")
        return load_dataset("digits", "test", limit=20)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "_from_hub", from_hub)
    if beside:
        (tmp_path / "cifar10").mkdir()
    recorder = Recorder()
    with progress.use(recorder):
        if reached:
            assert len(load_dataset("cifar10", "test")) == 20
        else:
            with pytest.raises(DatasetError, match="can't be reached") as caught:
                load_dataset("cifar10", "test")
            assert ("./cifar10" in str(caught.value.hint)) == beside
            assert ("use a local copy" in str(caught.value.hint)) == (not beside)
    assert [note for note in recorder.notes if "write ./cifar10" in note] == recorder.notes
    assert len(recorder.notes) == beside
