"""examples/classify.py does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import LABELS

EXAMPLE = Path(__file__).parents[2] / "examples" / "classify.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_classify(tiny_bundle: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    done = run(tiny_bundle, tmp_path / "photo.png", tmp_path / "none.png")
    assert done.returncode == 1
    name, label, score = done.stdout.strip().split("\t")
    assert name == str(tmp_path / "photo.png")
    assert label in LABELS
    assert 0 < float(score) <= 1
    assert "none.png" in done.stderr
    assert run(tiny_bundle, tmp_path / "photo.png").returncode == 0


def test_usage() -> None:
    done = run()
    assert done.returncode == 1
    assert "usage" in done.stderr
