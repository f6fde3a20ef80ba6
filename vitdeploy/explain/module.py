"""Look inside a checkpoint: PyTorch with attention in its written-out form, which gives its softmax back."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from vitdeploy.core.errors import ModelError, require
from vitdeploy.core.specs import PreprocessSpec
from vitdeploy.explain.inside import Inside, check_attention, readout_of, undo_normalisation
from vitdeploy.models import hub
from vitdeploy.models.checkpoints import Checkpoint
from vitdeploy.runtime.predictions import Namer

__all__ = ["look_inside_checkpoint"]

_TABLES = ("position_embeddings", "position_embedding.weight", "pos_embed")


def look_inside_checkpoint(checkpoint: Checkpoint, pixels: np.ndarray) -> Inside:
    """Run a classifier of transformers on one image, uint8 (height, width, 3), and keep what attention did.

    Raises:
        ModelError: the model has no attention over one grid of patches.
    """
    torch = require("torch", extra="build")
    module = checkpoint.module
    values = checkpoint.processor(pixels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    grids: list[tuple[int, int]] = []
    convolution = _patch_embedding(torch, module, checkpoint.source)
    hook = convolution.register_forward_hook(lambda _module, _inputs, output: grids.append(tuple(output.shape[2:])))
    before = module.config._attn_implementation
    try:
        _set_attention(module, "eager")
        with torch.inference_mode():
            output = module(pixel_values=values, output_attentions=True)
    finally:
        hook.remove()
        _set_attention(module, before)
    attentions = [array.float().numpy() for array in getattr(output, "attentions", None) or ()]
    grid = (int(grids[0][0]), int(grids[0][1]))
    check_attention(attentions, grid, checkpoint.source)
    special = attentions[0].shape[-1] - grid[0] * grid[1]
    positions, reason = _positions(torch, module, grid, special)
    return Inside(
        source=checkpoint.source,
        form="PyTorch",
        pixels=undo_normalisation(values[0].numpy(), _settings(checkpoint.processor)),
        attentions=tuple(array[0] for array in attentions),
        grid=grid,
        readout=readout_of(type(module).__name__, special),
        positions=positions,
        no_positions=reason,
        prediction=Namer(checkpoint.labels, checkpoint.source, checkpoint.task).prediction(
            output.logits[0].float().numpy(), 1
        ),
    )


def _set_attention(module: Any, name: str) -> None:
    """Fused attention keeps its softmax to itself, the written-out "eager" gives it back."""
    with hub.quiet_libraries(), contextlib.suppress(ValueError, KeyError, AttributeError):
        module.set_attn_implementation(name)  # a model without attention refuses: told by what it returns


def _patch_embedding(torch: Any, module: Any, name: str) -> Any:
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == layer.stride:
            return layer
    raise ModelError(f"{name} cuts its image into no patches", hint="explain a model of the ViT family")


def _positions(torch: Any, module: Any, grid: tuple[int, int], special: int) -> tuple[np.ndarray | None, str | None]:
    """The embeddings added to the patches (patches, hidden), resized to their grid as the model does it."""
    patches = grid[0] * grid[1]
    tables = [values for name, values in module.state_dict().items() if name.endswith(_TABLES) and values.ndim >= 2]
    if not tables:
        return None, "the model adds no embedding of absolute positions to its patches"
    table = tables[0].float().reshape(-1, tables[0].shape[-1])  # (tokens, hidden)
    if not 0 <= len(table) - patches <= special:
        resizer = next((layer for layer in module.modules() if hasattr(layer, "interpolate_pos_encoding")), None)
        if resizer is None:
            return None, f"the model's {len(table)} position embeddings do not fit {patches} patches"
        height, width = (
            side * size for side, size in zip(grid, _patch_embedding(torch, module, "").stride, strict=True)
        )
        with torch.inference_mode():
            sized = resizer.interpolate_pos_encoding(torch.zeros(1, patches + 1, table.shape[1]), height, width)
        table = sized[0].float()
    return table[-patches:].numpy(), None


def _settings(processor: Any) -> PreprocessSpec:
    """What the processor does to values after it has resized: enough to undo it."""
    normalises = bool(getattr(processor, "do_normalize", False))
    return PreprocessSpec(
        resize=None,
        crop=None,
        rescale=float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else None,
        mean=_three(processor.image_mean) if normalises else None,
        std=_three(processor.image_std) if normalises else None,
    )


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = values if isinstance(values, (list, tuple)) else [values] * 3
    return float(red), float(green), float(blue)
