"""What a run on a cluster is made of, without a cluster: blocks, reading ahead, how many workers, the output folder."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tools.threads import Threads
from vitdeploy import DatasetError, ImageError, InputError, OutputExistsError
from vitdeploy.bulk.files import ArrowFiles, LocalFiles, arrow_files, without_secrets
from vitdeploy.bulk.sources import Done, find_images
from vitdeploy.bulk.tables import Item
from vitdeploy.deploy.ray.blocks import AHEAD, Block, cut, digest, fetched, items, places
from vitdeploy.deploy.ray.cluster import Workers, plan
from vitdeploy.deploy.ray.output import DONE, finished, folder_at, part_name
from vitdeploy.deploy.ray.run import check_output

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def table(path: Path, rows: int, group: int) -> Path:
    parquet.write_table(arrow.table({"image": [b"%d" % n for n in range(rows)]}), path, row_group_size=group)
    return path


def test_blocks_are_all_images_in_order(tiny_images: Path, tmp_path: Path) -> None:
    table(tmp_path / "small.parquet", 25, 4)
    table(tmp_path / "large.parquet", 100, 100)
    images = find_images([str(tiny_images), str(tmp_path)])
    blocks = [Block.from_text(block.to_text()) for block in cut(images, 10)]
    assert [block.number for block in blocks] == list(range(len(blocks)))
    there = places(images)
    found = [item for block in blocks for item in items(block, there[block.place], outside=False)]
    assert found == list(images.items(Done()))
    assert [len(block) for block in blocks] == [10] * 4 + [13] * 7 + [9] + [8, 8, 9]
    assert digest(blocks) != digest(blocks[1:]) and digest(blocks) == digest(cut(images, 10))


def test_the_reader_waits_for_the_decoder() -> None:
    """However slow the model is, only so many images are in memory."""
    begun: list[str] = []
    threads = Threads()

    class Slow(LocalFiles):
        def read(self, path: str) -> bytes:
            begun.append(path)
            return path.encode()

    source = fetched((Item(str(n), None, str(n)) for n in range(10_000)), Slow())
    for taken in range(1, 6):
        item = next(source)
        assert (item.name, item.content.read()) == (str(taken - 1), str(taken - 1).encode())  # type: ignore[union-attr]
        time.sleep(0.05)
        assert len(begun) <= taken + AHEAD
    assert threads.begun()
    source.close()  # type: ignore[attr-defined]
    assert threads.begun() == []


def test_what_can_not_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    found = list(
        fetched([Item("a", None, "none"), Item("b", None, "there"), Item("c", 3, b"y")], LocalFiles(str(tmp_path)))
    )
    assert isinstance(found[0].content, ImageError) and "can't read the image none: No such file" in str(
        found[0].content
    )
    assert found[1].content.name == "there" and found[2].content == b"y"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus", "expected"),
    [
        ([{"CPU": 2}], 0, None, Workers(1, 2, 0)),
        ([{"CPU": 1}, {"CPU": 1}], 0, None, Workers(2, 1, 0)),
        ([{"CPU": 64}, {"CPU": 4}, {"CPU": 0.5}, {}], 0, None, Workers(17, 4, 0)),
        ([{"CPU": 64}], 0, None, Workers(8, 8, 0)),
        ([{"CPU": 64}], 0, 16, Workers(4, 16, 0)),
        ([{"CPU": 32, "GPU": 4}, {"CPU": 64}], 1, None, Workers(4, 8, 1)),
        ([{"CPU": 32, "GPU": 1}], 0.5, None, Workers(2, 16, 0.5)),
        ([{"CPU": 128, "GPU": 4}], 1, None, Workers(4, 16, 1)),
        ([{"CPU": 2, "GPU": 4}], 1, None, Workers(4, 0, 1)),
        ([{"CPU": 8, "GPU": 4}], 1, 4, Workers(2, 4, 1)),
    ],
)
def test_workers_fit_into_every_machine(
    nodes: list[dict[str, float]], gpus: float, cpus: int | None, expected: Workers
) -> None:
    team = plan(nodes, gpus, cpus)
    assert team == expected
    room = [
        min(node.get("CPU", 0) // team.num_cpus if team.num_cpus else 99, node.get("GPU", 0) // gpus if gpus else 99)
        for node in nodes
    ]
    assert sum(room) >= team.count


@pytest.mark.parametrize(("nodes", "gpus"), [([{"CPU": 4}], 1), ([{"CPU": 0}], 0), ([], 0), ([{"GPU": 1}], 2)])
def test_a_cluster_without_room_is_refused(nodes: list[dict[str, float]], gpus: float) -> None:
    with pytest.raises(InputError, match="no machine of the cluster has"):
        plan(nodes, gpus)


def test_addresses_lose_their_secrets() -> None:
    address = "s3://key:secret@bucket/a/b?region=x&scheme=http"
    assert without_secrets(address) == "s3://bucket/a/b" and without_secrets("a/b?c") == "a/b?c"
    files, path = arrow_files(address)
    assert (files.name(path), path) == ("s3://bucket/a/b", "bucket/a/b")
    assert files == pickle.loads(pickle.dumps(files))
    with pytest.raises(InputError, match="can't open nothing://a"):
        arrow_files("nothing://user:secret@a")


@pytest.mark.parametrize("prefix", ["file://", "memory://"])
def test_images_of_another_file_system(prefix: str, tiny_images: Path, tmp_path: Path) -> None:
    if prefix == "memory://":
        fsspec = pytest.importorskip("fsspec")
        for file in tiny_images.rglob("*.png"):
            fsspec.filesystem("memory").pipe_file(f"{tmp_path}/{file.relative_to(tiny_images)}", file.read_bytes())
        address = f"memory:/{tmp_path}"
    else:
        address = f"file://{tiny_images}"
    images = find_images([address], addresses=True)
    here = find_images([str(tiny_images)])
    assert images.count(Done()) == here.count(Done()) == (40, 0)
    (block,), place = list(cut(images, 100)), places(images)[0]
    content = [item.content.read() for item in fetched(items(block, place, outside=False), place)]  # type: ignore[union-attr]
    assert content == [file.read_bytes() for file in sorted(tiny_images.rglob("*.png"))]
    with pytest.raises(DatasetError, match="there is no"):
        find_images([f"{address}/none"], addresses=True)
    with pytest.raises(DatasetError, match="--engine ray reads"):
        raise_hint(address)


def raise_hint(address: str) -> None:
    try:
        find_images([address])
    except DatasetError as error:
        raise DatasetError(str(error.hint)) from error


def test_a_table_names_files_of_its_own_file_system(tmp_path: Path) -> None:
    place = ArrowFiles(None, "s3://")
    assert place.place("bucket/t/a.parquet", "x/1.png", allowed=False) == "bucket/t/x/1.png"
    assert place.place("bucket/t/a.parquet", "s3://bucket/t/1.png", allowed=False) == "bucket/t/1.png"
    assert place.place("bucket/t/a.parquet", "s3://other/1.png", allowed=True) == "other/1.png"
    for path in ("../1.png", "s3://other/1.png", "gs://bucket/t/1.png"):
        with pytest.raises(ImageError, match=r"leaves the folder|another file system"):
            place.place("bucket/t/a.parquet", path, allowed=False)


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_part_is_whole_or_done_again(prefix: str, tmp_path: Path) -> None:
    folder = folder_at(f"{prefix}{tmp_path}/out")
    assert folder.names() == [] and pickle.loads(pickle.dumps(folder)).name == folder.name
    buffer = arrow.BufferOutputStream()
    parquet.write_table(arrow.table({"image": ["a", "b"], "error": ["bad", None]}), buffer)
    folder.write(part_name(0), buffer.getvalue().to_pybytes())
    folder.write(part_name(1), buffer.getvalue().to_pybytes())
    folder.write(part_name(2), b"cut short")
    assert finished(folder, [(0, 2), (1, 3), (2, 2), (3, 2)]) == {0: 1}
    assert folder.names() == [part_name(0), part_name(1), part_name(2)], "nothing of the writing is left"


def test_only_results_of_ours_are_replaced(tmp_path: Path) -> None:
    output = tmp_path / "out"
    check_output(output, overwrite=False)
    output.mkdir()
    (output / DONE).write_text(json.dumps({}))
    with pytest.raises(OutputExistsError, match="already exists"):
        check_output(output, overwrite=False)
    check_output(output, overwrite=True)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"holds other files: notes\.txt"):
        check_output(output, overwrite=True)
    with pytest.raises(OutputExistsError, match="holds, the input"):
        check_output(tmp_path, overwrite=True, inputs=[str(output)])


@pytest.mark.parametrize("wrong", [("--address", "auto"), ("--num-gpus", "1")])
def test_options_of_ray_need_ray(wrong: tuple[str, str], cli: Any, tmp_path: Path) -> None:
    done = cli("predict", "bundle", "images", "--output", tmp_path / "r.csv", *wrong)
    assert done.exit_code == 2 and "only with --engine ray" in done.stderr
    done = cli("predict", "bundle", "image.png", "--engine", "ray")
    assert done.exit_code == 2 and "--engine ray: only with --output" in done.stderr
