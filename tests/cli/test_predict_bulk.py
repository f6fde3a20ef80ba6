"""`vitdeploy predict ... --output`: killed for real, at any moment, and gone on with by the same command."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tools.command_line import invoke
from vitdeploy.bulk.results import partial_folder

COPIES = 100  # of 40 images


@pytest.fixture(scope="module")
def many(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 image files, one of them broken, of which the file system holds 41."""
    root = tmp_path_factory.mktemp("many")
    files = sorted(tiny_images.rglob("*.png"))
    for copy in range(COPIES):
        for index, file in enumerate(files):
            os.link(file, root / f"{copy:02}-{index:02}.png")
    (root / "30-00.png").unlink()
    (root / "30-00.png").write_bytes(b"oops")
    return root


def read(output: Path) -> list[dict[str, Any]]:
    """The rows of a parquet or JSON lines file."""
    if output.suffix == ".parquet":
        rows: list[dict[str, Any]] = pytest.importorskip("pyarrow.parquet").read_table(output).to_pylist()
        return rows
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def start(bundle: Path, images: Path, output: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "vitdeploy", "predict", bundle, images, "--output", output, "--threads", "1"]
    arguments += ["--backend", "onnxruntime", "--precision", "fp32", "--batch-size", "8", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("suffix", [".parquet", pytest.param(".jsonl", marks=pytest.mark.full)])
def test_kill_9(suffix: str, tiny_bundle: Path, many: Path, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet")
    output = tmp_path / f"results{suffix}"
    folder = partial_folder(output)
    generator = random.Random(suffix)
    kept: list[int] = []
    for parts in (1, 2):  # killed somewhere between its first and second part, then between its second and third
        process = start(tiny_bundle, many, output)
        while len(list(folder.glob("part-*"))) < parts:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        assert not output.exists()
        before = len(kept)
        for part in sorted(folder.glob("part-*"))[before:]:
            kept.append(part.stat().st_mtime_ns)  # a part is never written again
        assert [part.stat().st_mtime_ns for part in sorted(folder.glob("part-*"))] == kept
    process = start(tiny_bundle, many, output)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"{1000 * len(kept)} of them before, 1 failed" in out.decode()
    assert "30-00.png" in err.decode() and "Traceback" not in err.decode()
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    rows = read(output)
    assert [Path(row["image"]).name for row in rows] == sorted(path.name for path in many.iterdir())
    assert [Path(row["image"]).name for row in rows if row["error"]] == ["30-00.png"]
    whole = tmp_path / "whole.jsonl"
    options = ("--threads", 1, "--backend", "onnxruntime", "--precision", "fp32", "--batch-size", 8)
    assert invoke("predict", tiny_bundle, many, "--output", whole, *options).exit_code == 0
    uninterrupted = read(whole)
    assert [(row["image"], row["label"], row["error"]) for row in rows] == [
        (row["image"], row["label"], row["error"]) for row in uninterrupted
    ]
    # images fall into other batches after a kill, which changes the last bits of a score
    assert all(
        row["error"] or abs(row["score"] - other["score"]) < 1e-5
        for row, other in zip(rows, uninterrupted, strict=True)
    )


def test_ctrl_c_keeps_what_was_done(tiny_bundle: Path, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.csv"
    process = start(tiny_bundle, many, output)
    while not list(partial_folder(output).glob("part-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "images are kept: the same command goes on from there" in err.decode() and "Traceback" not in err.decode()
    assert not output.exists()


def test_json_and_failures(tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"bad{number}.png").write_bytes(b"oops")
    arguments = ("predict", tiny_bundle, tiny_images, tmp_path, "--output", tmp_path / "r.csv", "--threads", 1)
    outcome = invoke(*arguments, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    data = json.loads(outcome.stdout)
    assert (data["images"], data["failed"], data["resumed"]) == (47, 7, 0)
    assert len(data["failures"]) == 7 and data["failures"][0]["image"] == str(tmp_path / "bad0.png")
    assert data["output"] == str(tmp_path / "r.csv") and data["backend"] and data["precision"]
    outcome = invoke(*arguments)
    assert outcome.exit_code == 1 and "already exists" in outcome.stderr and "--overwrite" in outcome.stderr
    outcome = invoke(*arguments, "--overwrite", "--top-k", 2)
    assert outcome.exit_code == 0
    assert "47 images, 7 failed" in outcome.stdout and str(tmp_path / "r.csv") in outcome.stdout
    assert outcome.stderr.count("Failed: ") == 5 and "2 more" in outcome.stderr
    header = (tmp_path / "r.csv").read_text().splitlines()[0]
    assert header == "image,label,index,score,label_2,score_2,error"


def test_only_failures(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"oops")
    outcome = invoke("predict", tiny_bundle, tmp_path, "--output", tmp_path / "r.jsonl", "--threads", 1)
    assert outcome.exit_code == 1
    assert len(read(tmp_path / "r.jsonl")) == 1


def test_many_images_want_an_output(tiny_bundle: Path, tiny_images: Path) -> None:
    for image in (tiny_images, "table.parquet"):
        outcome = invoke("predict", tiny_bundle, image)
        assert outcome.exit_code == 1
        assert "--output results.parquet" in outcome.stderr


def test_an_output_that_is_refused_costs_no_loading(tmp_path: Path) -> None:
    outcome = invoke("predict", tmp_path / "no-bundle", "x.png", "--output", tmp_path / "r.xlsx")
    assert outcome.exit_code == 1
    assert "suffix" in outcome.stderr and "no bundle" not in outcome.stderr


@pytest.mark.parametrize("option", [("--overwrite",), ("--image-column", "x"), ("--workers", 2), ("--batch-size", 4)])
def test_options_of_output_alone(option: tuple[object, ...]) -> None:
    outcome = invoke("predict", "bundle", "cat.png", *option)
    assert outcome.exit_code == 2
    assert str(option[0]) in outcome.stderr


@pytest.mark.parametrize("name", ["data.parquet", "link.parquet", "folder"])
def test_what_is_read_is_never_replaced(name: str, tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    content = next(tiny_images.rglob("*.png")).read_bytes()
    data = tmp_path / "data.parquet"
    parquet.write_table(arrow.table({"image": arrow.array([content] * 2, arrow.binary())}), data)
    before = data.read_bytes()
    (tmp_path / "link.parquet").symlink_to("data.parquet")
    read = tmp_path if name == "folder" else data
    output = data if name == "folder" else tmp_path / name
    outcome = invoke("predict", tiny_bundle, read, "--output", output, "--overwrite", "--threads", 1)
    assert outcome.exit_code == 1 and "the input" in outcome.stderr, outcome.stderr
    assert data.read_bytes() == before and (tmp_path / "link.parquet").is_symlink()
    for _ in range(2):  # results beside the images are no images
        done = invoke(
            "predict", tiny_bundle, tmp_path, "--output", tmp_path / "r.parquet", "--overwrite", "--threads", 1
        )
        assert done.exit_code == 0, done.stderr
