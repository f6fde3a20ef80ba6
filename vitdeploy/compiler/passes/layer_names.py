"""Name nodes and weights after the module that they come from.

`node_MatMul_12` with the weight `val_13` becomes `vit.layers.0.attention.q_proj/MatMul` with
`vit.layers.0.attention.q_proj.weight`: what a person can find in the checkpoint, and what calibration and reports
refer to. A weight that several nodes read keeps the name of the first. The exporter's notes on each node (source
lines, with paths of the machine that exported) are dropped.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from vitdeploy.compiler.passes.result import PassResult

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["name_layers", "scope_of"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPER = "model."  # the exported module holds the checkpoint's module under this name
_FOLDED = ("val_", "_", "arg")


def scope_of(node: ir.Node) -> str:
    """The module that a node comes from as PyTorch's exporter noted it; "" where it did not."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    module = scopes[-2] if len(scopes) >= 2 else ""
    if str(module).startswith("_empty_nn_module"):  # the exporter's own operations on shapes
        return ""
    return str(module).removeprefix("model").removeprefix(".")


def name_layers(model: ir.Model) -> PassResult:
    """Rename nodes and initializers in place."""
    graph = model.graph
    taken: set[str] = set()

    def unique(name: str) -> str:
        candidate, count = name, 1
        while candidate in taken:
            candidate, count = f"{name}_{count}", count + 1
        taken.add(candidate)
        return candidate

    weights: dict[str, str] = {}
    for node in graph:
        scope = scope_of(node)
        node.name = unique(f"{scope}/{node.op_type}" if scope else node.op_type)
        for value in node.inputs:
            if value is None or not value.is_initializer() or value.name is None or value.name in weights:
                continue
            if value.name.startswith(_FOLDED):
                shape = () if value.shape is None else value.shape
                kind = "weight" if len(shape) > 1 and node.op_type in ("MatMul", "Gemm", "Conv") else "constant"
                weights[value.name] = f"{scope}.{kind}" if scope else kind
            else:
                weights[value.name] = value.name.removeprefix(_WRAPPER)
    changed = 0
    for old, new in weights.items():
        name = unique(new)
        if name != old:
            graph.initializers[old].name = name
            changed += 1
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for index, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.name = f"{node.name}:{index}" if index else f"{node.name}_output"
    return PassResult("name-layers", changed)
