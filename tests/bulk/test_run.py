"""A bulk run over folders, files and tables, with a real model."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitdeploy import Classifier, load
from vitdeploy.bulk import embed_files, predict_files
from vitdeploy.bulk.results import partial_folder
from vitdeploy.bulk.sources import Done, find_images
from vitdeploy.core import progress
from vitdeploy.core.errors import BundleError, DatasetError, InputError, OutputExistsError
from vitdeploy.data import outside
from vitdeploy.data.outside import outside_paths


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Iterator[Classifier]:
    with load(tiny_bundle, "onnxruntime", "fp32", threads=1) as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path, tiny_images: Path) -> Path:
    """40 good images in 10 folders, two that are none, one text file and one hidden file."""
    folder = Path(shutil.copytree(tiny_images, tmp_path / "photos"))
    (folder / "broken.jpg").write_bytes(b"oops")
    good = (folder / "one" / "0.png").read_bytes()
    (folder / "truncated.png").write_bytes(good[: len(good) // 2])
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def read(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def table(path: Path, images: list[Any], **columns: Any) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"image": images, **columns}), path, row_group_size=16)
    return path


@pytest.mark.parametrize("call", [predict_files, embed_files])
def test_a_path_is_no_open_classifier(call: Any, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    for path in (tiny_bundle, str(tiny_bundle)):
        with pytest.raises(InputError, match="is a path") as caught:
            call(path, [photos], tmp_path / "results.parquet")
        assert f"vitdeploy.load({str(tiny_bundle)!r})" in str(caught.value.hint)


def test_a_folder(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    result = predict_files(classifier, [photos], tmp_path / "results.jsonl", top_k=3, batch=8)
    rows = read(tmp_path / "results.jsonl")
    paths = sorted(str(path) for path in photos.rglob("*.*") if path.suffix in (".png", ".jpg") and path.name[0] != ".")
    assert [row["image"] for row in rows] == paths
    assert (result.images, result.failed, result.resumed) == (42, 2, 0)
    assert result.images_per_second and result.images_per_second > 0
    failed = [row for row in rows if row["error"]]
    assert [Path(row["image"]).name for row in failed] == ["broken.jpg", "truncated.png"]
    assert [failure[0] for failure in result.failures] == [row["image"] for row in failed]
    assert all(row["label"] is row["index"] is row["score"] is row["top_k"] is None for row in failed)
    for row in rows:
        if not row["error"]:
            alone = classifier.predict(row["image"], 3)
            assert (row["label"], row["index"]) == (alone.label, alone.index)
            assert [score["label"] for score in row["top_k"]] == [score.label for score in alone.top_k]
            assert row["score"] == pytest.approx(alone.score, abs=1e-5)  # a batch rounds differently
            assert "row" not in row


def test_a_table(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*/*.png"))
    images: list[Any] = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    images[3] = {"bytes": None, "path": None}
    images[5] = {"bytes": b"oops", "path": "x.png"}
    images[7] = {"bytes": None, "path": "../photos/one/1.png"}
    images[9] = None
    (tmp_path / "data").mkdir()
    path = table(tmp_path / "data" / "train.parquet", images, thumbnail=[b"tiny"] * 40, label=list(range(40)))
    with outside_paths(True):
        result = predict_files(classifier, [tmp_path / "data"], tmp_path / "results.jsonl", batch=8)
    rows = read(tmp_path / "results.jsonl")
    assert [(row["image"], row["row"]) for row in rows] == [(str(path), index) for index in range(40)]
    assert [index for index, row in enumerate(rows) if row["error"]] == [3, 5, 9] == [f[1] for f in result.failures]
    assert rows[3]["error"] == rows[9]["error"] == "there is no image in the column 'image'"
    assert rows[5]["error"].startswith("the image is not an image")
    for index in (0, 7, 39):
        alone = classifier.predict(photos / "one" / "1.png" if index == 7 else files[index])
        assert rows[index]["label"] == alone.label


def test_a_column_of_paths_is_taken_where_it_is_asked_for(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    """Beside a column of bytes, which would be taken otherwise."""
    files = sorted(photos.rglob("*/*.png"))[:3]
    content = [path.read_bytes() for path in files]
    names = [path.relative_to(tmp_path).as_posix() for path in files[::-1]]
    path = table(tmp_path / "a.parquet", content, file_path=names)
    for column in ("image", "file_path"):
        predict_files(classifier, [path], tmp_path / f"{column}.jsonl", image_column=column)
    by_bytes, by_path = read(tmp_path / "image.jsonl"), read(tmp_path / "file_path.jsonl")
    assert not any(row["error"] for row in by_bytes + by_path)
    assert [row["score"] for row in by_path] == [row["score"] for row in by_bytes][::-1]
    other = table(tmp_path / "b.parquet", content, anywhere=names)  # a name that says nothing
    predict_files(classifier, [other], tmp_path / "other.jsonl", image_column="anywhere")
    assert [row["score"] for row in read(tmp_path / "other.jsonl")] == [row["score"] for row in by_path]


def test_a_table_of_plain_bytes_and_its_column(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*/*.png"))[:4]
    content = [path.read_bytes() for path in files]
    path = table(tmp_path / "a.parquet", [1, 2, 3, 4], left=content, right=content[::-1])
    with pytest.raises(DatasetError, match="several columns") as caught:
        predict_files(classifier, [path], tmp_path / "results.csv")
    assert "--image-column" in str(caught.value.hint)
    for column, problem in (("image", "holds no image files"), ("nothing", "is not there")):
        with pytest.raises(DatasetError, match=f"{column}.*{problem}"):
            predict_files(classifier, [path], tmp_path / "results.csv", image_column=column)
    for column in ("left", "right"):
        predict_files(classifier, [path], tmp_path / f"{column}.jsonl", image_column=column)
    left, right = read(tmp_path / "left.jsonl"), read(tmp_path / "right.jsonl")
    assert [row["label"] for row in left] == [row["label"] for row in right][::-1]
    with pytest.raises(DatasetError, match="no column"):
        find_images([str(table(tmp_path / "b.parquet", [1.5]))])


def test_files_and_tables_together_each_once(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", [(photos / "one" / "0.png").read_bytes()])
    image = photos / "one" / "0.png"
    odd = tmp_path / "no-suffix"
    shutil.copy(image, odd)
    predict_files(classifier, [path, image, odd, image, path], tmp_path / "results.jsonl")
    rows = read(tmp_path / "results.jsonl")
    assert [(row["image"], row["row"]) for row in rows] == [(str(image), None), (str(odd), None), (str(path), 0)]


def test_names_that_are_no_text(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    good = os.fsencode(photos / "one" / "0.png")
    folder = os.path.join(os.fsencode(tmp_path), b"bytes")
    os.mkdir(folder)
    for name in (b"\xff.png", "ä\n.png".encode()):
        shutil.copy(good, os.path.join(folder, name))
    Path(os.fsdecode(folder), os.fsdecode(b"bad\xfe.png")).write_bytes(b"oops")
    for suffix in ("jsonl", "csv", "parquet"):
        result = predict_files(classifier, [os.fsdecode(folder)], tmp_path / f"names.{suffix}")
        assert (result.images, result.failed) == (3, 1)
    assert [Path(row["image"]).name for row in read(tmp_path / "names.jsonl")] == [
        r"bad\udcfe.png",
        "ä\n.png",
        r"\udcff.png",
    ]


def test_the_output_is_no_image_of_its_own_folder(classifier: Classifier, photos: Path) -> None:
    (photos / "x.parquet.partial").mkdir()
    path = table(photos / "x.parquet", [(photos / "one" / "0.png").read_bytes()])
    with pytest.raises(OutputExistsError):
        predict_files(classifier, [photos], path)
    images = find_images([str(photos)], skip=[photos / "one"])
    assert images.count(Done()) == (38, 0)


class Stop:
    """Stops a run after some images, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left, self.notes = after, []

    def task(self, description: str, total: float | None, unit: str) -> Any:
        import contextlib

        self.total = total
        return contextlib.nullcontext(self)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, amount: float = 1) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def update(self, *, completed: float | None = None, total: float | None = None, detail: str | None = None) -> None:
        self.completed = completed


