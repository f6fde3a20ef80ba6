"""Each choice of INT8 by what the graph then answers, with it and without, on images that did not calibrate.

One group of layers at a time is in INT8: what its outputs are off by is its own doing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.quantization import PLAIN, calibrated, images, int8, with_offset_channels, with_outlier_channels
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.groups import QuantGroup, bias_of, find_groups
from vitdeploy.compiler.quantization.observers import activations
from vitdeploy.compiler.quantization.recipe import Recipe

FRESH = images(12, seed=9)


def outputs(model: ir.Model, nodes: list[str]) -> list[np.ndarray]:
    """What nodes give for the fresh images: (images * tokens, channels) each."""
    by_name = {node.name: node.outputs[0] for node in model.graph}
    found = list(activations(model, [by_name[name] for name in nodes], FRESH))
    return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]


def differences(bundle: Path, calibration: Calibration, name: str, target: str = "cpu") -> list[np.ndarray]:
    """What the outputs of each layer of a group are off by, (rows, channels), where it alone is in INT8."""
    exact = ir.load(bundle / "model.onnx")
    group = next(group for group in find_groups(exact) if group.name == name)
    places = [bias_of(product) for product in group.products]
    nodes = [place[0].name or "" for place in places if place is not None]
    assert len(nodes) == len(group.products)
    reference = outputs(exact, nodes)
    rounded = int8(bundle, calibration.leaving_out({*calibration.names} - {name}), target)
    return [here - there for here, there in zip(outputs(rounded, nodes), reference, strict=True)]


def noise(bundle: Path, calibration: Calibration, names: list[str]) -> np.ndarray:
    """The root mean square error of each group's outputs."""
    found = [np.concatenate(differences(bundle, calibration, name), axis=1) for name in names]
    return np.array([np.sqrt(np.mean(np.square(difference))) for difference in found])


def named(calibration: Calibration, end: str) -> list[str]:
    """The groups of that name, one of each of the three blocks."""
    found = [group.name for group in calibration.groups if group.name.endswith(end)]
    assert len(found) == 3
    return found


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_bias_correction_brings_the_mean_of_real_outputs_back(tiny_bundle: Path, target: str) -> None:
    clipped = replace(PLAIN, method="percentile", percentile=97.0)  # what is cut off is missing in the mean
    plain, corrected = (calibrated(tiny_bundle, replace(clipped, bias_correction=on)) for on in (False, True))
    for group in (*plain.groups[:4], plain.groups[-1]):  # one block, and the last product, which is shifted
        before, after = (differences(tiny_bundle, found, group.name, target) for found in (plain, corrected))
        for layer, (off, left) in enumerate(zip(before, after, strict=True)):
            # Fresh images have another mean, so that a part stays; with the wrong sign it were twice the whole.
            assert np.linalg.norm(left.mean(axis=0)) < 0.75 * np.linalg.norm(off.mean(axis=0)), (group.name, layer)


def test_a_shift_gives_a_one_sided_activation_all_levels(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(PLAIN, method="mse")
    shifted = calibrated(tiny_bundle, recipe)
    monkeypatch.setattr(QuantGroup, "can_shift", False)
    symmetric = calibrated(tiny_bundle, recipe)
    names = named(shifted, "fc2")
    assert all(group.shift > 0 for group in shifted.groups if group.name in names)
    assert not any(group.shift for group in symmetric.groups)
    # Half the step is half the noise of the activation; the weights' own stays.
    assert (noise(tiny_bundle, shifted, names) < 0.8 * noise(tiny_bundle, symmetric, names)).all()


def test_smoothing_moves_outlier_channels_into_the_weights(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_outlier_channels(tiny_bundle / "model.onnx", tmp_path / "model.onnx")
    monkeypatch.setattr(QuantGroup, "can_centre", False)
    plain, smooth = (calibrated(tmp_path, replace(PLAIN, smoothing=on)) for on in (False, True))
    names = named(plain, "fc1")  # what V is, the smoothing of its own readers has changed
    assert (noise(tmp_path, smooth, names) < 0.3 * noise(tmp_path, plain, names)).all()


def test_centring_takes_away_what_every_row_has(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_offset_channels(tiny_bundle / "model.onnx", tmp_path / "model.onnx")
    recipe = replace(PLAIN, smoothing=True)
    centred = calibrated(tmp_path, recipe)
    monkeypatch.setattr(QuantGroup, "can_centre", False)
    plain = calibrated(tmp_path, recipe)
    names = named(plain, "fc1")
    assert (noise(tmp_path, centred, names) < 0.5 * noise(tmp_path, plain, names)).all()


def test_a_clip_is_chosen_where_it_leaves_less_noise(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_outlier_channels(tiny_bundle / "model.onnx", tmp_path / "model.onnx")
    monkeypatch.setattr(QuantGroup, "can_shift", False)
    whole, clipped = (calibrated(tmp_path, replace(PLAIN, method=method)) for method in ("minmax", "mse"))
    clips = np.array([group.clip for group in clipped.groups[:4]])  # those of one block
    before, after = (noise(tmp_path, found, [group.name for group in found.groups[:4]]) for found in (whole, clipped))
    assert (after <= 1.02 * before).all(), "fresh images have a little more or less of it"
    assert (clips < 0.7).any() and (after[clips < 0.7] < 0.9 * before[clips < 0.7]).all()


def test_what_is_chosen_together_is_better_than_each_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    with_outlier_channels(tiny_bundle / "model.onnx", tmp_path / "model.onnx")
    names = named(calibrated(tmp_path, PLAIN), "fc1")
    everything = noise(tmp_path, calibrated(tmp_path, Recipe()), names)
    for alone in (PLAIN, replace(PLAIN, smoothing=True), replace(PLAIN, method="mse")):
        assert everything.mean() < noise(tmp_path, calibrated(tmp_path, alone), names).mean()
