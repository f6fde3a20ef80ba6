"""Nodes and weights are called after the modules that they come from, and nothing is told of the exporting machine."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from vitdeploy.compiler.passes.class_token import _rows_from
from vitdeploy.compiler.passes.layer_names import name_layers, scope_of

SCOPES = {
    "first": ["", "model", "model.vit.fc", "linear"],
    "second": ["", "model", "model.vit.fc", "linear"],
    "third": ["", "model", "model.vit.fc", "linear_1"],
    "fourth": ["", "_empty_nn_module_stack_from_metadata_hook", "add"],
}


def exported() -> ir.Model:
    """As PyTorch's exporter writes it: weights by their path in the wrapper, folded ones by a number."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n,2] image) => (float[n,2] logits)
        <float[2,2] "model.vit.fc.weight" = {1, 2, 3, 4}, float[2,2] val_1 = {1, 0, 0, 1}, float[2] val_2 = {1, 2},
         float[2,2] shared = {1, 1, 1, 1}> {
            a = MatMul (image, "model.vit.fc.weight")
            b = MatMul (a, val_1)
            c = MatMul (b, shared)
            logits = Add (c, val_2)
        }"""
    )
    for node, (name, scopes) in zip(model.graph, SCOPES.items(), strict=True):
        node.name, node.doc_string = name, "/home/somebody/model.py"
        node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(scopes)
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/somebody/model.py"
        node.outputs[0].metadata_props["from"] = "/home/somebody"
    return model


def test_names_are_those_of_modules() -> None:
    model = exported()
    assert [scope_of(node) for node in model.graph] == ["vit.fc", "vit.fc", "vit.fc", ""]
    result = name_layers(model)
    assert [node.name for node in model.graph] == ["vit.fc/MatMul", "vit.fc/MatMul_1", "vit.fc/MatMul_2", "Add"]
    assert [node.inputs[1].name for node in model.graph] == ["vit.fc.weight", "vit.fc.weight_1", "shared", "constant"]
    assert set(model.graph.initializers) == {"vit.fc.weight", "vit.fc.weight_1", "shared", "constant"}
    outputs = ["vit.fc/MatMul_output", "vit.fc/MatMul_1_output", "vit.fc/MatMul_2_output", "logits"]
    assert [node.outputs[0].name for node in model.graph] == outputs
    assert result.changed == 3, "three weights have another name"
    assert "somebody" not in str(ir.to_proto(model))


@pytest.mark.parametrize(("end", "rows"), [(6, 1), (2**63 - 1, 1), (5, None)])
def test_all_rows_behind_the_class_token_end_where_the_tokens_do(end: int, rows: int | None) -> None:
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n,6,4] tokens) => (float[n,r,4] patches)
        <int64[1] start = {{1}}, int64[1] end = {{{end}}}, int64[1] axis = {{1}}> {{
            patches = Slice (tokens, start, end, axis)
        }}"""
    )
    (node,) = model.graph
    assert _rows_from(node.outputs[0], node.inputs[0]) == rows
