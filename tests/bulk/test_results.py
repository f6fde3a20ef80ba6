"""Results on the disk: killed at every step of writing them, they are whole or not there, and nothing is lost."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.files import recorded_writes
from vitdeploy.bulk.formats import FORMATS, Layout, Parquet, Row, to_row
from vitdeploy.bulk.results import check_output, open_results, partial_folder
from vitdeploy.core.errors import BundleError, ImageError, InputError, OutputExistsError, VitdeployError
from vitdeploy.core.specs import Prediction, Score

SUFFIXES = [known.suffix for known in FORMATS]
JOB = {"model": "a" * 64, "precision": "int8", "top_k": 2}
LAYOUT = Layout(has_rows=False, classes=2)
NAMES = ["a.png", 'b,"c".png', "d\ne\r.png", "ä.png", "f.png", "g.png", "h.png"]


def answer(name: str) -> Prediction | ImageError:
    if name == "f.png":
        return ImageError("f.png is not an image", hint="use another")
    scores = (Score("cat, tabby", 1, 0.1 + 0.2), Score("dog", 0, 1 / 3))
    return Prediction("cat, tabby", 1, 0.1 + 0.2, scores)


def rows_of(output: Path) -> list[Row]:
    """The rows of a finished file in one shape, whatever its format: name, label, index, score, second label, error."""
    if output.suffix == ".csv":
        with open(output, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        return [
            {
                "image": line["image"],
                "label": line["label"] or None,
                "index": int(line["index"]) if line["index"] else None,
                "score": float(line["score"]) if line["score"] else None,
                "second": line["label_2"] or None,
                "error": line["error"] or None,
            }
            for line in lines
        ]
    if output.suffix == ".jsonl":
        found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        found = parquet.read_table(output).to_pylist()
    second = [row["top_k"][1]["label"] if row["top_k"] else None for row in found]
    keep = ("image", "label", "index", "score", "error")
    return [{**{name: row[name] for name in keep}, "second": label} for row, label in zip(found, second, strict=True)]


EXPECTED = [
    {
        "image": name,
        "label": None if name == "f.png" else "cat, tabby",
        "index": None if name == "f.png" else 1,
        "score": None if name == "f.png" else 0.1 + 0.2,
        "second": None if name == "f.png" else "dog",
        "error": "f.png is not an image" if name == "f.png" else None,
    }
    for name in NAMES
]


def write(output: Path, overwrite: bool = False, stop: int | None = None) -> int:
    """Do what is left of the job, two rows a part; how many rows an earlier run had."""
    with open_results(output, LAYOUT, JOB, overwrite=overwrite) as results:
        before = results.count
        if results.complete:
            return before
        for index, name in enumerate(name for name in NAMES if name not in results.done.names):
            if index == stop:
                raise KeyboardInterrupt
            results.add(to_row(name, None, answer(name)))
            if results.waiting == 2:
                results.flush()
        results.finish()
        assert (results.count, results.failed) == (7, 1)
        assert results.failures == [("f.png", None, "f.png is not an image")]
    return before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whole(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / "new" / f"results{suffix}"
    assert write(output) == 0
    assert rows_of(output) == EXPECTED
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_stopped_run_is_gone_on_with(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"results{suffix}"
    with pytest.raises(KeyboardInterrupt):
        write(output, stop=5)
    assert not output.exists()
    assert write(output) == 4  # the fifth row was in no part yet
    assert rows_of(output) == EXPECTED


def killed_at(step: int, work: Callable[[], Any]) -> bool:
    """Do `work` in a forked process that kills itself before file operation number `step`; whether it came to that."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: Any) -> None:
            nonlocal seen
            if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"):
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(
    ("suffix", "before"),
    [
        (".parquet", None),
        (".csv", None),
        (".jsonl", "old"),
        pytest.param(".jsonl", None, marks=pytest.mark.full),
        pytest.param(".csv", "old", marks=pytest.mark.full),
        pytest.param(".parquet", "old", marks=pytest.mark.full),
    ],
)
def test_killed_at_every_step(suffix: str, before: str | None, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet")
    old = tmp_path / f"old{suffix}"
    write(old)
    for step in range(1, 1000):
        folder = tmp_path / str(step)
        folder.mkdir()
        output = folder / f"results{suffix}"
        if before:
            output.write_bytes(b"what was there before")
        killed = killed_at(step, lambda output=output: write(output, overwrite=before is not None))
        if not killed:
            assert rows_of(output) == EXPECTED
            break
        replaced = output.exists() and output.read_bytes() != b"what was there before"
        assert output.exists() or not before
        if replaced:
            assert rows_of(output) == EXPECTED
        if replaced and not partial_folder(output).exists():
            continue
        try:
            kept = write(output, overwrite=before is not None)
        except OutputExistsError:  # all was done but for removing the last of the folder
            assert replaced
            continue
        assert kept in (0, 2, 4, 6, 7)  # whole parts
        assert rows_of(output) == EXPECTED
        assert [path.name for path in folder.iterdir()] == [output.name]
    assert step > 30


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_results_are_on_the_disk_before_they_have_their_name(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before the parts go that they are made of: a power cut loses none of both."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"results{suffix}"
    writes = recorded_writes(tmp_path, monkeypatch)
    write(output)
    assert not writes.too_early and "." not in writes.pending
    assert not writes.pending_at[output.name], "the parts, and what says that they are joined, are there"


def test_the_kill_is_real(tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    assert killed_at(12, lambda: write(output))
    assert not output.exists() and partial_folder(output).exists()


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """An output whose run was stopped after four rows."""
    output = tmp_path / "results.csv"
    with pytest.raises(KeyboardInterrupt):
        write(output, stop=5)
    return output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "b" * 64}, "model"),
        ({"precision": "fp32"}, "precision int8, not fp32"),
        ({"top_k": 3}, "top_k 2, not 3"),
    ],
)
def test_another_job_does_not_go_on_with_it(stopped: Path, change: dict[str, Any], said: str) -> None:
    parts = sorted(path.name for path in partial_folder(stopped).iterdir())
    with (
        pytest.raises(OutputExistsError, match=said) as caught,
        open_results(stopped, LAYOUT, {**JOB, **change}, overwrite=False),
    ):
        pass
    assert "--overwrite" in str(caught.value.hint)
    assert sorted(path.name for path in partial_folder(stopped).iterdir()) == parts
    with open_results(stopped, LAYOUT, {**JOB, **change}, overwrite=True) as results:
        assert results.count == 0
    assert not list(partial_folder(stopped).glob("part-*"))


