"""Fine-tuning on a GPU: mixed precision by device, worker processes, torch.compile, no FSDP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.on_gpu import can_compile
from vitdeploy.training import FinetuneConfig, create_vit, finetune
from vitdeploy.training.objective import CrossEntropy

pytestmark = pytest.mark.gpu
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch") / "vit"
    return create_vit(folder, labels=DIGITS, image_size=16, patch_size=8, hidden_size=48, layers=2, heads=4)


def settings(scratch: Path, output: Path, **changes: Any) -> FinetuneConfig:
    usual: dict[str, Any] = {"epochs": 8, "batch_size": 32, "learning_rate": 3e-3, "workers": 2}
    return FinetuneConfig(scratch, "digits", output, **{**usual, **changes})


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_learns_in_each_precision(precision: str, scratch: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.numpy import load_file

    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")

    class OnTheGpu(CrossEntropy):
        def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
            assert batch["pixel_values"].is_cuda
            return super().__call__(module, batch)

    result = finetune(settings(scratch, tmp_path / "out", precision=precision), objective=OnTheGpu())
    assert result.test_accuracy > 0.6  # chance is 10 %
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}


@pytest.mark.skipif(not can_compile(), reason="torch.compile needs gcc or clang and Python's headers (python3-dev)")
def test_compiled(scratch: Path, tmp_path: Path) -> None:
    assert finetune(settings(scratch, tmp_path / "out", compile=True)).test_accuracy > 0.6


def test_fsdp_is_refused(scratch: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--use_fsdp"]
    command += ["-m", "vitdeploy", "finetune", str(scratch), "--dataset", "digits", "--output", str(tmp_path / "out")]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert done.returncode != 0 and "FSDP is not supported" in done.stderr, done.stderr[-4000:]
