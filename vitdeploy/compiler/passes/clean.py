"""All passes over an exported graph, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vitdeploy import __version__
from vitdeploy.compiler.passes.attention_scale import fold_attention_scale
from vitdeploy.compiler.passes.class_token import fold_class_token
from vitdeploy.compiler.passes.constants import fold_constants
from vitdeploy.compiler.passes.layer_names import name_layers
from vitdeploy.compiler.passes.layer_scale import fold_layer_scale
from vitdeploy.compiler.passes.no_ops import remove_no_ops
from vitdeploy.compiler.passes.qkv import merge_qkv
from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.split_qkv import split_qkv
from vitdeploy.compiler.passes.window_mask import fold_window_mask

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PASSES", "clean", "tidy"]

# Names first: what the others make is named after what they found. Constants before the patterns that look for them.
PASSES: tuple[Callable[[ir.Model], PassResult], ...] = (
    name_layers,
    fold_constants,
    remove_no_ops,
    split_qkv,
    fold_attention_scale,
    fold_layer_scale,
    fold_class_token,
    fold_window_mask,
)


def clean(model: ir.Model, *, merged_qkv: bool = False) -> list[PassResult]:
    """Run every pass on `model` in place; each says what it changed, or why it declined."""
    results = []
    for run in PASSES:
        results.append(run(model))
        _drop_unused(model)
    results.append(merge_qkv(model) if merged_qkv else PassResult("merge-qkv", 0, "not asked for (--merge-qkv)"))
    tidy(model)
    return results


def tidy(model: ir.Model) -> None:
    """Drop what nothing reads, and leave no trace of the exporting machine."""
    from onnx_ir.passes import common

    _drop_unused(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "vitdeploy", __version__
    model.graph.name = "vitdeploy"


def _drop_unused(model: ir.Model) -> None:
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
