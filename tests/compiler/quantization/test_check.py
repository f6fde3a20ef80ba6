"""A calibration is checked on images that had no part in it: what black frames left is refused, or kept by force."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.quantization.calibration import Calibration, calibrate
from vitdeploy.compiler.quantization.check import CalibrationCheck, check_calibration
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.schemes import INT8_UNSIGNED
from vitdeploy.compiler.samples import dead_leaves
from vitdeploy.core import progress
from vitdeploy.data import load_dataset
from vitdeploy.evaluation.batches import answers_of, open_session

BLACK = np.zeros((32, 32, 3), np.uint8)


def folder(path: Path, pictures: list[np.ndarray]) -> Path:
    from PIL import Image

    path.mkdir()
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(path / f"{number}.png")
    return path


def stored(bundle: Path) -> dict[str, Any]:
    artifact = Bundle.open(bundle).find(kind="calibration")
    assert artifact is not None
    return dict(artifact.built_with["check"])


@pytest.mark.parametrize("target", ["onnx", "tensorrt-rtx"])
def test_black_images_are_refused_for_every_target(
    cli: Callable[..., Any], tiny_bundle_copy: Path, tmp_path: Path, target: str
) -> None:
    if target != "onnx":
        pytest.importorskip("tensorrt_rtx")
    before = {path.name: path.read_bytes() for path in tiny_bundle_copy.iterdir() if path.is_file()}
    black = folder(tmp_path / "black", [BLACK] * 8)
    done = cli("build-engine", tiny_bundle_copy, "--int8", "--calibration-data", black, "--target", target)
    assert done.exit_code == 1 and "can't be relied on: its images exercise too little of the model" in done.stderr
    assert "--force" in done.stderr and ".attention." in done.stderr, "the way out, and the layer"
    assert before == {path.name: path.read_bytes() for path in tiny_bundle_copy.iterdir() if path.is_file()}


def test_a_forced_calibration_is_called_that_for_ever(
    cli: Callable[..., Any], tiny_bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(progress, "note", notes.append)
    black = folder(tmp_path / "black", [BLACK] * 8)
    arguments = ("build-engine", tiny_bundle_copy, "--int8", "--target", "onnx")
    assert cli(*arguments, "--calibration-data", black, "--force").exit_code == 0
    assert any("is kept since it was forced, but its images exercise too little" in note for note in notes)
    check = stored(tiny_bundle_copy)
    assert (
        check["forced"] and check["clipped"] > check["bounds"]["clipped"] and "exercise too little" in check["problem"]
    )
    for again in (arguments, (*arguments, "--calibration-data", black)):
        notes.clear()
        assert cli(*again).exit_code == 0
        assert any("this calibration was forced: its images exercise too little" in note for note in notes)
    shown = cli("inspect", tiny_bundle_copy)
    assert "FORCED, although its images exercise" in " ".join(shown.stdout.split())
    assert json.loads(cli("inspect", tiny_bundle_copy, "--json").stdout)["calibration"]["check"] == check


def test_sound_images_pass_and_the_numbers_are_kept(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    drawn = folder(tmp_path / "drawn", [dead_leaves(48, 40, generator) for _ in range(24)])
    build(tiny_bundle_copy, ["int8"], target="onnx", recipe=Recipe(str(drawn), count=16))
    check = stored(tiny_bundle_copy)
    assert check["problem"] is None and not check["forced"]
    assert check["others"] == 3 and check["agreement"] is not None, "19 of 24 are for training, 16 of them calibrated"
    assert check["clipped"] < 0.2 and check["drawn_db"] > 10


def test_a_recipe_that_cuts_too_much_off_fails_on_other_images_of_the_data(tiny_bundle: Path) -> None:
    path = tiny_bundle / "model.onnx"
    recipe = Recipe("digits", count=16, method="percentile", percentile=51, smoothing=False, bias_correction=False)
    train = load_dataset("digits", "train", limit=48)
    layers = QuantLayers.find_in_file(path, recipe)
    calibration = calibrate(path, "", (train.image(index) for index in range(16)), 16, recipe, {}, layers)
    found = check_calibration(path, calibration, layers, (32, 32), train.subset(range(16, 48)))
    assert found.others == 32 and found.others_db is not None and found.others_db < 5
    assert found.problem is not None


@pytest.mark.parametrize(
    ("check", "fails"),
    [
        (CalibrationCheck(0.48, "o_proj", 1.9), True),  # noise, and a ViT-S for CIFAR-10: FP32's class for 61 %
        (CalibrationCheck(0.48, "o_proj", 7.4), False),  # one digit, and the ViT of the demo: 100 %
        (CalibrationCheck(0.22, "o_proj", 1.4), False),  # one photograph, and the ViT-S: 92 %
        (CalibrationCheck(0.10, "o_proj", 20.0, 32, 2.0, 0.60), True),
        (CalibrationCheck(0.10, "o_proj", 20.0, 32, 2.0, 0.90), False),
        (CalibrationCheck(0.10, "o_proj", 20.0, 32, 9.0, 0.60), False),  # near ties: other classes, the same logits
    ],
)
def test_cause_and_damage_must_both_show(check: CalibrationCheck, fails: bool) -> None:
    assert (check.problem is not None) == fails


@pytest.mark.full
def test_the_check_tells_good_calibrations_from_bad_ones_by_what_they_are_worth(
    test_data: Path, tmp_path: Path
) -> None:
    """On the shared ViT: refused exactly where INT8 has another best class than FP32 for a quarter of real images."""
    import onnx_ir as ir

    export(test_data / "models" / "vit-small-patch14-112-cifar10", tmp_path / "bundle")
    path = tmp_path / "bundle" / "model.onnx"
    layers = QuantLayers.find_in_file(path, Recipe())
    train = load_dataset(test_data / "cifar10", "train", limit=40)
    test = load_dataset(test_data / "cifar10", "test", limit=200)
    reference = answers_of(open_session(path), test).argmax(axis=1)
    photos, generator = [train.image(index) for index in range(8)], np.random.default_rng(0)
    kinds = {
        "one photograph": photos[:1],
        "eight": photos,
        "eight in grey": [np.repeat(p.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8) for p in photos],
        "eight of low contrast": [(96 + 0.3 * p).astype(np.uint8) for p in photos],
        "black": [BLACK] * 8,
        "white": [BLACK + np.uint8(255)] * 8,
        "noise": list(generator.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)),
    }
    for name, pictures in kinds.items():
        calibration: Calibration = calibrate(path, "", pictures, len(pictures), Recipe(), {}, layers)
        form = ir.load(path)
        quantize(form, calibration, scheme=INT8_UNSIGNED, layers=layers)
        worth = float((answers_of(open_session(form), test).argmax(axis=1) == reference).mean())
        found = check_calibration(path, calibration, layers, (112, 112))
        assert (found.problem is None) == (worth > 0.75), f"{name}: agreement {worth:.1%}, {found}"


def test_what_is_drawn_is_the_same_everywhere_and_has_edges_of_all_scales() -> None:
    first, again = (dead_leaves(64, 48, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, again) and first.shape == (64, 48, 3) and first.dtype == np.uint8
    assert first.std() > 20
