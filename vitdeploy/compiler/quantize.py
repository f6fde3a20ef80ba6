"""Model + calibration -> the INT8 graph: explicit Q/DQ, symmetric, zero points zero (TensorRT).

    x -> QuantizeLinear(Sx) -> DequantizeLinear(Sx) -> MatMul(., DequantizeLinear(Wq, Sw per column)) -> Add(bias)

Placement: inputs and weights of the encoder's products (Q, K, V, attention output, both of the MLP). The residual
stream, LayerNorm, GELU, softmax and logits keep the type around them. Two spellings of the same integers:

    TensorRT    int8 activations; the rest of the graph in FP16
    CPU         uint8 activations with zero point 128 - k, that is (x_int8 + 128) - 128: the same real numbers, and the
                form for which x86 has a fast product of unsigned with signed bytes; the rest of the graph in FP32

A one-sided activation, GELU's, is shifted by k steps so that it uses all levels. The CPU form has it in the zero point;
the TensorRT form subtracts it before QuantizeLinear, one more operation in GELU's kernel, and has it in the bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.calibration import LEVELS, Calibration, GroupCalibration, weight_scales
from vitdeploy.compiler.graph.result import PassResult
from vitdeploy.compiler.graph.values import constant, new_initializer
from vitdeploy.compiler.layers import LayerGroup, Source, bias_of, find_groups, layer_name
from vitdeploy.errors import BundleError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["quantize"]


def quantize(model: ir.Model, calibration: Calibration, *, target: str) -> PassResult:
    """Insert Q/DQ into `model` in place.

    Args:
        model: the FP32 graph that the calibration was made for. For an FP16 remainder, `to_half` comes after.
        target: "tensorrt" or "cpu".

    Raises:
        BundleError: the graph's layers are not those of the calibration.
    """
    groups = find_groups(model)
    found = {group.name: group for group in groups}
    for solved in calibration.groups:
        if solved.name not in found:
            raise BundleError(
                f"the calibration has a layer {solved.name!r} that the graph has not",
                hint="calibrate again with --calibration-data",
            )
    for solved in calibration.groups:
        _fold_smoothing(model.graph, found[solved.name].source, solved.smoothing)
    count = 0
    for solved in calibration.groups:
        count += _insert(model.graph, found[solved.name], solved, target)
    return PassResult("quantize", count)


def _replace_constant(graph: ir.Graph, place: tuple[ir.Node, int], array: np.ndarray) -> None:
    node, index = place
    old = node.inputs[index]
    assert old is not None
    node.replace_input_with(index, new_initializer(graph, old.name or "weight", array))
    if not old.uses():
        del graph.initializers[old.name or ""]


def _fold_smoothing(graph: ir.Graph, source: Source | None, smoothing: np.ndarray | None) -> None:
    if smoothing is None:
        return
    assert source is not None, "only groups with a source are smoothed"
    for place in (source.scale, source.shift):
        if place is not None:
            array = constant(place[0].inputs[place[1]])
            assert array is not None
            _replace_constant(graph, place, array / smoothing)


def _insert(graph: ir.Graph, group: LayerGroup, solved: GroupCalibration, target: str) -> int:
    """Q/DQ on the group's activation and on each of its weights."""
    quantized = _quantize_activation(graph, group, solved, target)
    for node in group.matmuls:
        weight = constant(node.inputs[1])
        old = node.inputs[1]
        assert weight is not None and old is not None
        exact = weight if solved.smoothing is None else weight * solved.smoothing[:, np.newaxis]
        scales = weight_scales(exact)
        integers = np.clip(np.rint(exact / scales), -LEVELS, LEVELS).astype(np.int8)
        layer = layer_name(node)
        inputs = [
            new_initializer(graph, f"{layer}.weight_int8", integers),
            new_initializer(graph, f"{layer}.weight_scale", scales),
            new_initializer(graph, f"{layer}.weight_zero", np.zeros(scales.shape, dtype=np.int8)),
        ]
        dequantized = _node(graph, "DequantizeLinear", inputs, f"{layer}/weight_DequantizeLinear", node, {"axis": 1})
        dequantized.type, dequantized.shape = old.type, old.shape
        node.replace_input_with(0, quantized)
        node.replace_input_with(1, dequantized)
        if not old.uses():
            del graph.initializers[old.name or ""]
        correction = solved.bias.get(layer, np.zeros(len(scales), dtype=np.float32))
        if solved.shift and target != "cpu":
            moved = np.float32(solved.shift * solved.scale)
            correction = correction + moved * (integers.sum(axis=0, dtype=np.int64) * scales).astype(np.float32)
        _correct_bias(graph, node, correction)
    return len(group.matmuls)


def _quantize_activation(graph: ir.Graph, group: LayerGroup, solved: GroupCalibration, target: str) -> ir.Value:
    first, value, name = group.matmuls[0], group.activation, group.activation.name or group.name
    zero = np.array(0, dtype=np.int8)
    if target == "cpu":
        zero = np.array(LEVELS + 1 - solved.shift, dtype=np.uint8)
    elif solved.shift:
        moved = new_initializer(graph, f"{name}.shift", np.array(solved.shift * solved.scale, dtype=np.float32))
        value = _node(graph, "Sub", [value, moved], f"{name}/Sub", first)
        value.type, value.shape = group.activation.type, group.activation.shape
    constants = [
        new_initializer(graph, f"{name}.scale", np.array(solved.scale, dtype=np.float32)),
        new_initializer(graph, f"{name}.zero", zero),
    ]
    q = _node(graph, "QuantizeLinear", [value, *constants], f"{name}/QuantizeLinear", first)
    q.type, q.shape = constants[1].type, value.shape
    dq = _node(graph, "DequantizeLinear", [q, *constants], f"{name}/DequantizeLinear", first)
    dq.type, dq.shape = value.type, value.shape
    return dq


def _node(
    graph: ir.Graph,
    op_type: str,
    inputs: list[ir.Value],
    name: str,
    before: ir.Node,
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(op_type, inputs, attributes=attributes or {}, name=name)
    node.outputs[0].name = f"{name}_output"
    graph.insert_before(before, node)
    return node.outputs[0]


def _correct_bias(graph: ir.Graph, matmul: ir.Node, correction: np.ndarray) -> None:
    """Add the correction to the bias behind a product; a product without one is left as it is."""
    place = bias_of(matmul)
    if place is not None and correction.any():
        bias = constant(place[0].inputs[place[1]])
        assert bias is not None
        _replace_constant(graph, place, bias + correction)
