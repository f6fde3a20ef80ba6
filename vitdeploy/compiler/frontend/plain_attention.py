"""Attention as every backend fuses it, while a model is traced: MatMul, Softmax, MatMul, queries scaled first.

    softmax(s Q K^T + mask) V,   s = 1/sqrt(head_dim) unless told otherwise

transformers lets one register an attention function of that name; timm has a switch; who calls PyTorch's
scaled_dot_product_attention itself, as data2vec does, is given this one in its place.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from vitdeploy.core.errors import require
from vitdeploy.models import hub

__all__ = ["Weights", "plain_attention"]

_NAME = "vitdeploy_plain"


class Weights:
    """Where plain attention of all tokens to all leaves its weights, (batch, heads, tokens, tokens)."""

    last: Any = None


@contextlib.contextmanager
def plain_attention(module: Any) -> Iterator[None]:
    """Give the model plain attention inside the block, where its family lets one choose."""
    transformers = require("transformers", extra="build")
    before = module.config._attn_implementation
    transformers.AttentionInterface.register(_NAME, _of_transformers)
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False) is True]  # timm's own switch
    try:
        for part in fused:
            part.fused_attn = False
        with hub.quiet_libraries():
            try:
                module.set_attn_implementation(_NAME)
            except (ValueError, KeyError, AttributeError):
                module.set_attn_implementation("eager")
        with _in_the_place_of_pytorchs():
            yield
    finally:
        for part in fused:
            part.fused_attn = True
        with hub.quiet_libraries():
            module.set_attn_implementation(before)


def _of_transformers(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, *, scaling: float, **_: Any
) -> tuple[Any, Any]:
    """What transformers calls; a mask is a position bias or a window's mask.

    query, key, value: (batch, heads, tokens, head_dim). Returns (batch, tokens, heads, head_dim) and the weights.
    """
    made, weights = _attend(query, key, value, attention_mask, scaling)
    return made.transpose(1, 2).contiguous(), weights


def _attend(query: Any, key: Any, value: Any, mask: Any, scaling: float) -> tuple[Any, Any]:
    """query, key, value, result: (batch, heads, tokens, head_dim); and the weights, (batch, heads, tokens, tokens)."""
    import torch

    scores = (query * scaling) @ key.transpose(-1, -2)  # (batch, heads, tokens, tokens)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    if query.shape[-2] == key.shape[-2]:
        Weights.last = weights
    return weights @ value, weights


@contextlib.contextmanager
def _in_the_place_of_pytorchs() -> Iterator[None]:
    import torch

    functional = torch.nn.functional
    original = functional.scaled_dot_product_attention

    def attend(query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **options: Any) -> Any:
        scale = options.pop("scale", None)
        is_added = attn_mask is None or attn_mask.is_floating_point()
        if not is_added or query.ndim != 4 or any(rest) or any(options.values()):  # dropout, causal, grouped heads
            return original(query, key, value, attn_mask, *rest, scale=scale, **options)
        return _attend(query, key, value, attn_mask, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)[0]

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original