def stop_after(count: int, *arguments: Any, **options: Any) -> Stop:
    reporter = Stop(count)
    with progress.use(reporter), pytest.raises(KeyboardInterrupt):  # type: ignore[arg-type]
        predict_files(*arguments, **options)
    return reporter


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_going_on(kind: str, classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    source = photos
    if kind == "table":
        source = table(tmp_path / "t.parquet", [path.read_bytes() for path in sorted(photos.rglob("*/*.png"))])
    whole, output = tmp_path / "whole.jsonl", tmp_path / "results.jsonl"
    predict_files(classifier, [source], whole, batch=8)
    stopped = stop_after(25, classifier, [source], output, batch=8, chunk=10)
    assert stopped.completed == 0
    assert any("25 of" in note and "goes on from there" in note for note in stopped.notes)
    assert not output.exists()
    assert len(list(partial_folder(output).glob("part-*"))) == 3  # of ten images each, and the rest
    reporter = Stop(1000)
    with progress.use(reporter):  # type: ignore[arg-type]
        result = predict_files(classifier, [source], output, batch=8)
    assert result.resumed == 25 == reporter.completed
    assert 1000 - reporter.left == result.images - 25  # nothing is done twice
    key = ("image", "row", "label", "error")
    assert [[row.get(k) for k in key] for row in read(output)] == [[row.get(k) for k in key] for row in read(whole)]
    assert result.failed == sum(row["error"] is not None for row in read(whole))


ROWS = """
import sys
import pyarrow, pyarrow.parquet
from vitdeploy.bulk.sources import Done, find_images

pyarrow.parquet.write_table(pyarrow.table({"image": [bytes(16 << 20)] * 30}), sys.argv[1], compression="zstd")
pool, most, count = pyarrow.default_memory_pool(), 0, 0
for item in find_images([sys.argv[1]]).items(Done()):
    most, count = max(most, pool.bytes_allocated()), count + 1
print(count, most >> 20)
"""


def test_rows_are_read_by_bytes_not_by_count(tmp_path: Path) -> None:
    """Thirty rows of 16 MB in a small file, of which a few are in memory at a time."""
    pytest.importorskip("pyarrow.parquet")
    command = [sys.executable, "-c", ROWS, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, mebibytes = map(int, done.stdout.split())
    assert (tmp_path / "a.parquet").stat().st_size < 2**20
    assert rows == 30 and mebibytes < 10 * 16


def test_a_small_table_that_unpacks_to_far_more_than_images_do_is_refused(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of it is unpacked; the limit is smaller here than it is."""
    monkeypatch.setattr(outside, "_LARGE", 1 << 20)
    path = table(tmp_path / "t.parquet", [bytes(1 << 22)])
    with pytest.raises(DatasetError, match="unpacks to 4 MiB"):
        predict_files(classifier, [path], tmp_path / "results.jsonl")


def test_relative_paths_are_those_of_the_folder_in_which_a_run_began(
    classifier: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(photos, tmp_path / "other" / "photos")).parent
    monkeypatch.chdir(tmp_path)
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    stop_after(20, classifier, [photos], whole, chunk=10)
    stop_after(20, classifier, ["photos"], part, chunk=10)
    monkeypatch.chdir(other)
    assert predict_files(classifier, [photos], whole).resumed == 20
    with pytest.raises(OutputExistsError, match="folder"):
        predict_files(classifier, ["photos"], part)
    monkeypatch.chdir(tmp_path)
    assert predict_files(classifier, ["photos"], part).resumed == 20


def test_going_on_with_a_folder_that_changed(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    stop_after(20, classifier, [photos], output, chunk=10)
    shutil.copy(photos / "one" / "0.png", photos / "aaa.png")
    shutil.rmtree(photos / "zero")
    result = predict_files(classifier, [photos], output)
    names = [Path(row["image"]).name for row in read(output)]
    assert "aaa.png" in names[20:] and len({row["image"] for row in read(output)}) == len(names) == result.images
    assert result.resumed == 20


def test_what_is_not_gone_on_with(classifier: Classifier, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    path = table(tmp_path / "t.parquet", [path.read_bytes() for path in sorted(photos.rglob("*/*.png"))])
    stop_after(25, classifier, [path], output, chunk=10)
    with load(tiny_bundle, "onnxruntime", "int8", threads=1) as other, pytest.raises(OutputExistsError, match="int8"):
        predict_files(other, [path], output)
    with load(tiny_bundle, "openvino", "fp32", threads=1) as other, pytest.raises(OutputExistsError, match="openvino"):
        predict_files(other, [path], output)
    with pytest.raises(OutputExistsError, match="top_k"):
        predict_files(classifier, [path], output, top_k=2)
    with pytest.raises(OutputExistsError, match="paths"):
        predict_files(classifier, [photos], output)
    table(path, [path.read_bytes() for path in sorted(photos.rglob("*/*.png"))][1:])
    with pytest.raises(OutputExistsError, match="tables"):
        predict_files(classifier, [path], output)
    assert predict_files(classifier, [photos], output, overwrite=True).resumed == 0


@pytest.mark.parametrize("safe", [True, False])
def test_texts_that_a_spreadsheet_would_compute(
    safe: bool, classifier: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safe or as they are, in a run that was stopped too, which only the same choice goes on with."""
    monkeypatch.chdir(photos)
    for name in ("=1+1.png", "+a.png", "'quoted.png", "plain.png"):
        shutil.copy(photos / "one" / "0.png", name)
    names = ["=1+1.png", "+a.png", "'quoted.png", "plain.png", "zero", "one"]
    output = tmp_path / "results.csv"
    stop_after(6, classifier, names, output, chunk=2, csv_safe=safe)
    with pytest.raises(OutputExistsError, match="csv_safe"):
        predict_files(classifier, names, output, csv_safe=not safe)
    result = predict_files(classifier, names, output, csv_safe=safe)
    assert result.resumed == 6
    with open(output, newline="", encoding="utf-8") as file:
        found = [line["image"] for line in csv.DictReader(file)]
    mark = "'" if safe else ""
    assert found[:4] == [f"{mark}=1+1.png", f"{mark}+a.png", f"{mark}'quoted.png", "plain.png"]
    assert len(found) == len(set(found)) == result.images


def test_a_table_that_breaks_off_keeps_what_was_read(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = table(tmp_path / "t.parquet", [path.read_bytes() for path in sorted(photos.rglob("*/*.png"))])
    good = path.read_bytes()
    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    path.write_bytes(good[:begin] + b"\xff" * 200 + good[begin + 200 :])
    output = tmp_path / "results.jsonl"
    with pytest.raises(DatasetError, match="from row 16 on"):
        predict_files(classifier, [path], output, batch=4)
    path.write_bytes(good)
    result = predict_files(classifier, [path], output)
    assert (result.resumed, result.images) == (16, 40)


def test_errors(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.csv"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    for path, error in [
        (tmp_path / "none", DatasetError),
        (tmp_path / "empty", DatasetError),
        (tmp_path / "bad.parquet", DatasetError),
    ]:
        with pytest.raises(error) as caught:
            predict_files(classifier, [path], output)
        assert caught.value.hint and path.name in caught.value.message
    for options in ({"chunk": 0}, {"batch": 0}, {"workers": 0}, {"top_k": 0}):
        with pytest.raises(InputError):
            predict_files(classifier, [photos], output, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.parquet", "empty", "photos"]


def test_an_output_in_use(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    from vitdeploy.core.storage import locked

    (tmp_path / "results.csv.partial").mkdir()
    with locked(tmp_path / "results.csv.partial" / ".lock"), pytest.raises(BundleError, match="another command"):
        predict_files(classifier, [photos], tmp_path / "results.csv")


def test_pipes_and_devices_are_rows_with_errors(classifier: Classifier, tiny_images: Path, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(tiny_images / "one", tmp_path / "photos"))
    os.mkfifo(photos / "pipe.png")
    os.mkfifo(photos / "pipe.parquet")
    (photos / "device.png").symlink_to("/dev/zero")
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    recorder = Stop(after=100)
    with progress.use(recorder):
        result = predict_files(classifier, [photos], tmp_path / "results.jsonl")
    assert (result.images, result.failed) == (6, 2)  # each is a row with an error
    assert any("left out are 1 .heic, 1 no regular file" in note for note in recorder.notes), recorder.notes
    for path, words in ((photos / "pipe.parquet", "not a regular file"), ("https://example.com/a.png", "an address")):
        with pytest.raises(DatasetError, match=words):
            predict_files(classifier, [path], tmp_path / "others.jsonl")
