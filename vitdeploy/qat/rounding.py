"""Where a bundle's INT8 graph rounds, said of a PyTorch module's layers.

`compiler.quantize` moves and divides channels before it rounds: centres, smoothing, Q against K, the scale of attention
that the export folded into a projection. A `LayerPlan` says for each layer what its graph computes,

    x' = FQ((x - z) / s; Sx, k)      W' = FQ(f s W; Sw) / f      y = x' W' + z W + b

FQ rounds to 8 bits, z and s (channels in) are the centre and the smoothing of the layer's own group, f (channels out)
is all that the graph multiplied the layer's outputs by. f changes nothing but the last bit of Sw, which is a float16
number there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.compiler.quantization.calibration import AttentionCalibration, Calibration
from vitdeploy.compiler.quantization.groups import QuantGroup, bias_of, layer_name, matrix_of
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.core.errors import BundleError, ModelError, require

__all__ = ["AttentionPlan", "GroupPlan", "LayerPlan", "RoundingPlan", "plan_rounding"]

_FIT = 1e-3  # the graph's weights are the module's, one or two float32 roundings apart


@dataclass(frozen=True)
class LayerPlan:
    """One layer: `outputs` is f, `correction` what INT8 adds to the bias, in the module's units (None: nothing)."""

    name: str
    outputs: np.ndarray
    correction: np.ndarray | None


@dataclass(frozen=True)
class GroupPlan:
    """Layers that read one activation: its scale Sx, shift k, centre z (None: zeros) and smoothing s (None: ones)."""

    name: str
    scale: float
    shift: int
    centre: np.ndarray | None
    smoothing: np.ndarray | None
    layers: tuple[LayerPlan, ...]


@dataclass(frozen=True)
class AttentionPlan:
    """One attention module: its four scales, and what is taken off V and what V is divided by for the output's sake."""

    name: str
    module: str
    calibrated: AttentionCalibration
    value_centre: np.ndarray | None
    value_division: np.ndarray | None
    output: str | None
    correction: np.ndarray | None


@dataclass(frozen=True)
class RoundingPlan:
    """All that is rounded."""

    groups: tuple[GroupPlan, ...]
    attention: tuple[AttentionPlan, ...]


def plan_rounding(graph: Path, calibration: Calibration, module: Any) -> RoundingPlan:
    """Read the plan of a calibration off the FP32 graph that it was made for.

    Args:
        graph: model.onnx of the bundle.
        module: the classifier that it was exported from.

    Raises:
        ModelError: the module is another one.
        BundleError: the calibration belongs to another graph.
    """
    ir = require("onnx_ir", extra="build")
    model = ir.load(graph)
    found = QuantLayers.find(model, calibration.recipe)
    groups, attention = found.groups, found.attention
    strange = [name for name in calibration.names if name not in groups and name not in attention]
    if strange:
        raise BundleError(
            f"the calibration has a layer {strange[0]!r} that the graph has not",
            hint="calibrate again: vitdeploy build-engine BUNDLE --int8 --calibration-data D",
        )
    layers = dict(module.named_modules())
    divided: dict[str, np.ndarray] = {}
    for calibrated in calibration.groups:
        source = groups[calibrated.name].source
        if calibrated.smoothing is not None and source is not None and source.node.op_type == "MatMul":
            divided[layer_name(source.node)] = calibrated.smoothing
    values = {
        layer_name(source.node): (calibrated.centre, calibrated.smoothing)
        for calibrated in calibration.groups
        for source in [groups[calibrated.name].source]
        if source is not None
    }
    for products in calibration.attention:
        pair = attention[products.name]
        if products.balance is not None and pair.query_source is not None and pair.key_source is not None:
            divided[layer_name(pair.query_source.node)] = products.balance
            divided[layer_name(pair.key_source.node)] = 1 / products.balance
    inside = [calibrated for calibrated in calibration.groups if calibrated.name not in calibration.left_out]
    plans = tuple(
        GroupPlan(
            calibrated.name,
            calibrated.scale,
            calibrated.shift,
            calibrated.centre,
            calibrated.smoothing,
            _layers(group, calibrated.bias, layers, divided),
        )
        for calibrated in inside
        for group in [groups[calibrated.name]]
    )
    return RoundingPlan(
        plans,
        tuple(
            _attention(attention[products.name], products, values)
            for products in calibration.attention
            if products.name not in calibration.left_out
        ),
    )


def _layers(
    group: QuantGroup, corrections: dict[str, np.ndarray], layers: dict[str, Any], divided: dict[str, np.ndarray]
) -> tuple[LayerPlan, ...]:
    plans = []
    for node in group.products:
        name = layer_name(node)
        if name not in layers or not hasattr(layers[name], "weight"):
            merged = name.endswith(".qkv_proj")
            hint = "export the bundle without --merge-qkv" if merged else "name the checkpoint it was made from"
            raise ModelError(f"the bundle's layer {name!r} is not a layer of this checkpoint", hint=hint)
        factor = _factor(matrix_of(node), _matrix(layers[name]), name)
        correction = corrections.get(name)
        if correction is not None:
            correction = correction / factor if bias_of(node) is not None else None
        plans.append(LayerPlan(name, factor / divided.get(name, np.float32(1)), correction))
    return tuple(plans)


def _matrix(layer: Any) -> np.ndarray:
    """A Linear's or Conv2d's weight as (channels in, channels out)."""
    weight: np.ndarray = layer.weight.detach().cpu().numpy()
    matrix: np.ndarray = weight.reshape(len(weight), -1).T
    return matrix


def _factor(graph: np.ndarray, module: np.ndarray, name: str) -> np.ndarray:
    """What the graph multiplied each column of the module's matrix by (channels out,)."""
    if graph.shape == module.shape:
        exact = module.astype(np.float64)
        factor = (graph * exact).sum(axis=0) / np.maximum((exact * exact).sum(axis=0), 1e-30)
        if np.abs(graph - factor * exact).max() <= _FIT * max(float(np.abs(graph).max()), 1e-30):
            whole: np.ndarray = np.where(np.abs(factor) > 1e-12, factor, 1.0).astype(np.float32)
            return whole
    raise ModelError(
        f"the weights of {name} are not those in the bundle",
        hint="name the checkpoint that the bundle was exported from",
    )


def _attention(
    found: Any, calibrated: AttentionCalibration, values: dict[str, tuple[np.ndarray | None, np.ndarray | None]]
) -> AttentionPlan:
    source, output = found.value_source, found.output
    correction = None
    if calibrated.bias is not None and output is not None:
        correction = calibrated.bias @ matrix_of(output)
    return AttentionPlan(
        calibrated.name,
        layer_name(found.softmax),
        calibrated,
        *((None, None) if source is None else values.get(layer_name(source.node), (None, None))),
        None if output is None else layer_name(output),
        correction,
    )
