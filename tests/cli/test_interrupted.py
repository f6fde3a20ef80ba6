"""A full disk and Ctrl-C in each command that writes: a clear message, and everything from before still there."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vitdeploy.bundle import Bundle

Ready = Callable[[Path, str], bool]


def start(folder: Path, arguments: list[object], file_limit: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
        if file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    return subprocess.Popen(
        [sys.executable, "-m", "vitdeploy", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr.txt").open("w"),
        text=True,
        preexec_fn=limit,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"},
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    skipped = (".lock", "stderr.txt")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in skipped
    }


@pytest.fixture
def place(tiny_checkpoint: Path, tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> Path:
    """A folder with a checkpoint, images, and a bundle that was there before."""
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    shutil.copytree(tiny_images, tmp_path / "images")
    return tmp_path


EXPORT = ["export", "checkpoint", "--output", "bundle", "--overwrite"]
BUILD = ["build-engine", "bundle", "--fp16", "--int8", "--calibration-data", "./images", "--target", "onnx", "--force"]
BENCH = ["bench", "bundle", "--dataset", "./images", "--split", "all", "--rounds", "1000", "--json", "report.json"]
DEMO = ["demo", "--output", "demo"]
SHORT_BENCH = ["bench", "bundle", "--dataset", "./images", "--split", "all", "--rounds", "10", "--json", "report.json"]


@pytest.mark.parametrize("arguments", [EXPORT, BUILD, SHORT_BENCH, DEMO], ids=lambda arguments: str(arguments[0]))
def test_a_full_disk_loses_nothing(arguments: list[str], place: Path) -> None:
    before = snapshot(place)
    process = start(place, arguments, file_limit=4096)
    process.communicate(timeout=240)
    said = (place / "stderr.txt").read_text()
    assert "Traceback" not in said
    assert process.returncode == 1 and "no space left on the disk" in said and "Hint:" in said, said
    assert snapshot(place) == before
    Bundle.open(place / "bundle").verify()


def _said(text: str) -> Ready:
    return lambda folder, said: text in said


def _there(pattern: str) -> Ready:
    return lambda folder, said: any(folder.glob(pattern))


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
    before = snapshot(place)
    process = start(place, arguments)
    interrupt(process, place, ready)
    assert process.returncode == 130, (place / "stderr.txt").read_text()
    said = (place / "stderr.txt").read_text()
    assert "Interrupted" in said and "Traceback" not in said
    assert snapshot(place) == before
    Bundle.open(place / "bundle").verify()


def test_ctrl_c_in_an_engine_build_leaves_the_log_alone(place: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    before = snapshot(place)
    log = place / "bundle" / "engines" / "tensorrt-rtx-fp32.log"
    ranges = ["--batch", "1:1:8,1:2:4,1:4:4", "--image-size", "8:32:512"]  # three profiles, so that it takes a while
    process = start(place, ["build-engine", "bundle", "--fp32", "--target", "tensorrt-rtx", *ranges])
    interrupt(process, place, lambda folder, said: log.is_file() and "Compiler backend" in log.read_text())
    said = (place / "stderr.txt").read_text()
    assert process.returncode == 130 and "Ctrl-C again stops at once" in said and "Traceback" not in said, said
    after = snapshot(place)
    assert after.pop("bundle/engines/tensorrt-rtx-fp32.log") and after == before
    Bundle.open(place / "bundle").verify()


def test_ctrl_c_in_a_benchmark_keeps_what_was_measured(place: Path) -> None:
    import json

    process = start(place, BENCH)
    interrupt(process, place, _said("Warming up"))
    assert process.returncode == 130, (place / "stderr.txt").read_text()
    assert "Traceback" not in (place / "stderr.txt").read_text()
    if (place / "report.json").exists():  # interrupted before the first round there is nothing to keep
        assert json.loads((place / "report.json").read_text())["partial"] is True
    Bundle.open(place / "bundle").verify()


def interrupt(process: subprocess.Popen[str], folder: Path, ready: Ready) -> None:
    """Send SIGINT once the command is where it shall be hit, and wait for its end."""
    deadline = time.monotonic() + 120
    while not ready(folder, (folder / "stderr.txt").read_text()):
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline, (folder / "stderr.txt").read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
