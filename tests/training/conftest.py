"""What the tests of fine-tuning share."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.training import DIGITS, short_run
from vitdeploy.training import FinetuneConfig, FinetuneResult, create_vit, finetune


@pytest.fixture(autouse=True)
def set_aside() -> None:
    """The Trainer looks for garbage after each run; what the libraries hold would be a quarter of its time. Again for
    each test: an export or a benchmark gives it back."""
    gc.freeze()


@pytest.fixture(scope="package")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised ViT of 16 px: 5 tokens, so that a step takes milliseconds."""
    folder = tmp_path_factory.mktemp("scratch") / "vit"
    return create_vit(folder, labels=DIGITS, image_size=16, patch_size=8, hidden_size=48, layers=2, heads=4)


@pytest.fixture
def short(scratch: Path, tmp_path: Path) -> Callable[..., FinetuneConfig]:
    """`short("name", epochs=2)`: the settings of a run of a second or two that writes tmp_path/name."""
    return lambda name="out", **changes: short_run(scratch, tmp_path / name, **changes)


@pytest.fixture(scope="package")
def whole(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, FinetuneResult]]:
    """`whole(max_steps=14)`: folder and result of a finished run with those settings. Read-only: made once."""
    made: dict[str, tuple[Path, FinetuneResult]] = {}
    root = tmp_path_factory.mktemp("whole")

    def run(**changes: Any) -> tuple[Path, FinetuneResult]:
        key = repr(sorted(changes.items()))
        if key not in made:
            folder = root / str(len(made))
            made[key] = folder, finetune(short_run(scratch, folder, **changes))
        return made[key]

    return run
