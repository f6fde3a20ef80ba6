"""`vitdeploy predict`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command_line import invoke
from tests.conftest import LABELS
from vitdeploy import load


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two images of different sizes, one of them with a name that rich would read as markup."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / "[red]cat.png", tmp_path / "dog.jpg"]
    for path, size in zip(paths, [(32, 32, 3), (40, 60, 3)], strict=True):
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(path)
    return paths


def test_table(tiny_bundle: Path, photos: list[Path]) -> None:
    outcome = invoke("predict", tiny_bundle, *photos, "--top-k", 2, "--threads", 1)
    assert outcome.exit_code == 0, outcome.stderr
    with load(tiny_bundle, threads=1) as classifier:
        expected = classifier.predict(photos, 2)
        used = f"{classifier.precision} on {classifier.backend}"
    for path, prediction in zip(photos, expected, strict=True):
        line = next(line for line in outcome.stdout.splitlines() if path.name in line)
        assert prediction.label in line
        assert f"{prediction.score:.1%}" in line
        assert prediction.top_k[1].label in outcome.stdout
    assert used in outcome.stdout
    rows = [line for line in outcome.stdout.splitlines() if "%" in line]
    assert len(rows) == 4
    assert outcome.stderr == ""


def test_json(tiny_bundle: Path, photos: list[Path]) -> None:
    options = ("--json", "--backend", "onnxruntime", "--precision", "fp32", "--threads", 1, "--top-k", 3)
    outcome = invoke("predict", tiny_bundle, *photos, *options)
    assert outcome.exit_code == 0
    data = json.loads(outcome.stdout)
    assert (data["backend"], data["precision"], data["errors"]) == ("onnxruntime", "fp32", [])
    assert [p["image"] for p in data["predictions"]] == [str(path) for path in photos]
    for prediction in data["predictions"]:
        assert prediction["label"] == LABELS[prediction["index"]] == prediction["top_k"][0]["label"]
        assert len(prediction["top_k"]) == 3


def test_a_bad_image_does_not_stop_the_others(tiny_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"oops")
    missing = tmp_path / "missing.png"
    arguments = ("predict", tiny_bundle, photos[0], bad, missing, photos[1], "--threads", 1)
    outcome = invoke(*arguments)
    assert outcome.exit_code == 1
    assert "cat.png" in outcome.stdout and "dog.jpg" in outcome.stdout
    assert str(bad) in outcome.stderr and str(missing) in outcome.stderr
    assert outcome.stderr.count("Error:") == outcome.stderr.count("Hint:") == 2
    assert "bad.png" not in outcome.stdout
    outcome = invoke(*arguments, "--json")
    assert outcome.exit_code == 1
    data = json.loads(outcome.stdout)
    assert len(data["predictions"]) == 2
    assert [error["image"] for error in data["errors"]] == [str(bad), str(missing)]


def test_only_bad_images(tiny_bundle: Path, tmp_path: Path) -> None:
    outcome = invoke("predict", tiny_bundle, tmp_path / "none.png", "--threads", 1)
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert "none.png" in outcome.stderr


def test_standard_input(tiny_bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads(invoke("predict", tiny_bundle, photos[1], "--json", "--threads", 1).stdout)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photos[1].read_bytes())))
    data = json.loads(invoke("predict", tiny_bundle, "-", "--json", "--threads", 1).stdout)
    assert data["predictions"][0]["top_k"] == expected["predictions"][0]["top_k"]
    assert data["predictions"][0]["image"] == "-"


def test_errors(tiny_bundle: Path, tmp_path: Path, photos: list[Path]) -> None:
    outcome = invoke("predict", tmp_path / "none", photos[0])
    assert outcome.exit_code == 1
    assert "no bundle" in outcome.stderr and "Hint:" in outcome.stderr
    outcome = invoke("predict", tiny_bundle, photos[0], "--backend", "tensorrt")
    assert outcome.exit_code == 1
    assert "no form for tensorrt" in outcome.stderr
    outcome = invoke("predict", tiny_bundle, photos[0], "--precision", "bf16", "--backend", "onnxruntime-tensorrt")
    assert outcome.exit_code == 1  # names that load knows are no wrong usage
    assert "Hint:" in outcome.stderr and "bf16" in outcome.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bundle"],
        ["bundle", "cat.png", "--top-k", "0"],
        ["bundle", "cat.png", "--threads", "0"],
        ["bundle", "cat.png", "--backend", "none"],
        ["bundle", "cat.png", "--precision", "int4"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    assert invoke("predict", *arguments).exit_code == 2


def test_help_has_an_example() -> None:
    outcome = invoke("predict", "--help")
    assert outcome.exit_code == 0
    assert "vitdeploy predict bundles/vit cat.png" in outcome.stdout
