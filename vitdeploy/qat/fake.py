"""Fake quantisation in PyTorch: the module computes what the bundle's INT8 graph computes, and gradients pass through.

    FQ(x; S, k) = S clip(round(x / S), k - 128, k + 127)

Rounding is to even, as in ONNX. Its gradient is taken as 1 (straight-through, Bengio et al. 2013) inside the range and
0 outside; the scale of an activation learns from both (LSQ, Esser et al. 2020), here through its logarithm, so that a
step is a relative change. Scales are float16 numbers in the graph, and are rounded to them in the forward pass too. The
scale of a weight follows the weight: its column's largest magnitude over 127.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np

from vitdeploy.compiler.quantization.arithmetic import LEVELS, activation_scale
from vitdeploy.core.errors import require
from vitdeploy.qat.rounding import AttentionPlan, GroupPlan, LayerPlan, RoundingPlan

__all__ = ["FakeQuantized", "Quantizer", "fake_quantized"]

_SMALLEST = float(np.finfo(np.float16).tiny)
_ATTENTION = "vitdeploy_fake_quantized"


class Quantizer:
    """FQ of one activation, with its scale to be learnt."""

    def __init__(self, scale: float, shift: int = 0) -> None:
        torch = require("torch", extra="build")
        self._torch = torch
        self.shift = shift
        self.logarithm = torch.nn.Parameter(torch.tensor(float(np.log(scale)), dtype=torch.float64))

    @property
    def scale(self) -> float:
        """The scale as the graph will hold it."""
        return activation_scale(float(self.logarithm.detach().exp()))

    def __call__(self, values: Any) -> Any:
        torch = self._torch
        learnt = self.logarithm.exp().float()
        scale = learnt + (self.scale - learnt).detach()
        steps = values / scale
        rounded = steps + (torch.round(steps) - steps).detach()
        return rounded.clamp(self.shift - LEVELS - 1, self.shift + LEVELS) * scale


def _quantized_weight(weight: Any, inputs: Any, outputs: Any) -> Any:
    """FQ of a weight (channels out, channels in), rounded as the graph's f s W, given back in the module's units."""
    torch = require("torch", extra="build")
    exact = weight * outputs[:, None] * inputs
    with torch.no_grad():
        scales = (exact.abs().amax(dim=1) / LEVELS).clamp(min=_SMALLEST).half().float()[:, None]
        rounded = torch.round(exact / scales).clamp(-LEVELS, LEVELS) * scales
    return (exact + (rounded - exact).detach()) / (outputs[:, None] * inputs)


class FakeQuantized:
    """A classifier whose layers round. Its weights are its own; `parameters` are the scales that learn beside them."""

    def __init__(self, module: Any, rounding: RoundingPlan) -> None:
        self.module = module
        self.rounding = rounding
        self.groups = {plan.name: Quantizer(plan.scale, plan.shift) for plan in rounding.groups}
        self.attention = {
            plan.name: {
                part: Quantizer(getattr(plan.calibrated, part)) for part in ("query", "key", "probability", "value")
            }
            for plan in rounding.attention
        }
        self.noise: dict[str, list[float]] | None = None  # (signal, noise) by name while it is measured

    def parameters(self) -> list[Any]:
        """The logarithms of all scales."""
        products = [quantizer for parts in self.attention.values() for quantizer in parts.values()]
        return [quantizer.logarithm for quantizer in (*self.groups.values(), *products)]

    def state(self) -> dict[str, Any]:
        """A copy of weights and scales, to go back to."""
        weights = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        return {"weights": weights, "scales": [value.detach().clone() for value in self.parameters()]}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a `state`."""
        self.module.load_state_dict(state["weights"])
        for parameter, value in zip(self.parameters(), state["scales"], strict=True):
            parameter.data.copy_(value)

    def add_corrections(self) -> None:
        """Put the calibration's corrections of the biases into the biases, where training goes on from them."""
        torch = require("torch", extra="build")
        layers = dict(self.module.named_modules())
        with torch.no_grad():
            for group in self.rounding.groups:
                for plan in group.layers:
                    if plan.correction is not None:
                        layers[plan.name].bias += torch.from_numpy(plan.correction)
            for products in self.rounding.attention:
                if products.correction is not None and products.output is not None:
                    layers[products.output].bias += torch.from_numpy(products.correction)

    def record(self, name: str, exact: Any, given: Any) -> None:
        if self.noise is not None:
            sums = self.noise.setdefault(name, [0.0, 0.0])
            sums[0] += float(exact.double().square().sum())
            sums[1] += float((exact - given).double().square().sum())


