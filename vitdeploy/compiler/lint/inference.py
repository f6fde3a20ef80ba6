"""Types and shapes of all values of a graph, and the numbers of those that are shapes, in one walk.

Exporters leave shapes out, or note them wrong, and compute them from the batch at run time: Shape, Gather, Concat,
Reshape. Here each node's operator says what it gives for the types, shapes and small constants that it gets, in the
order of the graph, and what follows from shapes alone is computed on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.compiler.passes.values import constant

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["infer"]

_LARGEST = 64  # elements of what is computed here: shapes, not weights
_ON_SHAPES = frozenset(
    (
        *("Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather"),
        *("Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceProd"),
        *("Reshape", "Slice", "Sqrt", "Squeeze", "Sub", "Unsqueeze", "Where"),
    )
)


def infer(model: ir.Model) -> None:
    """Give the values of `model` types and shapes in place; `const_value` too where they follow from shapes.

    What an operator does not say stays as the exporter noted it.
    """
    _Walk(model).over(model.graph)


class _Walk:
    def __init__(self, model: ir.Model) -> None:
        import onnx

        self._opsets = {"" if name == "ai.onnx" else name: number for name, number in model.opset_imports.items()}
        self._imports = [onnx.helper.make_opsetid(name, number) for name, number in self._opsets.items()]
        self._ir_version = model.ir_version or 10
        self._parts: dict[ir.Value, list[int | None]] = {}  # shapes of which some sizes are known

    def over(self, graph: ir.Graph) -> None:
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type.name == "GRAPH":
                    self.over(attribute.as_graph())
            self._infer(node)
            self._compute(node)

    def _infer(self, node: ir.Node) -> None:
        import onnx
        import onnx_ir as ir

        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)
            given = {value.name: proto for value in node.inputs if value is not None and (proto := _type(value))}
            data = {v.name: ir.to_proto(v.const_value) for v in node.inputs if v is not None and _is_small(v)}
            found = onnx.shape_inference.infer_node_outputs(
                schema, ir.to_proto(node), given, data, opset_imports=self._imports, ir_version=self._ir_version
            )
        except Exception:  # no such operator here, or types that contradict it: the exporter's note stays
            return
        for value in node.outputs:
            proto = found.get(value.name)
            if proto is not None and proto.HasField("tensor_type"):
                _note(value, proto.tensor_type)

    def _compute(self, node: ir.Node) -> None:
        import onnx_ir as ir

        if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or node.outputs[0].const_value is not None:
            return
        array = self._evaluated(node)
        if array is None:
            array = self._from_parts(node)
        if array is not None and array.size <= _LARGEST:
            node.outputs[0].const_value = ir.tensor(np.array(array, order="C"))
            node.outputs[0].shape = ir.Shape(array.shape)

    def _from_parts(self, node: ir.Node) -> np.ndarray | None:
        """Follow sizes that are known beside others that are not: the batch of an image of any size."""
        sizes = self._sizes(node)
        if sizes is None or len(node.outputs[0].shape or ()) > 1:  # a table of numbers is no shape
            return None
        self._parts[node.outputs[0]] = sizes
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        indices = constant(node.inputs[1]) if node.op_type == "Gather" else None
        scalar = node.op_type == "Squeeze" or (indices is not None and indices.ndim == 0)
        return np.array(known[0] if scalar and len(known) == 1 else known, np.int64)

    def _sizes(self, node: ir.Node) -> list[int | None] | None:
        first = node.inputs[0] if node.inputs else None
        if first is None:
            return None
        if node.op_type == "Shape":
            if first.shape is None:
                return None
            start, end = (node.attributes.get(name) for name in ("start", "end"))
            part = slice(0 if start is None else start.as_int(), None if end is None else end.as_int())
            return [size if isinstance(size, int) else None for size in first.shape][part]
        if node.op_type == "Concat":
            parts = [self._part(value) for value in node.inputs]
            return None if None in parts else [size for part in parts for size in part or ()]
        sizes = self._part(first)
        if sizes is None or node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
            return sizes
        return _taken(node, sizes) if node.op_type == "Gather" else None

    def _part(self, value: ir.Value | None) -> list[int | None] | None:
        array = constant(value)
        if value is None or array is None:
            return None if value is None else self._parts.get(value)
        return (
            array.reshape(-1).tolist()
            if array.dtype == np.int64 and array.ndim < 2 and array.size <= _LARGEST
            else None
        )

    def _evaluated(self, node: ir.Node) -> np.ndarray | None:
        import onnx_ir as ir
        from onnx.reference import ReferenceEvaluator

        inputs = [value for value in node.inputs if value is not None]
        if node.op_type not in _ON_SHAPES or not inputs or not all(map(_is_small, inputs)):
            return None
        if not any(value.producer() is not None for value in inputs):
            return None  # of weights alone, which is no shape
        feeds = {value.name: value.const_value.numpy() for value in inputs if value.const_value is not None}
        try:
            (result,) = ReferenceEvaluator(ir.to_proto(node), opsets=self._opsets).run(None, feeds)
        except Exception:  # sizes that contradict each other: said by who runs it
            return None
        return np.asarray(result)


def _taken(node: ir.Node, sizes: list[int | None]) -> list[int | None] | None:
    """What a Gather with constant indices takes out of a shape."""
    index = constant(node.inputs[1])
    if index is None or any(not -len(sizes) <= place < len(sizes) for place in index.reshape(-1).tolist()):
        return None
    return [sizes[place] for place in index.reshape(-1).tolist()]


def _is_small(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size <= _LARGEST


def _type(value: ir.Value) -> Any:
    """A value's type and shape as protobuf has them; None where the type is not known."""
    import onnx

    if value.dtype is None:
        return None
    sizes = None if value.shape is None else [size if isinstance(size, int) else None for size in value.shape]
    return onnx.helper.make_tensor_type_proto(int(value.dtype), sizes)


def _note(value: ir.Value, tensor: Any) -> None:
    """Take up what was inferred; unknown sizes do not take the place of noted ones."""
    import onnx_ir as ir

    if tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if not tensor.HasField("shape"):
        return
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
    noted = value.shape if value.shape is not None and len(value.shape) == len(sizes) else [None] * len(sizes)
    value.shape = ir.Shape([old if new is None else new for new, old in zip(sizes, noted, strict=True)])
