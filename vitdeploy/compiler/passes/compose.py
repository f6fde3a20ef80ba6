"""Put the preprocessing graph in front of the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import PIXEL_VALUES

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["exchange_preprocessing", "prepend_preprocessing"]


def prepend_preprocessing(preprocessing: ir.Model, model: ir.Model) -> ir.Model:
    """Feed the model's only input from the preprocessing's only output; both arguments are used up.

    Raises:
        ModelError: the preprocessing makes another size than the model takes.
    """
    import onnx_ir as ir

    before, graph = preprocessing.graph, model.graph
    made, taken = before.outputs[0], graph.inputs[0]
    made_size, taken_size = _size(made), _size(taken)
    if made_size != taken_size:
        raise ModelError(
            f"the image processor makes {made_size[0]}x{made_size[1]} pixels, the model takes"
            f" {taken_size[0]}x{taken_size[1]}",
            hint="mend preprocessor_config.json (size, crop_size) so that it fits the model's image_size",
        )
    clash = set(before.initializers) & set(graph.initializers)
    assert not clash, f"names in both graphs: {sorted(clash)[:3]}"
    for name, value in list(before.initializers.items()):
        del before.initializers[name]
        graph.register_initializer(value)
    inputs = list(before.inputs)
    nodes = list(before)
    before.outputs.clear()
    before.inputs.clear()
    before.remove(nodes)
    ir.convenience.replace_all_uses_with(taken, made)
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    first = next(iter(graph))
    graph.insert_before(first, nodes)
    made.name = PIXEL_VALUES
    return model


def exchange_preprocessing(preprocessing: ir.Model, model: ir.Model) -> ir.Model:
    """Take the preprocessing off a model that has one and put another in its place; both arguments are used up."""
    import onnx_ir as ir

    graph = model.graph
    image = graph.inputs[0]
    made = next(value for node in graph for value in node.outputs if value.name == PIXEL_VALUES)
    bare = ir.Value(name=PIXEL_VALUES, type=made.type, shape=made.shape)
    ir.convenience.replace_all_uses_with(made, bare)
    _remove_unused(graph)
    graph.inputs.clear()
    graph.inputs.append(bare)
    whole = prepend_preprocessing(preprocessing, model)
    ir.convenience.replace_all_uses_with(image, graph.inputs[0])  # what else reads the image's shape
    return whole


def _remove_unused(graph: ir.Graph) -> None:
    """Remove nodes and constants that nothing reads; what the branches of an unused If read counts for nothing."""
    outputs = set(graph.outputs)
    for node in reversed(graph):
        if any(value in outputs or value.uses() for value in node.outputs):
            continue
        for attribute in node.attributes.values():
            if attribute.type.name == "GRAPH":
                branch = attribute.as_graph()
                branch.outputs.clear()
                for step in reversed(branch):
                    branch.remove(step, safe=True)
        graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]


def _size(value: ir.Value) -> tuple[object, object]:
    shape = value.shape
    assert shape is not None and len(shape) == 4, "pixel values are (batch, channels, height, width)"
    return shape[2], shape[3]
