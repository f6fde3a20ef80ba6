"""An ONNX graph that may come from a stranger, read node by node: each node has to be the one that is expected.

What is read means what ONNX says it means, with its defaults, or the graph is refused, and the node at fault is named.
Constants are finite and not so large that the product of two overflows.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.subgraphs import counts_images, inner_nodes
from vitdeploy.bundle.onnx_messages import Message, to_array
from vitdeploy.core.errors import ModelError

__all__ = ["LARGEST", "Array", "GraphReader", "refused"]

Array = npt.NDArray[Any]
LARGEST = 1e18  # of a constant: the product of two is finite
_OPSET = 17  # the first with LayerNormalization; what Softmax and Pad take has not changed since 18
_CONTRIBUTED = "com.microsoft"
_DEFAULTS: dict[str, Any] = {
    "alpha": 1.0,
    "beta": 1.0,
    "epsilon": 1e-5,
    "axis": -1,
    "group": 1,
    "approximate": b"none",
    "mode": b"constant",
    "dilations": [1, 1],
    "strides": [1, 1],
    "pads": [0, 0, 0, 0],
    "stash_type": 1,
}
# Of the operations that are read.
_ATTRIBUTES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("Add", "MatMul", "MatMulIntegerToFloat", "Mul", "Sigmoid", "Slice"), frozenset()),
    "Conv": frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"}),
    "DequantizeLinear": frozenset({"axis", "block_size", "output_dtype"}),
    "Gather": frozenset({"axis"}),
    "Gelu": frozenset({"approximate"}),
    "Gemm": frozenset({"alpha", "beta", "transA", "transB"}),
    "LayerNormalization": frozenset({"axis", "epsilon", "stash_type"}),
    "Pad": frozenset({"mode"}),
    "QuantizeLinear": frozenset({"axis", "block_size", "output_dtype", "precision", "saturate"}),
    "Reshape": frozenset({"allowzero"}),
    "Softmax": frozenset({"axis"}),
    "Transpose": frozenset({"perm"}),
}


class GraphReader:
    """What reads one kind of model extends this.

    Args:
        model: as `read_model` reads it.

    `where` is the node that is looked at, for a message.
    """

    def __init__(self, model: Message) -> None:
        graph = model.graph
        self.where = "the graph"
        self._opsets = {entry.domain.replace("ai.onnx", ""): entry.version for entry in model.opset_import}
        self._functions = {function.name for function in model.functions}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._readers: dict[str, list[Any]] = {}
        self._makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        self._graph = graph
        self._seen: set[str] = set()  # outputs of the nodes that were read

    def _well_formed(self) -> None:
        """Every name is made once, before it is read: what follows relies on it."""
        if not self._graph.node or len(self._graph.output) != 1:
            raise refused("it has no nodes, or another number of outputs than one")
        if self._opsets.get("", 0) < _OPSET:
            raise refused(f"its operators are of opset {self._opsets.get('', 0)}, before {_OPSET}")
        made = {*self._stored, *(value.name for value in self._graph.input), ""}
        if len(self._stored) != len(self._graph.initializer):
            raise refused("two constants have the same name")
        elsewhere = {tensor.name for tensor in self._graph.initializer if tensor.external_data or tensor.data_location}
        for node in self._graph.node:
            self.where = _name(node)
            self._expect(node, elsewhere.isdisjoint(node.input), "one of its inputs is in another file")
            outputs = [name for name in node.output if name]
            fits = outputs and made.isdisjoint(outputs) and len({*outputs}) == len(outputs)
            self._expect(node, bool(fits), "it makes nothing, or what another node makes")
            self._expect(node, made.issuperset(node.input), "it reads what no node before it makes")
            made.update(outputs)

    def _next(self, value: str, operation: str, *, among: tuple[str, ...] = (), **attributes: Any) -> Any:
        """The only node that reads a value (beside nodes of the operations `among`), which has to be that operation."""
        readers = self._readers.get(value, [])
        found = [node for node in readers if node.op_type == operation]
        if len(found) != 1 or any(node.op_type not in among for node in readers if node is not found[0]):
            wrong = next((node for node in readers if node.op_type not in (operation, *among)), None)
            if wrong is None:
                self._unread(value, operation)
            self._refuse(wrong, f"{operation} was expected behind {value}")
        self._expect(found[0], found[0].output[0] not in self._seen, "it is there twice")
        self._take(found[0], operation)
        for name, wanted in attributes.items():
            self._expect(found[0], self._attribute(found[0], name) == wanted, f"its {name} is not {wanted!r}")
        return found[0]

    def _take(self, node: Any, operation: str) -> None:
        self.where = _name(node)
        self._expect(node, node.op_type == operation and len(node.output) == 1, f"{operation} was expected")
        home = _CONTRIBUTED if operation == "MatMulIntegerToFloat" else ""
        own = operation not in self._functions and node.domain.replace("ai.onnx", "") == home and home in self._opsets
        self._expect(node, own, f"it is not the {operation} of {home or 'ONNX'}")
        names = [attribute.name for attribute in node.attribute]
        fits = len({*names}) == len(names) and _ATTRIBUTES[operation].issuperset(names)
        self._expect(node, fits, "it has an attribute twice, or one that ONNX does not know")
        self._seen.add(node.output[0])

    def _expect(self, node: Any, holds: bool, otherwise: str) -> None:
        if not holds:
            self._refuse(node, otherwise)

    def _refuse(self, node: Any, why: str) -> NoReturn:
        raise refused(f"{_name(node)}: {why}")

    def _unread(self, value: str, operation: str) -> NoReturn:
        why = f"{value} is not read by one {operation}"
        raise refused(f"{_name(self._makers[value])}: {why}" if value in self._makers else why)

    def _nothing_left(self, start: str, end: str | None) -> list[Any]:
        """Every node that depends on the value `start` has to be one that was read, or to read `end` alone: these."""
        behind, others, rest = {start}, {value.name for value in self._graph.input} - {start}, set[str]()
        found = []
        for node in self._graph.node:  # in the order of computation
            inputs = {*node.input, *(name for inner in inner_nodes(node) for name in inner.input)}
            if end is not None and counts_images(node) and "Shape" not in self._functions:
                inputs = {end}
            if node.output[0] in self._seen:
                (rest if node.output[0] == end else behind).update(node.output)
            elif inputs & {*rest, end}:
                self._expect(node, not inputs & (behind | others), "it reads the layers' end and something before it")
                rest.update(node.output)
                found.append(node)
            else:
                self._expect(node, not inputs & behind, "it has no place in a plain ViT")
                others.update(node.output if inputs & others else ())
        made = self._graph.output[0].name
        maker = self._makers.get(made, self._graph.node[-1])
        self._expect(maker, end is None or made in rest - {end}, "it is not made of what the layers make")
        return found

    def _attribute(self, node: Any, name: str) -> Any:
        for attribute in node.attribute:
            if attribute.name == name:
                value = {1: attribute.f, 2: attribute.i, 3: attribute.s}.get(attribute.type)
                return list(attribute.ints) if value is None else value
        return _DEFAULTS.get(name, 0)

    def _given(self, node: Any, place: int) -> bool:
        return place < len(node.input) and bool(node.input[place])

    def _reshapes(self, node: Any, shape: tuple[int, ...]) -> None:
        """Whether a Reshape makes (images, *shape), where one size may be -1 and, as ONNX has it, 0 what was there."""
        asked = self._sizes(node, 1)
        self._expect(node, len(asked) == 1 + len(shape), f"it makes {len(asked)} dimensions")
        zero = self._attribute(node, "allowzero")
        self._expect(node, zero in (0, 1), f"its allowzero is {zero}")
        kept = zero == 0 and asked[0] == 0
        # the images, or all but them, may be what is left
        named = asked[1:] == list(shape) and (asked[0] == -1 or kept)
        left = kept and asked.count(-1) == 1 and all(a in (b, -1) for a, b in zip(asked[1:], shape, strict=True))
        self._expect(node, named or left, f"it does not make (images, {', '.join(map(str, shape))})")

    def _constant(self, node: Any, place: int) -> Array:
        name = node.input[place] if place < len(node.input) else ""
        if name not in self._stored:
            self._refuse(node, f"its input {place} is not a constant")
        self.where = f"{_name(node)}, its input {place}"
        tensor = self._stored[name]
        self._expect(node, min(tensor.dims, default=0) >= 0, f"its input {place} has a negative size")
        array = to_array(tensor)
        finite = array.dtype.kind != "f" or bool((np.abs(array) <= LARGEST).all())  # not where it is not a number
        self._expect(node, finite, f"its input {place} is not finite, or too large to compute with")
        return array

    def _sizes(self, node: Any, place: int) -> list[int]:
        array = self._constant(node, place)
        self._expect(node, array.dtype == np.int64 and array.ndim == 1, f"its input {place} is not a list of sizes")
        return [int(size) for size in array]

    def _floats(self, node: Any, place: int) -> Array:
        array = self._constant(node, place)
        self._expect(node, array.dtype == np.float32, f"its input {place} is {array.dtype}, not float32")
        return array

    def _one(self, node: Any, place: int) -> Any:
        """A number, which ONNX Runtime takes as a vector of one too."""
        array = self._constant(node, place)
        self._expect(node, array.size == 1 and array.ndim < 2, f"its input {place} is not one number")
        return array.reshape(())[()]

    def _with_bias(self, node: Any) -> tuple[Array, Array]:
        """Weights (outputs, ...) of a Conv or Gemm, and their biases, zeros where it has none."""
        weight = self._floats(node, 1)
        return weight, self._floats(node, 2) if self._given(node, 2) else np.zeros(len(weight), np.float32)


def _name(node: Any) -> str:
    return f"node {node.name or (*node.output, '?')[0]!r} ({node.op_type})"


def refused(why: str) -> ModelError:
    return ModelError(
        f"the kernels run plain ViTs in INT8 only, and this is not one: {why}",
        hint="backend='onnxruntime' and 'openvino' run every form",
    )
