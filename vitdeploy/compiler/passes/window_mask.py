"""The mask of shifted windows without a copy for each image.

Swin's windows lie side by side in the batch axis: scores S are (batch W, heads, N, N) for W windows of N tokens. The
exporter writes the mask M of (1, W, 1, N, N) once for every image, since its batch is not S's:

    S + (bias + Reshape(Expand(M, [batch, W, 1, N, N]), [batch W, 1, N, N]))

With the windows on an axis of their own the mask is a constant that broadcasting repeats:

    Reshape(Reshape(S, [batch, W, heads, N, N]) + (bias + M), [batch W, heads, N, N])

The same additions in the same order, so the same numbers; Shape, Concat and Expand are gone, and one addition of two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.values import constant, new_initializer, only_consumer, producer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_window_mask"]

_NAME = "fold-window-mask"
_LARGEST = 1 << 22  # elements of bias + mask: 16 MB


def fold_window_mask(model: ir.Model) -> PassResult:
    """Rewrite the attention of shifted windows, in place."""
    changed, why = 0, "no mask is repeated for every image"
    for add in list(model.graph):
        if add.op_type != "Add":
            continue
        for index in (0, 1):
            table, scores = _table(add.inputs[index]), add.inputs[1 - index]
            if table is None or scores is None or not _fits(scores, table):
                continue
            if table.size > _LARGEST:
                why = f"bias and mask of all windows would be {table.size:,} numbers"
                continue
            _rewrite(model.graph, add, scores, table)
            changed += 1
            break
    return PassResult(_NAME, changed, None if changed else why)


def _table(value: ir.Value | None) -> np.ndarray | None:
    """bias + mask, (1, windows, heads, N, N), of the sum that is added to the scores; None if it is something else."""
    mask = _mask(value)
    if mask is not None:
        return mask
    add = producer(value, "Add")
    if add is None or value is None or only_consumer(value) is None:
        return None
    for index in (0, 1):
        bias, mask = constant(add.inputs[1 - index]), _mask(add.inputs[index])
        if bias is not None and mask is not None and bias.ndim == 4 and bias.shape[0] == 1:
            return np.asarray(bias[:, np.newaxis] + mask)
    return None


def _mask(value: ir.Value | None) -> np.ndarray | None:
    """The constant (1, windows, 1, N, N) that is expanded to the batch and reshaped to (batch windows, 1, N, N)."""
    reshape = producer(value, "Reshape")
    expand = producer(None if reshape is None else reshape.inputs[0], "Expand")
    mask = constant(None if expand is None else expand.inputs[0])
    if expand is None or value is None or mask is None or mask.ndim != 5 or mask.shape[0] != 1 or mask.shape[2] != 1:
        return None
    expanded, made = expand.outputs[0].shape, value.shape
    if expanded is None or made is None or list(expanded)[1:] != list(mask.shape[1:]):
        return None
    return mask if list(made)[1:] == list(mask.shape[2:]) else None


def _fits(scores: ir.Value, table: np.ndarray) -> bool:
    """Whether scores are (batch windows, heads, N, N) for a table of (1, windows, heads or 1, N, N)."""
    shape = None if scores.shape is None or constant(scores) is not None else list(scores.shape)
    if shape is None or len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        return False
    return shape[2:] == list(table.shape[3:]) and table.shape[2] in (1, shape[1])


def _rewrite(graph: ir.Graph, add: ir.Node, scores: ir.Value, table: np.ndarray) -> None:
    import onnx_ir as ir

    name, out = add.name or "Add", add.outputs[0]
    assert scores.shape is not None
    heads, tokens = scores.shape[1], table.shape[-1]
    apart = np.array([-1, table.shape[1], heads, tokens, tokens], dtype=np.int64)  # (batch, windows, heads, N, N)
    together = np.array([-1, heads, tokens, tokens], dtype=np.int64)  # (batch windows, heads, N, N)
    split = ir.node("Reshape", [scores, new_initializer(graph, f"{name}.windows", apart)], name=f"{name}/apart")
    masked = ir.node("Add", [split.outputs[0], new_initializer(graph, f"{name}.mask", table)], name=f"{name}/mask")
    whole = new_initializer(graph, f"{name}.heads", together)
    joined = ir.node("Reshape", [masked.outputs[0], whole], name=f"{name}/together")
    for node in (split, masked, joined):
        value = node.outputs[0]
        value.name, value.type = f"{node.name}_output", out.type
        value.shape = scores.shape if node is joined else ir.Shape([None, *(int(size) for size in apart[1:])])
    graph.insert_before(add, [split, masked, joined])
    ir.convenience.replace_all_uses_with(out, joined.outputs[0])
    graph.remove(add, safe=True)
