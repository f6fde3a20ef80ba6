"""Calibration keeps what matters, and its cache rebuilds INT8 bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.quantization import (
    PLAIN,
    calibrated,
    error,
    images,
    int8,
    logits,
    with_outlier_channels,
)
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.float16.cast import to_half
from vitdeploy.compiler.passes.values import constant
from vitdeploy.compiler.quantization.calibration import Calibration, fake_quantize, weight_scales
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.core.errors import BundleError, InputError, ModelError


def test_int8_stays_close_and_smoothing_pays_where_there_are_outliers(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "outliers"
    folder.mkdir()
    with_outlier_channels(tiny_bundle / "model.onnx", folder / "model.onnx")
    fresh = images(64, seed=9)
    reference = logits(tiny_bundle / "model.onnx", tmp_path, fresh)
    same = logits(folder / "model.onnx", tmp_path, fresh)
    np.testing.assert_allclose(same, reference, atol=1e-4)  # the rescaling left FP32 as it was
    ours = error(logits(int8(folder, calibrated(folder, Recipe())), tmp_path, fresh), reference)
    naive = error(logits(int8(folder, calibrated(folder, PLAIN)), tmp_path, fresh), reference)
    assert ours < 0.08, "8 bits a layer leave a few per cent of the logits' spread"
    assert naive > 3 * ours, "min-max must lose here, or the model has no outliers and the test shows nothing"


def test_bias_correction_lowers_the_error(tiny_bundle: Path) -> None:
    plain, corrected = (calibrated(tiny_bundle, replace(PLAIN, bias_correction=on)) for on in (False, True))
    for before, after in zip(plain.groups, corrected.groups, strict=True):
        assert after.sqnr_db >= before.sqnr_db
        assert not before.bias and after.bias


def test_each_method_chooses_its_own_range(tiny_bundle: Path) -> None:
    clips = {
        method: [group.clip for group in calibrated(tiny_bundle, replace(PLAIN, method=method, percentile=99.0)).groups]
        for method in ("minmax", "percentile", "mse")
    }
    assert set(clips["minmax"]) == {1.0}
    assert all(clip < 1 for clip in clips["percentile"])
    assert clips["mse"] != clips["minmax"]


def test_the_cache_rebuilds_int8_bit_for_bit(tiny_bundle: Path, tmp_path: Path) -> None:
    calibration = calibrated(tiny_bundle, Recipe())
    (tmp_path / "calibration.json").write_text(calibration.dumps())
    again = Calibration.load(tmp_path / "calibration.json", "hash")
    assert ir.to_proto(int8(tiny_bundle, again)) == ir.to_proto(int8(tiny_bundle, calibration))


def test_the_cache_of_another_model_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(calibrated(tiny_bundle, PLAIN).dumps())
    with pytest.raises(BundleError, match="made for another model"):
        Calibration.load(tmp_path / "calibration.json", "another hash")


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(BundleError, match="can't be read"):
        Calibration.load(tmp_path / "calibration.json", "hash")


def test_both_spellings_hold_the_same_integers_and_give_the_same_logits(tiny_bundle: Path, tmp_path: Path) -> None:
    calibration = calibrated(tiny_bundle, Recipe())
    assert any(group.shift for group in calibration.groups), "GELU's output is one-sided, so it is shifted"
    signed, unsigned = int8(tiny_bundle, calibration, "tensorrt"), int8(tiny_bundle, calibration, "cpu")
    weights = [name for name in signed.graph.initializers if name.endswith("weight_int8")]
    assert len(weights) == 18
    for name in weights:
        value, other = (constant(model.graph.initializers[name]) for model in (signed, unsigned))
        assert value is not None
        np.testing.assert_array_equal(value, other)
    fresh = images(16, seed=5)
    # The same real numbers, summed in another order, and a step of GELU's output that FP16 can hold, up to 2**-11 of it
    # larger or smaller: now and then an activation rounds to the next of its 256 steps.
    assert error(logits(signed, tmp_path, fresh), logits(unsigned, tmp_path, fresh)) < 0.02


def test_the_tensorrt_form_is_symmetric_int8_in_half_precision(tiny_bundle: Path) -> None:
    model = ir.load(tiny_bundle / "model.int8.onnx")
    pairs = [node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 12 * 2 + 18  # Q and DQ of 12 activations, DQ of 18 weights
    for node in pairs:
        scale, zero = node.inputs[1], node.inputs[2]
        assert scale is not None and scale.dtype == ir.DataType.FLOAT16
        assert zero is not None and zero.const_value is not None and zero.dtype == ir.DataType.INT8
        assert not zero.const_value.numpy().any()
    assert not [node for node in pairs if any(use.node.op_type == "Add" for use in node.outputs[0].uses())]


def test_a_calibration_of_other_layers_is_refused(tiny_bundle: Path) -> None:
    calibration = calibrated(tiny_bundle, PLAIN)
    renamed = replace(calibration, groups=(replace(calibration.groups[0], name="elsewhere"),))
    with pytest.raises(BundleError, match="a layer 'elsewhere' that the graph has not"):
        int8(tiny_bundle, renamed)


def test_no_images_and_no_layers_are_errors(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no calibration images"):
        calibrated(tiny_bundle, PLAIN, pictures=[])
    empty = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n] image) => (float[n] logits) { logits = Neg (image) }'
    )
    ir.save(empty, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="nothing to quantise"):
        calibrated(tmp_path, PLAIN)


def test_weights_lose_at_most_half_a_step() -> None:
    columns = np.logspace(-3, 1, 8, dtype=np.float32)
    weight = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32) * columns
    scales = weight_scales(weight)
    assert (scales == scales.astype(np.float16)).all()
    # Half a step, and what rounding the scale to 11 bits adds at the ends of the range: 127 * 2**-11 steps.
    assert (np.abs(fake_quantize(weight, scales) - weight) <= (0.5 + 127 / 2048) * scales).all()


def test_the_bundle_records_the_images_and_the_recipe(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    data = json.loads((tiny_bundle / "calibration.json").read_text())
    assert data["images"]["count"] == 24 and data["images"]["fingerprint"]
    assert data["recipe"]["count"] == 24
    cache, forms = bundle.find(kind="calibration"), bundle.select(kind="onnx", precision="int8")
    assert cache is not None
    assert [form.built_with["calibration_sha256"] for form in forms] == [cache.sha256] * 2


def test_half_precision_after_quantisation_keeps_the_integers(tiny_bundle: Path, tmp_path: Path) -> None:
    model = int8(tiny_bundle, calibrated(tiny_bundle, Recipe()), "tensorrt")
    fresh = images(16, seed=5)
    single = logits(model, tmp_path, fresh)
    to_half(model)
    # FP16 between the products: a thousandth of the logits' spread, and now and then one step of an activation more.
    # ONNX Runtime 1.32 has 0.02 here, 1.22 has 0.04.
    assert error(logits(model, tmp_path, fresh), single) < 0.05


def test_attention_patches_and_classifier_join_when_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    from vitdeploy.compiler.lint.structure import check_structure

    recipe = Recipe(attention=True, patch_embedding=True, classifier=True)
    calibration = calibrated(tiny_bundle, recipe)
    names = calibration.names
    assert "vit.embeddings.patch_embeddings.projection" in names and "classifier" in names
    assert sum(name.endswith("attention.products") for name in names) == 3
    signed, unsigned = int8(tiny_bundle, calibration, "tensorrt"), int8(tiny_bundle, calibration, "cpu")
    fresh = images(64, seed=5)
    reference = logits(tiny_bundle / "model.onnx", tmp_path, fresh)
    # The softmax's output has twice as many steps in one of them, and is the coarsest of all activations.
    assert error(logits(signed, tmp_path, fresh), logits(unsigned, tmp_path, fresh)) < 0.05
    assert error(logits(unsigned, tmp_path, fresh), reference) < 0.1
    to_half(signed)
    structure = check_structure(signed)
    assert structure.share == 1 and not structure.problems()


def test_balancing_queries_against_keys_changes_nothing_in_single_precision(tiny_bundle: Path, tmp_path: Path) -> None:
    calibration = calibrated(tiny_bundle, Recipe(attention=True, bias_correction=False))
    vector = np.random.default_rng(0).uniform(0.2, 5, 48).astype(np.float32)
    calibration = replace(
        calibration, attention=tuple(replace(found, balance=vector) for found in calibration.attention)
    )
    fresh = images(8, seed=5)
    rescaled = logits(int8(tiny_bundle, calibration.leaving_out(calibration.names)), tmp_path, fresh)
    reference = logits(tiny_bundle / "model.onnx", tmp_path, fresh)
    np.testing.assert_allclose(rescaled, reference, atol=1e-4)  # the order of float32 sums is all that differs


def test_what_is_left_out_keeps_its_precision(tiny_bundle: Path, tmp_path: Path) -> None:
    calibration = calibrated(tiny_bundle, Recipe(attention=True))
    fresh = images(16, seed=5)
    reference = logits(tiny_bundle / "model.onnx", tmp_path, fresh)
    left_out = calibration.leaving_out(calibration.names[:1])
    graph = int8(tiny_bundle, left_out)
    quantized = [node for node in graph.graph if node.op_type == "DequantizeLinear"]
    everything = [n for n in int8(tiny_bundle, calibration).graph if n.op_type == "DequantizeLinear"]
    assert len(everything) - len(quantized) == 4  # the activation that Q, K and V read, and their three weights
    assert error(logits(graph, tmp_path, fresh), reference) > 0
    (tmp_path / "calibration.json").write_text(left_out.dumps())
    again = Calibration.load(tmp_path / "calibration.json", "hash")
    assert again.left_out == left_out.left_out == calibration.names[:1]
    assert ir.to_proto(int8(tiny_bundle, again)) == ir.to_proto(graph)


def test_a_part_that_the_graph_has_not_is_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    model = ir.load(tiny_bundle / "model.onnx")
    for node in list(model.graph):
        if node.op_type == "Softmax":  # hide it
            node.op_type = "LogSoftmax"
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="no attention that could be quantised"):
        calibrated(tmp_path, Recipe(attention=True))


def test_a_cache_of_a_newer_version_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    data = json.loads(calibrated(tiny_bundle, PLAIN).dumps())
    data["schema_version"] = 99
    (tmp_path / "calibration.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="newer vitdeploy"):
        Calibration.load(tmp_path / "calibration.json", "hash")


def test_bias_corrections_follow_what_smoothing_does_to_values(tiny_bundle: Path, tmp_path: Path) -> None:
    """V's channels are divided for the output projection's sake, so what corrects V's mean must be too."""
    calibration = calibrated(tiny_bundle, Recipe())
    name = "vit.layers.0.attention.q_proj+k_proj+v_proj"
    group = next(group for group in calibration.groups if group.name == name)
    other = next(group for group in calibration.groups if group.name == "vit.layers.0.attention.o_proj")
    smoothing = np.linspace(0.5, 4, 48).astype(np.float32)
    bump = {"vit.layers.0.attention.v_proj": np.ones(48, np.float32)}
    changed = replace(
        calibration, groups=(replace(group, bias=bump), replace(other, smoothing=smoothing), *calibration.groups[2:])
    )
    plain = replace(changed, groups=(replace(group, bias={}), *changed.groups[1:]))
    biases = []
    for made in (int8(tiny_bundle, changed), int8(tiny_bundle, plain)):
        node = next(node for node in made.graph if node.name == "vit.layers.0.attention.v_proj/Add")
        biases.append(next(array for array in map(constant, node.inputs) if array is not None))
    np.testing.assert_allclose(biases[0] - biases[1], 1 / smoothing, rtol=1e-4)
