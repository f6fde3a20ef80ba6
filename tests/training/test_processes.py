"""Two processes on one machine (gloo): the result of one process at the same global batch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.training import weights_of
from vitdeploy.core import progress
from vitdeploy.training import FinetuneConfig, create_vit, finetune

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
# --multi_gpu starts as many processes where there is no GPU too; --cpu starts one, whatever --num_processes says
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
# 400 images in global batches of 20, whole ones only; 101 test images, which two processes can't share evenly
SETTINGS: dict[str, Any] = {"dataset": "digits", "limit_train": 440, "validation": 40, "limit_test": 101, "threads": 1}
LEARNING: dict[str, Any] = {"max_steps": 30, "learning_rate": 3e-3, "augment": "shift", "label_smoothing": 0.1}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(launcher: list[str], model: Path, output: Path, *more: object) -> subprocess.Popen[str]:
    port = free_port()
    head = (
        [*launcher, port] if launcher is TORCHRUN else [*launcher, "--main_process_port", port, "--mixed_precision=no"]
    )
    return begin([*head, "-m", "vitdeploy"], model, output, *more)


def begin(head: list[str], model: Path, output: Path, *more: object, **variables: str) -> subprocess.Popen[str]:
    options = {**SETTINGS, **LEARNING, "batch_size": 10}
    flat = [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    return subprocess.Popen(
        [sys.executable, "-m", *head, "finetune", str(model), "--output", str(output), *flat, *map(str, more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables},
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def agree(output: Path, alone: Path) -> None:
    """To rounding: sums over two halves of a batch are added in another order, and Adam divides by small numbers."""
    for name in ("train", "validation"):
        curves = [json.loads((folder / "training_curve.json").read_text())[name] for folder in (output, alone)]
        assert [point["step"] for point in curves[0]] == [point["step"] for point in curves[1]]
        for key in curves[0][0]:
            left, right = ([point[key] for point in curve] for curve in curves)
            np.testing.assert_allclose(left, right, atol=2e-4, err_msg=key)
    left, right = (json.loads((folder / "all_results.json").read_text()) for folder in (output, alone))
    assert left["test_samples"] == right["test_samples"] == 101
    assert left["test_loss"] == pytest.approx(right["test_loss"], abs=2e-4)
    assert left["test_accuracy"] == pytest.approx(right["test_accuracy"], abs=1.01 / 101)
    counts = [json.loads((folder / "confusion_matrix.json").read_text())["counts"] for folder in (output, alone)]
    assert np.sum(counts[0]) == np.sum(counts[1]) == 101
    weights = [weights_of(folder) for folder in (output, alone)]
    for name in weights[0]:
        # a key's bias has no influence (softmax is invariant to it): its gradient is rounding, which Adam makes large
        if "key.bias" not in name and "k_proj.bias" not in name:
            np.testing.assert_allclose(weights[0][name], weights[1][name], atol=2e-3, err_msg=name)


@pytest.fixture(scope="module")
def alone(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "run"
    finetune(FinetuneConfig(model=scratch, output=output, batch_size=20, **SETTINGS, **LEARNING))
    return output


def test_torchrun_gives_what_one_process_gives(scratch: Path, alone: Path, tmp_path: Path) -> None:
    process = launch(TORCHRUN, scratch, tmp_path / "two")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("test accuracy") == 1  # one process speaks
    agree(tmp_path / "two", alone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in alone.iterdir()}


def test_no_thread_of_the_group_outlives_the_run(scratch: Path, tmp_path: Path) -> None:
    """One that lets go of a tensor while Python ends aborts the process: exit code -6, now and then."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys\n"
        "from vitdeploy.cli.app import run\n"
        "assert run(sys.argv[1:]) == 0\n"
        "names = [open(f'/proc/self/task/{task}/comm').read() for task in os.listdir('/proc/self/task')]\n"
        "print('left behind:', [name.strip() for name in names if 'gloo' in name])\n"
    )
    process = begin([*TORCHRUN, free_port(), str(script)], scratch, tmp_path / "two", "--max-steps", "3")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("left behind: []") == 2, said


def test_negative_twin_half_the_batch_is_another_run(scratch: Path, alone: Path, tmp_path: Path) -> None:
    finetune(FinetuneConfig(model=scratch, output=tmp_path / "half", batch_size=10, **SETTINGS, **LEARNING))
    with pytest.raises(AssertionError):
        agree(tmp_path / "half", alone)


@pytest.mark.full
def test_accelerate_launch_killed_and_resumed(scratch: Path, alone: Path, tmp_path: Path) -> None:
    work = tmp_path / "two.training"
    process = launch(ACCELERATE, scratch, tmp_path / "two")
    deadline = time.monotonic() + 300
    while not list(work.glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    for pid in (process.pid, *children(process.pid)):  # the launcher's processes have sessions of their own
        os.kill(pid, signal.SIGKILL)
    process.wait()
    again = launch(ACCELERATE, scratch, tmp_path / "two", "--resume")
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    agree(tmp_path / "two", alone)
    assert json.loads((tmp_path / "two" / "finetune.json").read_text())["resumed_from"]


@pytest.mark.full
def test_mpirun_is_understood(scratch: Path, alone: Path, tmp_path: Path) -> None:
    """What Open MPI sets for two processes; accelerate launch --cpu uses mpirun for more than one."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMPI_COMM_WORLD_SIZE": "2"}
    names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    both = [
        begin(["vitdeploy"], scratch, tmp_path / "two", **common, **dict.fromkeys(names, rank)) for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "test accuracy" in said[0] and "test accuracy" not in said[1]
    agree(tmp_path / "two", alone)


def test_accelerates_single_process_is_not_silent(
    short: Callable[..., FinetuneConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate launch --cpu --num_processes 2 starts one process, and says nothing."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    notes: list[str] = []
    monkeypatch.setattr(progress, "note", notes.append)
    finetune(short(max_steps=1))
    assert any("started one process only" in note and "torchrun" in note for note in notes)


@pytest.mark.full
def test_linear_probe_of_two_processes(tmp_path: Path) -> None:
    labels = [str(digit) for digit in range(10)]
    shape: dict[str, Any] = {"image_size": 16, "patch_size": 8, "hidden_size": 48, "layers": 2, "heads": 4}
    model = create_vit(tmp_path / "vit", labels=labels, **shape)
    process = launch(TORCHRUN, model, tmp_path / "two", "--linear-probe", "--augment", "none")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    settings = {**SETTINGS, **LEARNING, "augment": "none", "linear_probe": True, "batch_size": 20}
    finetune(FinetuneConfig(model=model, output=tmp_path / "one", **settings))
    agree(tmp_path / "two", tmp_path / "one")
    shutil.rmtree(tmp_path / "two")