def test_what_did_nothing_yet_binds_nobody(tmp_path: Path) -> None:
    output = tmp_path / "results.csv"
    with pytest.raises(KeyboardInterrupt):
        write(output, stop=1)
    with open_results(output, LAYOUT, {**JOB, "top_k": 3}, overwrite=False) as results:
        assert results.count == 0


def test_what_another_version_began_is_not_touched(stopped: Path) -> None:
    job = partial_folder(stopped) / "job.json"
    job.write_text(json.dumps({**json.loads(job.read_text()), "schema_version": 2}))
    with pytest.raises(OutputExistsError, match="schema 2"):
        write(stopped)
    job.write_text("{")
    with pytest.raises(OutputExistsError, match=r"job\.json"):
        write(stopped)
    assert list(partial_folder(stopped).glob("part-*"))


def test_a_damaged_part_is_named(stopped: Path) -> None:
    part = partial_folder(stopped) / "part-000001.csv"
    part.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VitdeployError, match="part-000001") as caught:
        write(stopped)
    assert "remove" in str(caught.value.hint)
    part.unlink()
    write(stopped)
    assert sorted(row["image"] for row in rows_of(stopped)) == sorted(NAMES)


def test_two_runs_at_once(stopped: Path) -> None:
    with (
        open_results(stopped, LAYOUT, JOB, overwrite=False),
        pytest.raises(BundleError, match="another command"),
        open_results(stopped, LAYOUT, JOB, overwrite=False),
    ):
        pass
    assert write(stopped) == 4


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="suffix") as caught:
        check_output(tmp_path / "results.xlsx", overwrite=False)
    assert ".parquet" in str(caught.value.hint) and ".jsonl" in str(caught.value.hint)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputExistsError, match="is a folder"):
        check_output(tmp_path / "folder.csv", overwrite=True)
    (tmp_path / "old.csv").write_text("mine")
    with pytest.raises(OutputExistsError) as exists:
        check_output(tmp_path / "old.csv", overwrite=False)
    assert "--overwrite" in str(exists.value.hint)
    check_output(tmp_path / "old.csv", overwrite=True)
    check_output(tmp_path / "new.csv", overwrite=False)
    (tmp_path / "new.csv.partial").mkdir()
    (tmp_path / "new.csv.partial" / "diary.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="in the way"):
        write(tmp_path / "new.csv", overwrite=True)
    assert (tmp_path / "new.csv.partial" / "diary.txt").read_text() == "mine"


def test_parquet_says_where_it_comes_from(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "results.parquet")
    schema = parquet.read_schema(tmp_path / "results.parquet")
    assert json.loads(schema.metadata[b"vitdeploy"]) == JOB
    assert schema.names == ["image", "label", "index", "score", "top_k", "error"]
    assert parquet.ParquetFile(tmp_path / "results.parquet").num_row_groups == 1


def test_parquet_has_groups_of_many_rows_whatever_the_parts_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("vitdeploy.bulk.formats._ROWS_A_GROUP", 4)
    write(tmp_path / "results.parquet")  # parts of two rows
    found = parquet.ParquetFile(tmp_path / "results.parquet").metadata
    assert [found.row_group(place).num_rows for place in range(found.num_row_groups)] == [4, 3]


def test_a_part_in_parquet_says_where_it_comes_from_if_that_is_asked(tmp_path: Path) -> None:
    parquet, kind = pytest.importorskip("pyarrow.parquet"), Parquet()
    rows = [to_row(name, None, answer(name)) for name in NAMES]
    for origin in (JOB, None):
        (tmp_path / "a.parquet").write_bytes(kind.encode(rows, LAYOUT, origin))
        said = parquet.read_schema(tmp_path / "a.parquet").metadata
        assert (said is None and origin is None) or json.loads(said[b"vitdeploy"]) == origin
        assert [name for name, *_ in kind.read(tmp_path / "a.parquet", LAYOUT)] == NAMES
