"""Attention in INT8: what is sampled, both spellings of the softmax's output, decisions on the worse of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.quantization import calibrated, error, images, int8, logits
from vitdeploy.compiler.passes.values import constant
from vitdeploy.compiler.quantization import sensitivity
from vitdeploy.compiler.quantization.attention import find_attention
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.observers import AttentionSample
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.schemes import INT8_SIGNED, INT8_UNSIGNED, Scheme
from vitdeploy.data import load_dataset
from vitdeploy.evaluation.paired import Truth

HEADS, TOKENS, WIDTH = 4, 17, 12


@pytest.fixture(scope="module")
def calibration(tiny_bundle: Path) -> Calibration:
    return calibrated(tiny_bundle, Recipe(attention=True))


def softmax_quantizer(model: ir.Model, index: int) -> tuple[float, np.ndarray]:
    """Scale and zero point behind the softmax of one layer."""
    products = find_attention_in_int8(model)[index]
    scale, zero = (constant(value) for value in products.inputs[1:])
    assert scale is not None and zero is not None
    return float(scale), zero


def find_attention_in_int8(model: ir.Model) -> list[ir.Node]:
    return [
        use.node
        for node in model.graph
        if node.op_type == "Softmax"
        for use in node.outputs[0].uses()
        if use.node.op_type == "QuantizeLinear"
    ]


def test_the_softmax_has_all_levels_where_they_are_unsigned(tiny_bundle: Path, calibration: Calibration) -> None:
    signed, unsigned = int8(tiny_bundle, calibration, "tensorrt"), int8(tiny_bundle, calibration, "cpu")
    for index in range(3):
        coarse, zero = softmax_quantizer(signed, index)
        fine, unsigned_zero = softmax_quantizer(unsigned, index)
        assert zero.dtype == np.int8 and unsigned_zero.dtype == np.uint8 and not zero and not unsigned_zero
        assert fine < 0.8 * coarse


def test_more_levels_leave_less_noise(tiny_bundle: Path, calibration: Calibration, tmp_path: Path) -> None:
    """Only attention in INT8: the form for CPUs against FP32, with its own softmax scale and with that of TensorRT."""
    linears = [group.name for group in calibration.groups]
    fine = calibration.leaving_out(linears)
    coarse = replace(fine, attention=tuple(replace(part, unsigned=None) for part in fine.attention))
    fresh = images(64, seed=5)
    reference = logits(tiny_bundle / "model.onnx", tmp_path, fresh)
    errors = [error(logits(int8(tiny_bundle, found), tmp_path, fresh), reference) for found in (fine, coarse)]
    assert errors[0] < 0.95 * errors[1]  # Q and K put noise on this small model too


def test_a_cache_without_unsigned_scales_has_the_same_integers_in_both_forms(
    tiny_bundle: Path, calibration: Calibration, tmp_path: Path
) -> None:
    data = json.loads(calibration.dumps())
    for part in data["attention"]:
        del part["unsigned"], part["unsigned_bias"]
    (tmp_path / "calibration.json").write_text(json.dumps(data))
    older = Calibration.load(tmp_path / "calibration.json", "hash")
    signed, unsigned = (softmax_quantizer(int8(tiny_bundle, older, target), 0) for target in ("tensorrt", "cpu"))
    assert signed[0] == unsigned[0] and unsigned[1] == 128


def test_attention_is_centred_on_the_mean_of_its_values(tiny_bundle: Path, calibration: Calibration) -> None:
    plain = calibrated(tiny_bundle, Recipe())
    for name in (f"vit.layers.{index}.attention.o_proj" for index in range(3)):
        with_attention, without = (
            next(group for group in found.groups if group.name == name) for found in (calibration, plain)
        )
        assert with_attention.centre is not None and without.centre is not None
        assert not np.array_equal(with_attention.centre, without.centre)


def test_every_head_is_sampled_in_turn(tiny_bundle: Path) -> None:
    products = find_attention(ir.load(tiny_bundle / "model.onnx"))[0]
    generator = np.random.default_rng(0)
    sample = AttentionSample(products, 200, np.random.default_rng(1))
    values = []
    for _ in range(200):
        query, key, value = (generator.standard_normal((HEADS, TOKENS, WIDTH)).astype(np.float32) for _ in range(3))
        sample.add(query, key.transpose(0, 2, 1), value)
        values.append(value)
    counts = np.bincount(sample.head, minlength=HEADS)
    assert counts.min() > 0 and counts.max() - counts.min() <= 1
    np.testing.assert_allclose(sample.value_mean, np.mean(values, axis=(0, 2)).reshape(-1), atol=1e-6)
    query, key, value = sample.tensors
    assert len(query) == len(key) == len(value) == len(sample.head) and key.shape[1] == TOKENS


def test_layers_are_judged_by_the_form_that_loses_more(
    tiny_bundle: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(model: ir.Model, found: Calibration, *, scheme: Scheme, layers: QuantLayers) -> object:
        seen.append(scheme)
        return quantize(model, found, scheme=scheme, layers=layers)

    monkeypatch.setattr(sensitivity, "quantize", watched)
    pictures = load_dataset("digits", "train", limit=8)
    truth = Truth(pictures, pictures.label_ids)
    sensitivity.analyze_layers(tiny_bundle / "model.onnx", calibration, truth)
    assert set(seen) == {INT8_SIGNED}
    seen.clear()
    sensitivity.analyze_layers(tiny_bundle / "model.onnx", calibrated(tiny_bundle, Recipe()), truth)
    assert set(seen) == {INT8_UNSIGNED}
