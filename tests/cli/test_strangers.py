"""Names and labels of strangers in the terminal, files that are none, tables that point elsewhere."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.command_line import invoke
from tests.tools.small_bundle import write_small_bundle
from vitdeploy.core.text import visible

EVIL = (
    *("\x1b]0;TITLE\x07", "\x1b]52;c;YmFk\x07", "\x1b[2J\x1b[31m", "[/bold]", "[link=http://evil]x[/link]", "\x9b31m"),
    *("=cmd|' /C calc'!A1", "\u202emoc.live", "two\nError: lines", "@SUM(1)"),
)
ONE = ("--threads", 1, "--backend", "onnxruntime", "--precision", "fp32")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return write_small_bundle(tmp_path_factory.mktemp("evil") / "b\x1b[31m", labels=EVIL)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "p\x1b]0;pwn\x07[nope]\u202e.png"
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path)
    return path


def harmless(*texts: str) -> bool:
    return all(visible(text) == text for text in texts)


def test_no_command_sends_what_a_terminal_obeys(bundle: Path, photo: Path) -> None:
    bad = photo.with_name("\x1b[2Jbad\nError: forged.png")
    bad.write_bytes(b"oops")
    for arguments in (
        ("predict", bundle, photo, bad, "-k", len(EVIL), *ONE),
        ("predict", bundle, photo, "-k", len(EVIL), "--json", *ONE),
        ("predict", bundle, "\x1b[31mnone.png", *ONE),
        ("inspect", bundle),
        ("inspect", "--json", bundle),
        ("inspect", "no\x1b[31m"),
        ("bench", bundle, "--dataset", "\x1b[31m[/x]"),
        ("predict", bundle, photo, "--backend", "\x1b[31m"),
    ):
        done = invoke(*arguments)
        assert harmless(done.stdout, done.stderr), (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr and not any(
            line.startswith("Error: forged") for line in done.stderr.splitlines()
        )
    shown = invoke("predict", bundle, photo, "-k", len(EVIL), *ONE).stdout
    assert "[/bold]" in shown and "two\\nError: lines" in shown
    found = json.loads(invoke("predict", bundle, photo, "-k", len(EVIL), "--json", *ONE).stdout)
    assert {score["label"] for score in found["predictions"][0]["top_k"]} == set(EVIL)


def test_csv_can_be_made_safe_for_spreadsheets_and_gone_on_with(bundle: Path, photo: Path, tmp_path: Path) -> None:
    shutil.copy(photo, tmp_path / "=1+1.png")
    os.chdir(tmp_path)
    for safe in (False, True):
        output = tmp_path / f"{safe}.csv"
        options = ("--csv-safe",) if safe else ()
        arguments = ("predict", bundle, "=1+1.png", "--output", output, "-k", len(EVIL), *ONE, *options)
        assert invoke(*arguments).exit_code == 0
        row = list(csv.reader(output.open(encoding="utf-8", newline="")))[1]
        dangerous = {
            cell for cell in row if cell.startswith(("=", "@", "+")) or (cell.startswith("-") and len(cell) < 2)
        }
        assert dangerous == (set() if safe else {"=1+1.png", "=cmd|' /C calc'!A1", "@SUM(1)"})
        assert ("'=1+1.png" in row) is safe


def test_files_for_people_hold_nothing_that_a_terminal_obeys(bundle: Path, photo: Path, tmp_path: Path) -> None:
    """JSON means the same with escapes; the names in CSV are exact, for whoever joins tables by them."""
    bad = photo.with_name("\x1b[2J\x9bbad.png")
    bad.write_bytes(b"oops")
    for suffix in ("jsonl", "csv"):
        output = tmp_path / f"r.{suffix}"
        assert invoke("predict", bundle, photo, bad, "--output", output, "-k", len(EVIL), *ONE).exit_code == 0
    text = (tmp_path / "r.jsonl").read_text(encoding="utf-8")
    assert harmless(text)
    found = [json.loads(line) for line in text.splitlines()]
    assert [Path(row["image"]).name for row in found] == [photo.name, bad.name]
    assert {score["label"] for score in found[0]["top_k"]} == set(EVIL)
    *_, row = csv.reader((tmp_path / "r.csv").open(encoding="utf-8", newline=""))
    assert Path(row[0]).name == bad.name and harmless(row[-1]) and "\\x1b[2J\\x9bbad.png" in row[-1]


def test_what_is_no_file_is_a_row_with_an_error(bundle: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(photo, folder / "ok.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "linked.png").symlink_to("pipe.png")
    (folder / "up").symlink_to("..")
    done = invoke("predict", bundle, folder, "--output", tmp_path / "r.jsonl", *ONE)
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {Path(row["image"]).name: row["error"] is None for row in rows} == {
        "ok.png": True,
        "pipe.png": False,
        "zero.png": False,
        "loop.png": False,
        "linked.png": False,
    }


def test_paths_in_tables_stay_below_their_folder(bundle: Path, photo: Path, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tables = tmp_path / "tables"
    (tables / "in").mkdir(parents=True)
    for place in (tables / "in" / "a.png", tmp_path / "outside.png"):
        shutil.copy(photo, place)
    os.mkfifo(tables / "pipe.png")
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    paths = [
        "in/a.png",
        "in/../in/a.png",
        "../outside.png",
        "in/../../outside.png",
        str(tmp_path / "outside.png"),
        "pipe.png",
    ]
    rows = arrow.array([{"bytes": None, "path": path} for path in paths], kind)
    parquet.write_table(arrow.table({"image": rows}), tables / "t.parquet")

    def fine(*options: str) -> list[bool]:
        output = tmp_path / "r.jsonl"
        done = invoke("predict", bundle, tables / "t.parquet", "--output", output, "--overwrite", *ONE, *options)
        assert done.exit_code == 0, done.stderr
        found: list[dict[str, Any]] = [json.loads(line) for line in output.read_text().splitlines()]
        return [row["error"] is None for row in found]

    assert fine() == [True, True, False, False, False, False]
    assert fine("--allow-outside-paths") == [True, True, True, True, True, False]


def test_a_pipe_is_no_table(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    os.mkfifo(tmp_path / "t.parquet")
    done = invoke("predict", bundle, tmp_path / "t.parquet", "--output", tmp_path / "r.csv", *ONE)
    assert done.exit_code == 1 and "regular file" in done.stderr
