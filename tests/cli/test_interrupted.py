"""A full disk and Ctrl-C in each command that writes: a clear message, and everything from before still there."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.commands import Command
from tests.tools.files import snapshot
from vitdeploy.bundle import Bundle

Ready = Callable[[Path, Command], bool]


@pytest.fixture
def place(tiny_checkpoint: Path, tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> Path:
    """A folder with a checkpoint, images, and a bundle that was there before."""
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    shutil.copytree(tiny_images, tmp_path / "images")
    return tmp_path


EXPORT = ["export", "checkpoint", "--output", "bundle", "--overwrite"]
BUILD = ["build-engine", "bundle", "--fp16", "--int8", "--calibration-data", "./images", "--target", "onnx", "--force"]
BENCH = ["bench", "bundle", "--dataset", "./images", "--split", "all", "--json", "report.json", "--threads", 1]
BENCH += ["--backend", "onnxruntime", "--no-memory", "--no-phases"]
DEMO = ["demo", "--output", "demo"]


@pytest.mark.parametrize(
    "arguments", [EXPORT, BUILD, [*BENCH, "--rounds", 2], DEMO], ids=lambda arguments: str(arguments[0])
)
def test_a_full_disk_loses_nothing(arguments: list[object], place: Path) -> None:
    before = snapshot(place, "stderr.txt")
    command = Command(place, arguments, file_limit=4096)
    code, said = command.wait(), command.said
    assert "Traceback" not in said
    assert code == 1 and "no space left on the disk" in said and "Hint:" in said, said
    assert snapshot(place, "stderr.txt") == before
    Bundle.open(place / "bundle").verify()


def _said(text: str) -> Ready:
    return lambda folder, command: text in command.said


def _there(pattern: str) -> Ready:
    return lambda folder, command: any(folder.glob(pattern))


@pytest.mark.parametrize(
    ("arguments", "ready"),
    [
        (EXPORT, _said("Tracing the model")),
        (BUILD, _there("bundle/.staging")),  # while libraries are imported, which may swallow the interrupt
        (DEMO, _there(".demo.partial-*/start/model.safetensors")),
    ],
    ids=["export", "build-engine", "demo"],
)
def test_ctrl_c_leaves_what_was_there(arguments: list[str], ready: Ready, place: Path) -> None:
    before = snapshot(place, "stderr.txt")
    command = Command(place, arguments, imported=arguments is not BUILD)
    command.wait_until(lambda: ready(place, command))
    code, said = command.send(signal.SIGINT), command.said
    assert code == 130, said
    assert "Interrupted" in said and "Traceback" not in said
    assert snapshot(place, "stderr.txt") == before
    Bundle.open(place / "bundle").verify()


def test_ctrl_c_in_an_engine_build_leaves_the_log_alone(place: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    before = snapshot(place, "stderr.txt")
    log = place / "bundle" / "engines" / "tensorrt-rtx-fp32.log"
    ranges = ["--batch", "1:1:8,1:2:4,1:4:4", "--image-size", "8:32:512"]  # three profiles, so that it takes a while
    command = Command(place, ["build-engine", "bundle", "--fp32", "--target", "tensorrt-rtx", *ranges])
    command.wait_until(lambda: log.is_file() and "Compiler backend" in log.read_text())
    code, said = command.send(signal.SIGINT), command.said
    assert code == 130 and "Ctrl-C again stops at once" in said and "Traceback" not in said, said
    after = snapshot(place, "stderr.txt")
    assert after.pop("bundle/engines/tensorrt-rtx-fp32.log") and after == before
    Bundle.open(place / "bundle").verify()


def test_ctrl_c_in_a_benchmark_keeps_what_was_measured(place: Path) -> None:
    import json

    command = Command(place, [*BENCH, "--rounds", 1000])
    command.wait_until(lambda: "Warming up" in command.said)
    assert command.send(signal.SIGINT) == 130, command.said
    assert "Traceback" not in command.said
    if (place / "report.json").exists():  # interrupted before the first round there is nothing to keep
        assert json.loads((place / "report.json").read_text())["partial"] is True
    Bundle.open(place / "bundle").verify()
