"""INT8 of a tiny bundle in a few lines: images, calibration, graph, logits, and a model that is hard to quantise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.backends.openvino.runner import OpenVinoRunner
from vitdeploy.compiler.passes.values import constant, new_initializer
from vitdeploy.compiler.quantization.calibration import Calibration, calibrate
from vitdeploy.compiler.quantization.groups import bias_of
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.schemes import INT8_SIGNED, INT8_UNSIGNED

PLAIN = Recipe(method="minmax", smoothing=False, bias_correction=False)


def images(count: int = 24, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, 40)[:, np.newaxis, np.newaxis]
    return [
        np.clip(ramp * generator.random(3) + generator.integers(0, 136, (40, 40, 3)), 0, 255).astype(np.uint8)
        for _ in range(count)
    ]


def calibrated(bundle: Path, recipe: Recipe, pictures: list[np.ndarray] | None = None) -> Calibration:
    pictures = images() if pictures is None else pictures
    return calibrate(bundle / "model.onnx", "hash", pictures, len(pictures), recipe, {"name": "noise"})


def logits(
    model: ir.Model | Path, folder: Path, pictures: list[np.ndarray], backend: str = "onnxruntime"
) -> np.ndarray:
    path = folder / "model.onnx"
    if isinstance(model, Path):
        path = model
    else:
        ir.save(model, path)
    if backend == "openvino":
        pytest.importorskip("openvino")
    with (OpenVinoRunner if backend == "openvino" else OnnxRuntimeRunner)(path) as runner:
        return runner.infer({"image": np.stack(pictures)})["logits"]


def int8(bundle: Path, calibration: Calibration, target: str = "cpu") -> ir.Model:
    model = ir.load(bundle / "model.onnx")
    quantize(model, calibration, scheme=INT8_UNSIGNED if target == "cpu" else INT8_SIGNED)
    return model


def _scale_channels(graph: ir.Graph, place: tuple[ir.Node, int], channels: list[int], factor: float) -> None:
    node, index = place
    value = node.inputs[index]
    array = constant(value)
    assert value is not None and array is not None
    array = array.copy()
    array[channels] *= factor
    node.replace_input_with(
        index, new_initializer(graph, f"{value.name}.scaled", array)
    )  # others may share the old one


def with_outlier_channels(source: Path, path: Path, factor: float = 50.0, channels: Sequence[int] = (3, 17)) -> Path:
    """The same FP32 function with LayerNorm outputs in which some channels are `factor` times larger."""
    model = ir.load(source)
    for node in list(model.graph):
        if node.op_type != "LayerNormalization":
            continue
        readers = [use.node for use in node.outputs[0].uses()]
        if not all(reader.op_type == "MatMul" for reader in readers):
            continue
        for place in [(node, 1), (node, 2)]:
            _scale_channels(model.graph, place, list(channels), factor)
        for reader in readers:
            _scale_channels(model.graph, (reader, 1), list(channels), 1 / factor)
    ir.save(model, path)
    return path


def with_offset_channels(source: Path, path: Path, offset: float = 20.0) -> Path:
    """The same FP32 function with an offset on the outputs of each LayerNorm that readers' biases take away again."""
    model = ir.load(source)
    for node in list(model.graph):
        readers = [use.node for use in node.outputs[0].uses()]
        if node.op_type != "LayerNormalization" or not all(reader.op_type == "MatMul" for reader in readers):
            continue
        _add_to(model.graph, (node, 2), np.float32(offset))
        for reader in readers:
            place, weight = bias_of(reader), constant(reader.inputs[1])
            assert place is not None and weight is not None
            _add_to(model.graph, place, -offset * weight.sum(axis=0, dtype=np.float64))
    ir.save(model, path)
    return path


def _add_to(graph: ir.Graph, place: tuple[ir.Node, int], values: np.ndarray | np.float32) -> None:
    node, index = place
    value = node.inputs[index]
    array = constant(value)
    assert value is not None and array is not None
    node.replace_input_with(index, new_initializer(graph, f"{node.name}.moved", (array + values).astype(np.float32)))


def error(values: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.mean((values - reference) ** 2)) / np.std(reference))
