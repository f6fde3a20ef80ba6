"""What the tests of fine-tuning share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitdeploy.training import FinetuneConfig

DIGITS = [str(digit) for digit in range(10)]


def short_run(model: Path, output: Path, /, **changes: Any) -> FinetuneConfig:
    """The settings of a run of a second or two."""
    usual: dict[str, Any] = {
        "model": model,
        "dataset": "digits",
        "output": output,
        "max_steps": 4,
        "limit_train": 120,
        "limit_test": 40,
        "batch_size": 20,
        "threads": 1,
    }
    return FinetuneConfig(**{**usual, **changes})


def weights_of(folder: Path) -> dict[str, Any]:
    """A checkpoint's weights as arrays."""
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")
