"""A simulated GPU, and the folder of its compiled kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.simulated_gpu import GPU, Here
from vitdeploy.backends.tensorrt import runner


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()
    monkeypatch.setattr(runner, "require", here.require)
    monkeypatch.setattr(runner, "gpus", lambda: (GPU,))
    return here


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which compiled kernels are kept."""
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensorrt-rtx"
