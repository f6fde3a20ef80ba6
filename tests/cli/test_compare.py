"""`vitdeploy compare`: tables, files, and an exit code for CI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.forms import report_of
from tests.tools.small_bundle import write_small_bundle

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("reports")
    before, after = folder / "before.json", folder / "after.json"
    report_of(flip=1, seed=1).write_json(before)
    report_of(int8_ms=12.0, flip=2, seed=5).write_json(after)
    return before, after


def test_the_change_is_shown(cli: Cli, files: tuple[Path, Path]) -> None:
    done = cli("compare", *files)
    assert done.exit_code == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "INT8 on OpenVINO" in line)
    assert "slower" in line and "lower" in line and "−1.00" in line
    assert "noise" in next(line for line in done.stdout.splitlines() if "FP32 on PyTorch" in line)


def test_several_reports_of_a_side_stand_on_both_sides_of_two_dashes(
    cli: Cli, files: tuple[Path, Path], tmp_path: Path
) -> None:
    before, after = files
    report_of(flip=1, seed=2).write_json(tmp_path / "before.json")
    report_of(int8_ms=12.0, flip=2, seed=6).write_json(tmp_path / "after.json")
    sides = (before, tmp_path / "before.json", "--", after, tmp_path / "after.json")
    done = cli("compare", *sides, "--fail-if", "int8.p50 > 1.1x", "--json", "-")
    assert "is there twice" in cli("compare", before, before, "--", after).stderr
    assert done.exit_code == 3
    data = json.loads(done.stdout)
    assert [len(data[side]) for side in ("before", "after")] == [2, 2]


def test_a_condition_that_is_inconclusive_has_an_exit_code_of_its_own(cli: Cli, tmp_path: Path) -> None:
    paths = tmp_path / "before.json", tmp_path / "after.json"
    for path, flip in zip(paths, (0, 4), strict=True):
        report_of(flip=flip, images=60).write_json(path)
    options = ("--fail-if", "int8.top1 < -0.5pt")
    done = cli("compare", *paths, *options)
    assert done.exit_code == 4
    assert "? int8.top1 < -0.5pt: inconclusive: int8/openvino: can't be told with 60 images" in done.stdout
    assert cli("compare", *paths, *options, "--blind", "pass").exit_code == 0
    both = cli("compare", *paths, *options, "--fail-if", "int8.top1 < 1")
    assert both.exit_code == 3  # what is met comes first


def test_a_condition_that_is_met_gives_an_exit_code(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    options = ("--fail-if", "int8.p50 > 1.1x", "--fail-if", "int8.top1 < -3pt", "--markdown", summary)
    done = cli("compare", *files, *options)
    assert done.exit_code == 3 and "✗ int8.p50 > 1.1x: int8/openvino: p50 1.2" in done.stdout
    assert "✓ int8.top1 < -3pt: not met" in done.stdout
    text = summary.read_text()
    assert "- ✗ `int8.p50 > 1.1x`" in text and "| INT8 on OpenVINO |" in text
    assert cli("compare", *files, "--fail-if", "int8.p50 > 2x").exit_code == 0


def test_strict_lets_noise_count(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    near = tmp_path / "near.json"
    report_of(int8_ms=10.1, flip=1, seed=5).write_json(near)
    options = (files[0], near, "--fail-if", "int8.p50 > 1x")
    done = cli("compare", *options)
    assert done.exit_code == 0 and "no more than noise" in done.stdout
    assert cli("compare", *options, "--strict").exit_code == 3


def test_json_is_for_scripts(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    done = cli("compare", *files, "--json", "-", "--fail-if", "int8.p50 > 1.1x")
    assert done.exit_code == 3
    data = json.loads(done.stdout)
    assert data["schema_version"] == 2 and data["conditions"][0]["state"] == "met"
    row = next(row for row in data["rows"] if row["key"] == "int8/openvino")
    p50 = next(change for change in row["changes"] if change["metric"] == "p50")
    assert p50["beyond_noise"] is True and p50["ci95"][0] < p50["amount"] < p50["ci95"][1]
    cli("compare", *files, "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == data["rows"]


def test_bundles_are_compared_by_the_report_they_hold(cli: Cli, tiny_images: Path, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", engine=False)
    missing = cli("compare", bundle, bundle)
    assert missing.exit_code == 1 and "can't be read" in missing.stderr and "vitdeploy bench" in missing.stderr
    quick = ("--rounds", 2, "--threads", 1, "--no-memory", "--no-phases", "--precision", "fp32")
    assert cli("bench", bundle, "--dataset", tiny_images, "--split", "all", *quick).exit_code == 0
    done = cli("compare", bundle, bundle, "--fail-if", "fp32.top1 < 0pt")
    assert done.exit_code == 0 and ("1.00×" in done.stdout or "the machine was busy" in done.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none.json", "none.json"], 1, "can't be read"),
        (["{before}", "{text}"], 1, "is not JSON"),
        (["{before}", "{before}", "--fail-if", "int8 is slow"], 1, "can't be read"),
        (["{before}"], 2, "AFTER"),
        (["{before}", "{before}", "{before}"], 2, "-- between them"),
        (["{before}", "--"], 2, "-- between them"),
    ],
)
def test_wrong_use_is_explained(
    cli: Cli, files: tuple[Path, Path], tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "text").write_text("not JSON")
    shown = [argument.format(before=files[0], text=tmp_path / "text") for argument in arguments]
    done = cli("compare", *shown)
    assert done.exit_code == code and words in done.stderr and "Traceback" not in done.stderr


def test_a_report_that_is_compared_is_not_replaced(cli: Cli, files: tuple[Path, Path]) -> None:
    before = files[0].read_bytes()
    done = cli("compare", *files, "--json", files[0])
    assert done.exit_code == 1 and "is, or holds, the input" in done.stderr
    assert files[0].read_bytes() == before
