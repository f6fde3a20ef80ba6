"""Which node of a graph is the first to differ from PyTorch, and by how much.

Nodes are named after the module that they come from, so the last node of a module gives what the module gives. Every
module's result is kept while PyTorch runs, every such node's while the graph runs, and the two are compared in the
graph's order. A module that passes have rewritten (the query projection, which has the scale in it; a block whose
LayerScale was folded) gives something else by design, and the modules behind it are looked at instead.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.compiler.frontend.parity import compare
from vitdeploy.compiler.passes.save import save

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["first_difference"]

_REWRITTEN = ("q_proj", "query", "layer_scale", "embeddings", "qkv")


def first_difference(
    module: Any, graph: ir.Model, pixels: np.ndarray, scratch: Path, tolerance: float, run: Callable[[], Any]
) -> str | None:
    """The first node whose output is off by more than `tolerance` of its range, in words; None if there is none.

    Args:
        module: the checkpoint's module.
        graph: the model's graph, from pixel_values.
        pixels: (batch, 3, height, width).
        run: runs the module on the same pixels.
    """
    theirs = _outputs_of_modules(module, run)
    candidates = [(node, name) for node, name in _last_nodes(graph) if name in theirs and not _is_rewritten(name)]
    ours = _run(graph, [node.outputs[0] for node, _ in candidates], pixels, scratch)
    for (node, name), value in zip(candidates, ours, strict=True):
        reference = theirs[name]
        if value.size != reference.size or value.shape[-1] != reference.shape[-1]:
            continue
        check = compare(name, value.reshape(-1, 1), reference.reshape(-1, 1), tolerance, of="its range")
        if not check.passed:
            return f"the first node that differs is {node.name}, by {check.value:.2g} of its range"
    return None


def _is_rewritten(name: str) -> bool:
    return any(word in name.rpartition(".")[2] for word in _REWRITTEN)


def _outputs_of_modules(module: Any, run: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Of every module that gives one tensor, by its name."""
    import torch

    kept: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                kept[name] = output.detach().numpy()

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in module.named_modules() if name]
    try:
        with torch.inference_mode():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def _last_nodes(graph: ir.Model) -> list[tuple[ir.Node, str]]:
    """The last node of each module's own operations, and the module's name, in the graph's order."""
    last: dict[str, ir.Node] = {}
    for node in graph.graph:
        scope = (node.name or "").rpartition("/")[0]
        last[scope] = node
    order = {node: index for index, node in enumerate(graph.graph)}
    return sorted(((node, scope) for scope, node in last.items()), key=lambda pair: order[pair[0]])


def _run(graph: ir.Model, values: list[ir.Value], pixels: np.ndarray, scratch: Path) -> list[np.ndarray]:
    from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner

    outputs = list(graph.graph.outputs)
    graph.graph.outputs.extend(value for value in values if value not in outputs)
    try:
        save(graph, scratch / "watched.onnx", external=True)
    finally:
        del graph.graph.outputs[len(outputs) :]
    with OnnxRuntimeRunner(scratch / "watched.onnx") as runner:
        made = runner.infer({"pixel_values": pixels})
    return [made[value.name or ""] for value in values]
