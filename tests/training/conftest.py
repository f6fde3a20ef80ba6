"""What the tests of fine-tuning share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.training import FinetuneConfig, create_vit

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="package")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised ViT of 16 px: 5 tokens, so that a step takes milliseconds."""
    folder = tmp_path_factory.mktemp("scratch") / "vit"
    return create_vit(folder, labels=DIGITS, image_size=16, patch_size=8, hidden_size=48, layers=2, heads=4)


@pytest.fixture
def short(scratch: Path, tmp_path: Path) -> Callable[..., FinetuneConfig]:
    """`short("name", epochs=2)`: the settings of a run of a second or two that writes tmp_path/name."""

    def make(name: str = "out", **changes: Any) -> FinetuneConfig:
        usual: dict[str, Any] = {
            "model": scratch,
            "dataset": "digits",
            "output": tmp_path / name,
            "max_steps": 6,
            "limit_train": 120,
            "limit_test": 40,
            "batch_size": 20,
            "threads": 1,
        }
        return FinetuneConfig(**{**usual, **changes})

    return make


def weights_of(folder: Path) -> dict[str, Any]:
    """A checkpoint's weights as arrays."""
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")
