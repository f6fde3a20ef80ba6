"""Parts of an ONNX form as graphs of their own: from `image` to `pixel_values`, and from some value to the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.core.specs import PIXEL_VALUES

__all__ = ["counts_images", "head_of", "inner_nodes", "preprocessing_of"]


def preprocessing_of(model: Any, large: Mapping[str, memoryview] | None = None) -> Any | None:
    """The `onnx.ModelProto` of what leads to the pixel values; None where a form has no preprocessing.

    Args:
        model: the whole form.
        large: the raw data of those initializers that it was parsed without, by name; see `split_weights`.
    """
    import onnx

    output = onnx.helper.make_tensor_value_info(PIXEL_VALUES, onnx.TensorProto.FLOAT, ["batch", 3, None, None])
    return _part(model, "preprocess", list(model.graph.input), [output], large)


def head_of(model: Any, value: str, shape: tuple[int, int], large: Mapping[str, memoryview] | None = None) -> Any:
    """The `onnx.ModelProto` of what a form makes of a value (batch, *shape) float32; the arguments as above.

    A node that asks the pixel values for the number of images (`counts_images`) asks this value.
    """
    import onnx

    begin = onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, ["batch", *shape])
    return _part(model, "head", [begin], list(model.graph.output), large, counted=value)


def counts_images(node: Any) -> bool:
    """Whether it gives the first size of the pixel values, and nothing else."""
    if node.op_type != "Shape" or node.domain not in ("", "ai.onnx") or list(node.input) != [PIXEL_VALUES]:
        return False
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return bounds.get("start", 0) == 0 and bounds.get("end") == 1


def _part(
    model: Any,
    name: str,
    inputs: list[Any],
    outputs: list[Any],
    large: Mapping[str, memoryview] | None,
    counted: str | None = None,
) -> Any | None:
    """What leads from some values to others; None where that is nothing."""
    import onnx

    begins = {value.name for value in inputs}
    wanted, nodes = {value.name for value in outputs}, []
    for each in reversed(model.graph.node):
        if wanted & set(each.output) - begins:
            node = each
            if counted is not None and counts_images(each):
                node = type(each)()
                node.CopyFrom(each)
                node.input[0] = counted
            nodes.append(node)
            wanted |= set(node.input) | {name for inner in inner_nodes(node) for name in inner.input}
    if not nodes:
        return None
    weights = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    part = onnx.helper.make_graph(nodes[::-1], name, inputs, outputs, weights)
    for tensor in part.initializer:
        if large and tensor.name in large:
            tensor.raw_data = bytes(large[tensor.name])
    return onnx.helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )


def inner_nodes(node: Any) -> list[Any]:
    """The nodes of a node's subgraphs, at any depth."""
    found = []
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.HasField("g") else ():
            found += [inner, *inner_nodes(inner)]
    return found
