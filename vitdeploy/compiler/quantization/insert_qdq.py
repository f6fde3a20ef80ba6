"""Model + calibration -> the INT8 or FP8 graph: explicit Q/DQ, symmetric, zero points zero (TensorRT).

    x -> QuantizeLinear(Sx) -> DequantizeLinear(Sx) -> MatMul(., DequantizeLinear(Wq, Sw per column)) -> Add(bias)

Placement: inputs and weights of the encoder's products (Q, K, V, attention output, both of the MLP), and what the
recipe's `Placement` adds. The residual stream, LayerNorm, GELU, softmax and logits keep the type around them. Two
spellings of the same integers (see `schemes`):

    TensorRT    int8 activations; the rest of the graph in FP16
    CPU         uint8 activations with zero point 128 - k, that is (x_int8 + 128) - 128: the same real numbers, and the
                form for which x86 has a fast product of unsigned with signed bytes; the rest of the graph in FP32.
                The softmax's output, which is never negative, has zero point 0 and 255 steps here

A one-sided activation, GELU's, is shifted by k steps so that it uses all levels. The CPU form has it in the zero point;
the TensorRT form subtracts it before QuantizeLinear, one more operation in GELU's kernel, and has it in the bias. There
every layer has the same step, `_COMMON_STEP`, and a factor to it beside the shift, both as vectors over the channels:
TensorRT-RTX stores a fused kernel again for each number that is written into it, and vectors are read from memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import constant, new_initializer, replace_constant
from vitdeploy.compiler.quantization.arithmetic import weight_scales
from vitdeploy.compiler.quantization.attention import AttentionProducts
from vitdeploy.compiler.quantization.calibration import AttentionCalibration, Calibration, GroupCalibration
from vitdeploy.compiler.quantization.groups import (
    QuantGroup,
    Source,
    bias_of,
    channel_axis,
    layer_name,
    matrix_of,
)
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.rounding import Steps, divided_columns, stepped
from vitdeploy.compiler.quantization.schemes import Scheme
from vitdeploy.core.errors import BundleError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["quantize"]

_COMMON_STEP = 2.0**-5


def quantize(
    model: ir.Model, calibration: Calibration, *, scheme: Scheme, layers: QuantLayers | None = None
) -> PassResult:
    """Insert Q/DQ into `model` in place.

    What the calibration leaves out of INT8 is rescaled with the rest (smoothing changes nothing in FP32) and keeps its
    type.

    Args:
        model: the FP32 graph that the calibration was made for. For an FP16 remainder, `to_half` comes after.
        scheme: how the rounded numbers are stored.
        layers: those of the graph, or of another copy of it; None: look for them.

    Raises:
        BundleError: the graph's layers are not those of the calibration.
    """
    found = QuantLayers.find(model, calibration.recipe) if layers is None else layers.on(model)
    groups, attention = found.groups, found.attention
    for name in calibration.names:
        if name not in groups and name not in attention:
            raise BundleError(
                f"the calibration has a layer {name!r} that the graph has not",
                hint="calibrate again with --calibration-data",
            )
    graph, out = model.graph, set(calibration.left_out)
    divided: dict[ir.Node, np.ndarray] = {}
    for qparams in calibration.groups:
        _centre(graph, groups[qparams.name], qparams)
    for qparams in calibration.groups:
        source = groups[qparams.name].source
        if qparams.smoothing is not None and source is not None:
            _divide_source(graph, source, qparams.smoothing)
            divided[source.node] = qparams.smoothing
    for attention_qparams in calibration.attention:
        divided.update(_balance(graph, attention[attention_qparams.name], attention_qparams))
    count = 0
    for attention_qparams in calibration.attention:  # first, since it reads the weights of the output projection
        if attention_qparams.name not in out:
            count += _insert_attention(graph, attention[attention_qparams.name], attention_qparams, scheme)
    for qparams in calibration.groups:
        if qparams.name in out:
            _rescale_weights(graph, groups[qparams.name], qparams)
        else:
            count += _insert(graph, groups[qparams.name], qparams, scheme, divided)
    return PassResult("quantize", count)


def _centre(graph: ir.Graph, group: QuantGroup, qparams: GroupCalibration) -> None:
    """Take z off the activation and give what the products make of it to their biases."""
    if qparams.centre is None:
        return
    assert group.source is not None and group.source.shift is not None, "only what can be shifted is centred"
    node, index = group.source.shift
    for product in group.products:
        _correct_bias(graph, product, qparams.centre @ matrix_of(product))
    shift = constant(node.inputs[index])
    assert shift is not None
    replace_constant(graph, node, index, shift - qparams.centre)


def _divide_source(graph: ir.Graph, source: Source, by: np.ndarray) -> None:
    for place in (source.scale, source.shift):
        if place is not None:
            array = constant(place[0].inputs[place[1]])
            assert array is not None
            replace_constant(graph, *place, array / by)


def _balance(graph: ir.Graph, products: AttentionProducts, qparams: AttentionCalibration) -> dict[ir.Node, np.ndarray]:
    """Centre K, divide Q and multiply K; returns what the outputs of their projections were divided by."""
    if qparams.centre is not None and products.key_source is not None:
        _correct_bias(graph, products.key_source.node, -qparams.centre)
    if qparams.balance is None or products.query_source is None or products.key_source is None:
        return {}
    divided = {products.query_source: qparams.balance, products.key_source: 1 / qparams.balance}
    for source, by in divided.items():
        _divide_source(graph, source, by)
    return {source.node: by for source, by in divided.items()}


def _rescale_weights(graph: ir.Graph, group: QuantGroup, qparams: GroupCalibration) -> None:
    """What a group that is left out of INT8 needs, its activation being divided by s."""
    if qparams.smoothing is not None:
        for node in group.products:
            weight = constant(node.inputs[1])
            assert weight is not None
            replace_constant(graph, node, 1, weight * qparams.smoothing[:, np.newaxis])


def _insert(
    graph: ir.Graph, group: QuantGroup, qparams: GroupCalibration, scheme: Scheme, divided: dict[ir.Node, np.ndarray]
) -> int:
    """Q/DQ on the group's activation and on each of its weights.

    `divided` says by what the outputs of products were divided: their bias corrections were found before that.
    """
    zero = scheme.zero_point(qparams.shift)
    activation, first, step, factor = group.activation, group.products[0], qparams.scale, np.float32(1)
    moved = bool(qparams.shift) and not scheme.shifts_in_zero_point
    if moved:
        step, factor = _COMMON_STEP, np.float32(np.float16(_COMMON_STEP / qparams.scale))  # FP16 holds it as it is
        activation = _moved(graph, group, qparams.shift * qparams.scale, factor)
    quantized = _pair(graph, activation, group.activation.name or group.name, step, zero, first)
    for node in group.products:
        by = divided.get(node, np.float32(1))
        integers, scales = _quantize_weight(graph, node, qparams, factor, by, scheme)
        node.replace_input_with(0, quantized)
        layer = layer_name(node)
        correction = qparams.bias.get(layer, np.zeros(len(scales), dtype=np.float32)) / by
        if moved:
            moved_by = np.float32(qparams.shift * qparams.scale)
            correction = correction + moved_by * (integers.sum(axis=0, dtype=np.int64) * scales).astype(np.float32)
        _correct_bias(graph, node, correction)
    return len(group.products)


def _moved(graph: ir.Graph, group: QuantGroup, shift: float, factor: np.float32) -> ir.Value:
    """(activation - shift) * factor, both as vectors over the channels."""
    value, before = group.activation, group.products[0]
    name, channels = value.name or group.name, len(matrix_of(before))
    for operation, what, number in (("Sub", "shift", shift), ("Mul", "factor", factor)):
        vector = new_initializer(graph, f"{name}.{what}", np.full(channels, number, dtype=np.float32))
        made = _node(graph, operation, [value, vector], f"{name}/{operation}", before)
        made.type, made.shape = value.type, value.shape
        value = made
    return value


def _quantize_weight(
    graph: ir.Graph,
    node: ir.Node,
    qparams: GroupCalibration,
    factor: np.float32,
    by: np.ndarray | np.float32,
    scheme: Scheme,
) -> tuple[np.ndarray, np.ndarray]:
    """Put DequantizeLinear(Wq, Sw / factor) where a product reads its weight, for an activation times that factor;
    returns Wq (channels in, channels out) and Sw. `by` is what the columns of W were divided by."""
    old = node.inputs[1]
    assert old is not None and old.shape is not None
    exact = matrix_of(node) if qparams.smoothing is None else matrix_of(node) * qparams.smoothing[:, np.newaxis]
    axis, layer = channel_axis(node), layer_name(node)
    steps = qparams.steps.get(layer)
    if steps is None:
        scales = weight_scales(exact, scheme.numbers)
        integers = scheme.store(exact, scales)
    else:  # found before the columns were divided
        exact = exact * by
        found_with = weight_scales(exact, scheme.numbers)
        chosen = stepped(scheme.store(exact, found_with), _laid_out(steps, exact, layer))
        integers, scales = divided_columns(chosen, found_with, by)
    laid_out = integers if axis == 1 else integers.T.reshape(tuple(int(size) for size in old.shape))
    inputs = [
        new_initializer(graph, f"{layer}.weight_{scheme.numbers.name}", laid_out),
        new_initializer(graph, f"{layer}.weight_scale", scales / factor),
        new_initializer(graph, f"{layer}.weight_zero", np.zeros(scales.shape, dtype=scheme.dtype())),
    ]
    dequantized = _node(graph, "DequantizeLinear", inputs, f"{layer}/weight_DequantizeLinear", node, {"axis": axis})
    dequantized.type, dequantized.shape = old.type, old.shape
    node.replace_input_with(1, dequantized)
    if not old.uses():
        del graph.initializers[old.name or ""]
    return integers, scales


def _laid_out(steps: Steps, like: np.ndarray, layer: str) -> Steps:
    """The steps of a layer as its weight lies, without the zeros at the end of what was read."""
    if not 0 <= steps.size - like.size < 5:
        raise BundleError(
            f"the calibration rounds {steps.size} weights of {layer}, which has {like.size}",
            hint="calibrate again with --calibration-data",
        )
    return steps.reshape(-1)[: like.size].reshape(like.shape)


def _insert_attention(
    graph: ir.Graph, products: AttentionProducts, qparams: AttentionCalibration, scheme: Scheme
) -> int:
    """Q/DQ on Q, K, V and the softmax's output; for CPUs the left operand of each product is unsigned."""
    right, left = np.zeros((), dtype=scheme.dtype()), scheme.zero_point(0)
    probability, steps, bias = qparams.probability, left, qparams.bias
    if scheme.softmax_zero_point is not None and qparams.unsigned is not None:
        probability, steps, bias = qparams.unsigned, scheme.softmax_zero_point, qparams.unsigned_bias
    for node, index, scale, zero in (
        (products.scores, 0, qparams.query, left),
        (products.scores, 1, qparams.key, right),
        (products.mixing, 0, probability, steps),
        (products.mixing, 1, qparams.value, right),
    ):
        value = node.inputs[index]
        assert value is not None
        node.replace_input_with(index, _pair(graph, value, value.name or products.name, scale, zero, node))
    if bias is not None and products.output is not None:
        _correct_bias(graph, products.output, bias @ matrix_of(products.output))
    return 2


def _pair(graph: ir.Graph, value: ir.Value, name: str, scale: float, zero: np.ndarray, before: ir.Node) -> ir.Value:
    """QuantizeLinear and DequantizeLinear of an activation, one scale for all of it."""
    constants = [
        new_initializer(graph, f"{name}.scale", np.array(scale, dtype=np.float32)),
        new_initializer(graph, f"{name}.zero", zero),
    ]
    q = _node(graph, "QuantizeLinear", [value, *constants], f"{name}/QuantizeLinear", before)
    q.type, q.shape = constants[1].type, value.shape
    dq = _node(graph, "DequantizeLinear", [q, *constants], f"{name}/DequantizeLinear", before)
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
        replace_constant(graph, *place, bias + correction)
