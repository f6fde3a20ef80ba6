"""Write ONNX nodes one call at a time: `tape.MatMul(a, b)` adds a node and returns its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitdeploy.core.errors import require

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Tape"]


class Tape:
    """A growing list of nodes and constants, every name under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._ir = require("onnx_ir", extra="build")
        self._prefix = prefix
        self._counts: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.nodes: list[ir.Node] = []

    @property
    def initializers(self) -> list[ir.Value]:
        """The constants, each once."""
        return list(self._constants.values())

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def add(*inputs: ir.Value | None, **attributes: Any) -> ir.Value:
            name = self._name(op_type)
            node = self._ir.node(op_type, list(inputs), attributes=attributes, name=name)
            output: ir.Value = node.outputs[0]
            output.name = name
            self.nodes.append(node)
            return output

        return add

    def constant(self, array: npt.NDArray[Any], name: str) -> ir.Value:
        """An initializer; equal arrays share one."""
        array = np.ascontiguousarray(array) if array.ndim else array
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = self._ir.tensor(array)
            self._constants[key] = self._ir.Value(
                name=self._name(name),
                const_value=tensor,
                type=self._ir.TensorType(tensor.dtype),
                shape=tensor.shape,
            )
        return self._constants[key]

    def split(self, value: ir.Value, parts: int, axis: int) -> list[ir.Value]:
        """Cut `value` into `parts` equal pieces along `axis`."""
        if parts == 1:
            return [value]
        name = self._name("Split")
        node = self._ir.node(
            "Split", [value], attributes={"axis": axis, "num_outputs": parts}, num_outputs=parts, name=name
        )
        for index, output in enumerate(node.outputs):
            output.name = f"{name}_{index}"
        self.nodes.append(node)
        return list(node.outputs)

    def choose(
        self, condition: ir.Value, then: Callable[[Tape], ir.Value], otherwise: Callable[[Tape], ir.Value]
    ) -> ir.Value:
        """An If: the branches write to tapes of their own, and share this one's constants."""
        graphs = []
        for write in (then, otherwise):
            branch = Tape(self._prefix)
            branch._counts, branch._constants = self._counts, self._constants
            output = write(branch)
            graphs.append(self._ir.Graph([], [output], nodes=branch.nodes, name=self._name("branch")))
        return self.If(condition, then_branch=graphs[0], else_branch=graphs[1])

    def ints(self, *values: int) -> ir.Value:
        """An int64 vector."""
        return self.constant(np.array(values, np.int64), "ints")

    def scalar(self, value: float, dtype: npt.DTypeLike) -> ir.Value:
        """A scalar of that dtype."""
        return self.constant(np.array(value, dtype), "scalar")

    def _name(self, kind: str) -> str:
        count = self._counts.get(kind, 0)
        self._counts[kind] = count + 1
        return f"{self._prefix}/{kind}_{count}"
