"""The CPU form's products are one operation each, and give what Q/DQ gave, in ONNX Runtime and in OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.quantization import calibrated, images, int8, logits
from vitdeploy.compiler.passes.integer_products import DOMAIN, fuse_integer_products
from vitdeploy.compiler.passes.values import constant, producer, replace_constant
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.inspection.bundle import inspect


@pytest.fixture(scope="module")
def calibration(tiny_bundle: Path) -> Calibration:
    return calibrated(tiny_bundle, Recipe(attention=True, classifier=True, patch_embedding=True))


def counted(model: ir.Model) -> dict[str, int]:
    kinds = [node.op_type for node in model.graph]
    return {kind: kinds.count(kind) for kind in ("MatMulIntegerToFloat", "MatMul", "DequantizeLinear", "Add")}


def test_products_with_constant_weights_take_their_bias(tiny_bundle: Path, calibration: Calibration) -> None:
    model = int8(tiny_bundle, calibration)
    before = counted(model)
    result = fuse_integer_products(model)
    after = counted(model)
    assert result.changed == after["MatMulIntegerToFloat"] == 18
    assert before["MatMul"] - after["MatMul"] == 18, "those of attention have no constant weight and stay"
    assert before["Add"] - after["Add"] == 18, "every product of this model has a bias"
    assert before["DequantizeLinear"] - after["DequantizeLinear"] == 18 + 12, "of 18 weights and 12 activations"
    for node in model.graph:
        if node.op_type == "MatMulIntegerToFloat":
            assert node.domain == DOMAIN and len(node.inputs) == 7 and node.inputs[6] is not None
            assert node.inputs[4] is not None and node.inputs[5] is None, "a zero point of zero costs time"
    again = fuse_integer_products(model)
    assert again.changed == 0 and again.declined


def test_zero_points_of_weights_that_are_not_zero_stay(tiny_bundle: Path, calibration: Calibration) -> None:
    model = int8(tiny_bundle, calibration)
    pairs = (producer(node.inputs[1], "DequantizeLinear") for node in model.graph if node.op_type == "MatMul")
    weight = next(pair for pair in pairs if pair is not None and constant(pair.inputs[0]) is not None)
    shifted = constant(weight.inputs[2]) + np.int8(3)
    replace_constant(model.graph, weight, 2, shifted)
    fuse_integer_products(model)
    zeros = [node.inputs[5] for node in model.graph if node.op_type == "MatMulIntegerToFloat"]
    assert [constant(zero).tolist() for zero in zeros if zero is not None] == [shifted.tolist()]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_answers_are_those_of_the_pairs(
    backend: str, tiny_bundle: Path, calibration: Calibration, tmp_path: Path
) -> None:
    pairs, fused = int8(tiny_bundle, calibration), int8(tiny_bundle, calibration)
    fuse_integer_products(fused)
    found = [logits(model, tmp_path, images(16, seed=5), backend) for model in (pairs, fused)]
    spread = float(np.std(found[0]))
    # Sums of 8-bit products are exact; what is left is the order in which the float32 bias is added.
    assert float(np.abs(found[0] - found[1]).max()) < 0.02 * spread
    assert float(np.abs(np.roll(found[0], 1, axis=0) - found[1]).max()) > 0.02 * spread


def test_inspect_still_counts_what_is_in_int8(tiny_bundle: Path) -> None:
    graph = inspect(tiny_bundle / "model.int8-cpu.onnx").to_json()["graph"]
    other = inspect(tiny_bundle / "model.int8.onnx").to_json()["graph"]
    assert graph["operators"]["com.microsoft.MatMulIntegerToFloat"] == 18
    assert graph["int8_products"] == other["int8_products"] == 18 < graph["products"]