@contextmanager
def fake_quantized(module: Any, rounding: RoundingPlan) -> Iterator[FakeQuantized]:
    """Let the layers of `module` round inside the block; its parameters, names and saved form stay as they are."""
    state = FakeQuantized(module, rounding)
    layers = dict(module.named_modules())
    changed = []
    before = module.config._attn_implementation
    try:
        for group in rounding.groups:
            for plan in group.layers:
                layer = layers[plan.name]
                layer.forward = MethodType(_layer_forward(state, group, plan), layer)
                changed.append(layer)
        if rounding.attention:
            _use_attention(module, {layers[plan.module]: plan for plan in rounding.attention}, state)
        yield state
    finally:
        for layer in changed:
            del layer.forward
        if rounding.attention:
            module.set_attn_implementation(before)


def _layer_forward(state: FakeQuantized, group: GroupPlan, plan: LayerPlan) -> Any:
    torch = require("torch", extra="build")
    functional = torch.nn.functional
    quantizer = state.groups[group.name]
    smoothing = torch.ones(1) if group.smoothing is None else torch.from_numpy(group.smoothing)
    centre = None if group.centre is None else torch.from_numpy(group.centre)
    outputs = torch.from_numpy(plan.outputs.astype(np.float32))

    def product(values: Any, weight: Any, layer: Any) -> Any:
        if weight.ndim == 4:
            return functional.conv2d(values, weight, stride=layer.stride)
        return functional.linear(values, weight)

    def forward(layer: Any, values: Any) -> Any:
        inputs = smoothing.to(values.device)
        flat = layer.weight.flatten(1)  # (channels out, channels in): a Linear's own, a patch embedding's rows
        weight = _quantized_weight(flat, inputs, outputs.to(values.device)).reshape(layer.weight.shape)
        moved = values if centre is None else values - centre.to(values.device)
        rounded = quantizer(moved) if group.smoothing is None else quantizer(moved / inputs) * inputs
        given = product(rounded, weight, layer)
        if centre is not None:
            given = given + functional.linear(centre.to(values.device), layer.weight)
        if state.noise is not None:
            state.record(group.name, product(values, layer.weight, layer), given)
        bias = layer.bias
        if bias is not None:
            given = given + (bias[:, None, None] if layer.weight.ndim == 4 else bias)
        return given

    return forward


def _use_attention(module: Any, plans: dict[Any, AttentionPlan], state: FakeQuantized) -> None:
    transformers = require("transformers", extra="build")
    torch = require("torch", extra="build")

    def attend(
        layer: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, *, scaling: float, **_: Any
    ) -> tuple[Any, Any]:
        # query, key, value: (batch, heads, tokens, head_dim)
        plan, query = plans.get(layer), query * scaling
        if plan is None:
            weights = torch.softmax(query @ key.transpose(-1, -2), dim=-1)
            return (weights @ value).transpose(1, 2).contiguous(), weights
        parts = state.attention[plan.name]
        balance = _per_head(torch, plan.calibrated.balance, query)
        division = _per_head(torch, plan.value_division, value)
        taken = 0.0 if plan.value_centre is None else _per_head(torch, plan.value_centre, value)
        middle = 0.0 if plan.calibrated.centre is None else _per_head(torch, plan.calibrated.centre, key)
        scores = parts["query"](query / balance) @ parts["key"]((key - middle) * balance).transpose(-1, -2)
        weights = parts["probability"](torch.softmax(scores, dim=-1))  # (batch, heads, tokens, tokens)
        mixed = (weights @ parts["value"]((value - taken) / division)) * division + taken
        if state.noise is not None:
            exact = torch.softmax(query @ key.transpose(-1, -2), dim=-1) @ value
            state.record(plan.name, exact, mixed)
        return mixed.transpose(1, 2).contiguous(), weights

    transformers.AttentionInterface.register(_ATTENTION, attend)
    module.set_attn_implementation(_ATTENTION)


def _per_head(torch: Any, vector: np.ndarray | None, like: Any) -> Any:
    """A vector over the channels of a projection as (heads, 1, head_dim); ones where there is none."""
    if vector is None:
        return torch.ones(1, device=like.device)
    heads, size = like.shape[1], like.shape[3]
    return torch.from_numpy(vector).to(like.device).reshape(heads, 1, size)
