"""The short examples: they do what they say, and are as short as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.running import code_lines, run
from tests.tools.tiny import LABELS
from vitdeploy import load


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def test_classify(tiny_bundle: Path, photo: Path) -> None:
    done = run("classify.py", tiny_bundle, photo, photo.with_name("none.png"))
    assert done.returncode == 1
    good, bad = done.stdout.splitlines()
    name, label, score = good.split("\t")
    with load(tiny_bundle) as classifier:
        expected = classifier.predict(photo)
    assert (name, label, float(score)) == (str(photo), expected.label, pytest.approx(expected.score, abs=1e-3))
    assert "none.png" in bad
    assert run("classify.py", tiny_bundle, photo).returncode == 0


def test_usage() -> None:
    done = run("classify.py")
    assert done.returncode == 1
    assert "usage" in done.stderr


def test_without_vitdeploy(tiny_bundle: Path, photo: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = run("plain_onnxruntime.py", tiny_bundle / "model.onnx", photo)
    assert done.returncode == 0, done.stderr
    with load(tiny_bundle, "onnxruntime", "fp32") as classifier:
        expected = classifier.predict(photo, 5)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [LABELS[int(index)] for index, _ in lines] == [score.label for score in expected.top_k]
    np.testing.assert_allclose([float(s) for _, s in lines], [score.score for score in expected.top_k], atol=2e-6)


def test_they_are_short() -> None:
    assert len(code_lines("classify.py")) <= 16
    assert len(code_lines("plain_onnxruntime.py")) <= 23
    assert "vitdeploy" not in "".join(code_lines("plain_onnxruntime.py"))
