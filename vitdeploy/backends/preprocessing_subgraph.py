"""The preprocessing of an ONNX form as a graph of its own: from `image` to `pixel_values`."""

from __future__ import annotations

from typing import Any

from vitdeploy.core.specs import PIXEL_VALUES

__all__ = ["preprocessing_of"]


def preprocessing_of(model: Any) -> Any | None:
    """The `onnx.ModelProto` of what leads to the pixel values; None where a form has no preprocessing."""
    import onnx

    wanted = {PIXEL_VALUES}
    nodes = []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= set(node.input) | {name for inner in _inner(node) for name in inner.input}
    if not nodes:
        return None
    output = onnx.helper.make_tensor_value_info(PIXEL_VALUES, onnx.TensorProto.FLOAT, ["batch", 3, None, None])
    weights = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    part = onnx.helper.make_graph(nodes[::-1], "preprocess", list(model.graph.input), [output], weights)
    # Functions and metadata stay behind: the preprocessing uses neither.
    return onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)


def _inner(node: Any) -> list[Any]:
    """The nodes of a node's subgraphs, at any depth."""
    found = []
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.HasField("g") else ():
            found += [inner, *_inner(inner)]
    return found
