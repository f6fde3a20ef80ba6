"""FP8's weights are rounded for the sake of the output: by a step at most, and the same from a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.quantization import error, images, logits
from vitdeploy.compiler.passes.values import constant
from vitdeploy.compiler.quantization.arithmetic import E4M3, INT8, Numbers, weight_scales
from vitdeploy.compiler.quantization.calibration import Calibration, calibrate
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.rounding import adaptive_steps, divided_columns, pack_steps, stepped, unpack_steps
from vitdeploy.compiler.quantization.schemes import FP8
from vitdeploy.core.errors import BundleError


def correlated(count: int, channels: int, generator: np.random.Generator) -> np.ndarray:
    """Rows in which a few directions are strong, as in activations."""
    directions = np.random.default_rng(5).normal(size=(channels // 4, channels)) / 4
    rows: np.ndarray = generator.normal(size=(count, channels // 4)) @ directions
    return (rows + 0.1 * generator.normal(size=rows.shape)).astype(np.float32)


def found(bundle: Path, recipe: Recipe, numbers: Numbers = E4M3) -> Calibration:
    pictures = images()
    return calibrate(bundle / "model.onnx", "hash", pictures, len(pictures), recipe, {}, numbers=numbers)


def test_a_step_is_the_next_number_there_is() -> None:
    every = np.sort(np.unique(np.arange(256, dtype=np.uint8).view(FP8.dtype()).astype(np.float32)))
    every = every[np.isfinite(every)]
    stored = every.astype(FP8.dtype())
    np.testing.assert_array_equal(stepped(stored[:-1], 1).astype(np.float32), every[1:])
    np.testing.assert_array_equal(stepped(stored[1:], -1).astype(np.float32), every[:-1])
    assert stepped(stored[-1:], 1).astype(np.float32) == 448 and stepped(stored[:1], -1).astype(np.float32) == -448


def test_the_error_of_the_output_shrinks_on_rows_that_were_not_seen() -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(96, 40)).astype(np.float32)
    scales = weight_scales(weight, E4M3)
    rows, others = correlated(2000, 96, generator), correlated(500, 96, generator)
    steps = adaptive_steps(weight, scales, rows.T @ rows / len(rows))
    nearest = FP8.store(weight, scales)

    def noise(stored: np.ndarray) -> float:
        return float(np.square(others @ (weight - stored.astype(np.float32) * scales)).mean())

    assert set(np.unique(steps)) == {-1, 0, 1} and steps.dtype == np.int8
    assert noise(stepped(nearest, steps)) < 0.5 * noise(nearest)
    # channels that are no part of any other can't take out what they leave: the nearest is the best
    alone = adaptive_steps(weight, scales, np.diag(generator.random(96) + 1))
    assert not alone.any()


def test_divided_columns_keep_their_numbers_also_where_a_scale_leaves_float16() -> None:
    generator = np.random.default_rng(2)
    weight = generator.normal(size=(64, 6)).astype(np.float32)
    scales = weight_scales(weight, E4M3)
    stored = FP8.store(weight, scales)
    by = np.array([1, 1e-3, 30, 100, 1e3, 3e4], np.float32)
    codes, smaller = divided_columns(stored, scales, by)
    assert (smaller.astype(np.float16) == smaller).all() and (smaller >= np.finfo(np.float16).tiny).all()
    exact = stored.astype(np.float32) * scales / by
    found = codes.astype(np.float32) * smaller
    # the scale is rounded to 11 bits, and below 2^-6 steps E4M3 numbers have fewer bits
    np.testing.assert_allclose(found, exact, rtol=2**-10, atol=float(smaller.max()) * 2**-9)
    np.testing.assert_array_equal(codes[:, :3].astype(np.float32), stored[:, :3].astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (5, 5), (48, 192)])
def test_steps_come_back_from_their_text(shape: tuple[int, int]) -> None:
    steps = np.random.default_rng(1).integers(-1, 2, shape).astype(np.int8)
    back = unpack_steps(pack_steps(steps))
    np.testing.assert_array_equal(back[: steps.size].reshape(shape), steps)
    assert not back[steps.size :].any() and len(back) - steps.size < 5


@pytest.mark.parametrize("text", ["/w==", "*", "8w=="])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack_steps(text)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(attention=True), Recipe(smoothing=False)])
def test_a_graph_has_the_weights_that_were_chosen(tiny_bundle: Path, recipe: Recipe) -> None:
    """Also those of Q, K and V, whose columns are divided after they were chosen."""
    calibration = found(tiny_bundle, recipe)
    nearest = replace(calibration, groups=tuple(replace(group, steps={}) for group in calibration.groups))
    weights = []
    for chosen in (calibration, nearest):
        model = ir.load(tiny_bundle / "model.onnx")
        quantize(model, chosen, scheme=FP8)
        values = {name: constant(value) for name, value in model.graph.initializers.items()}
        weights.append({name: values[name] for name in values if name.endswith(".weight_e4m3")})
    steps = {f"{layer}.weight_e4m3": array for group in calibration.groups for layer, array in group.steps.items()}
    assert steps.keys() == weights[0].keys() == weights[1].keys() and len(steps) == 18
    for name, expected in steps.items():
        # the nearest of a divided column may be another one, since its scale is rounded to float16 again
        same = weights[0][name].view(np.uint8) == stepped(weights[1][name], expected).view(np.uint8)
        assert same.mean() > 0.97, name
        assert 0.05 < np.abs(expected).mean() < 0.6


def test_it_makes_the_error_of_the_logits_smaller(tiny_bundle: Path, tmp_path: Path) -> None:
    exact = logits(tiny_bundle / "model.onnx", tmp_path, images(16, seed=1))

    def noise(recipe: Recipe) -> float:
        model = ir.load(tiny_bundle / "model.onnx")
        quantize(model, found(tiny_bundle, recipe), scheme=FP8)
        return error(logits(model, tmp_path, images(16, seed=1)), exact)

    assert noise(Recipe()) < noise(Recipe(adaptive_rounding=False))


def test_int8_is_rounded_to_the_nearest(tiny_bundle: Path) -> None:
    calibration = found(tiny_bundle, Recipe(), INT8)
    assert not any(group.steps for group in calibration.groups)
    assert all("steps" not in group for group in json.loads(calibration.dumps())["groups"])


def test_steps_of_another_layer_are_refused(tiny_bundle: Path) -> None:
    calibration = found(tiny_bundle, Recipe())
    first = calibration.groups[0]
    wrong = {layer: steps[:-1] for layer, steps in first.steps.items()}
    model = ir.load(tiny_bundle / "model.onnx")
    with pytest.raises(BundleError, match="weights of"):
        quantize(model, replace(calibration, groups=(replace(first, steps=wrong), *calibration.groups[1:])), scheme=FP8)
