"""Parts of an ONNX form as graphs of their own: from `image` to `pixel_values`, and from some value to the answer."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.bundle.onnx_messages import Message
from vitdeploy.bundle.wire import LENGTH, Data, fields, framed, numbered
from vitdeploy.core.specs import PIXEL_VALUES

__all__ = ["counts_images", "head_of", "inner_nodes", "preprocessing_of"]

_FLOAT = 1  # ONNX's number of the type
_Sizes = Sequence[int | str | None]


def preprocessing_of(model: Message) -> bytes | None:
    """The serialised `ModelProto` of what leads to the pixel values; None where a form has no preprocessing.

    Args:
        model: the whole form, as `read_model` reads it.
    """
    inputs = [(value.name, value.raw) for value in model.graph.input]
    return _part(model, "preprocess", inputs, [_described(PIXEL_VALUES, ("batch", 3, None, None))])


def head_of(model: Message, value: str, shape: tuple[int, int]) -> bytes | None:
    """The serialised `ModelProto` of what a form makes of a value (batch, *shape) float32; None where that is nothing.

    A node that asks the pixel values for the number of images (`counts_images`) asks this value.
    """
    outputs = [(output.name, output.raw) for output in model.graph.output]
    return _part(model, "head", [_described(value, ("batch", *shape))], outputs, counted=value)


def counts_images(node: Message) -> bool:
    """Whether it gives the first size of the pixel values, and nothing else."""
    if node.op_type != "Shape" or node.domain not in ("", "ai.onnx") or node.input != [PIXEL_VALUES]:
        return False
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return bounds.get("start", 0) == 0 and bounds.get("end") == 1


def _part(
    model: Message,
    name: str,
    inputs: list[tuple[str, Data]],
    outputs: list[tuple[str, Data]],
    counted: str | None = None,
) -> bytes | None:
    """What leads from some values to others, each by its name and its serialised `ValueInfoProto`."""
    begins = {value for value, _ in inputs}
    wanted, nodes = {value for value, _ in outputs}, list[Data]()
    for node in reversed(model.graph.node):
        if wanted & set(node.output) - begins:
            asks = counted if counted is not None and counts_images(node) else None
            nodes.append(node.raw if asks is None else _reading(node, asks))
            read = node.input if asks is None else [asks]
            wanted |= {*read, *(name for inner in inner_nodes(node) for name in inner.input)}
    if not nodes:
        return None
    weights = [tensor.raw for tensor in model.graph.initializer if tensor.name in wanted]
    graph = [framed(1, node) for node in nodes[::-1]] + [framed(2, name.encode())]
    graph += [framed(5, weight) for weight in weights]
    graph += [framed(11, value) for _, value in inputs] + [framed(12, value) for _, value in outputs]
    parts = [numbered(1, model.ir_version)] + [framed(8, opset.raw) for opset in model.opset_import]
    return b"".join([*parts, framed(7, b"".join(graph)), *(framed(25, function.raw) for function in model.functions)])


def _reading(node: Message, value: str) -> bytes:
    """A serialised node of one input with this value in its place."""
    kept = [
        bytes(node.raw[begin:stop])
        for field, wire, begin, _, stop in fields(node.raw, 0, len(node.raw))
        if (field, wire) != (1, LENGTH)
    ]
    return b"".join([framed(1, value.encode()), *kept])


def _described(name: str, sizes: _Sizes) -> tuple[str, bytes]:
    """The name and the `ValueInfoProto` of a float32 tensor; a size may have a name, or be open (None)."""
    dims = [
        b"" if size is None else numbered(1, size) if isinstance(size, int) else framed(2, size.encode())
        for size in sizes
    ]
    shape = b"".join(framed(1, dim) for dim in dims)
    kind = framed(1, numbered(1, _FLOAT) + framed(2, shape))  # TypeProto.tensor_type
    return name, framed(1, name.encode()) + framed(2, kind)


def inner_nodes(node: Message) -> list[Message]:
    """The nodes of a node's subgraphs, at any depth."""
    found = list[Message]()
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + attribute.graphs:
            for inner in graph.node:
                found += [inner, *inner_nodes(inner)]
    return found
