"""ONNX models read without the package onnx, which a device need not have.

A message has the fields that are named here, by their names in onnx.proto; what else it holds is passed over, and is in
`raw` with all the rest, so that a part goes into another model as it is. Nothing is copied but numbers and short texts:
the data of tensors lie where they were read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.bundle.wire import FIXED32, FIXED64, LENGTH, VARINT, Data, fields, number

__all__ = ["Message", "read_model", "to_array"]

_DEEPEST = 100  # as protobuf has it
_NUMBERS = {  # their wire type, and of fixed ones the layout
    "int": (VARINT, ""),
    "float": (FIXED32, "<f"),
    "double": (FIXED64, "<d"),
}
_Field = tuple[str, str, bool]  # name, type, whether there may be several
_FIELDS: dict[str, dict[int, _Field]] = {
    "Model": {
        1: ("ir_version", "int", False),
        7: ("graph", "Graph", False),
        8: ("opset_import", "Opset", True),
        25: ("functions", "Function", True),
    },
    "Opset": {1: ("domain", "text", False), 2: ("version", "int", False)},
    "Function": {1: ("name", "text", False)},
    "Graph": {
        1: ("node", "Node", True),
        5: ("initializer", "Tensor", True),
        11: ("input", "ValueInfo", True),
        12: ("output", "ValueInfo", True),
        13: ("value_info", "ValueInfo", True),
    },
    "Node": {
        1: ("input", "text", True),
        2: ("output", "text", True),
        3: ("name", "text", False),
        4: ("op_type", "text", False),
        5: ("attribute", "Attribute", True),
        7: ("domain", "text", False),
    },
    "Attribute": {
        1: ("name", "text", False),
        2: ("f", "float", False),
        3: ("i", "int", False),
        4: ("s", "bytes", False),
        6: ("g", "Graph", False),
        8: ("ints", "int", True),
        11: ("graphs", "Graph", True),
        20: ("type", "int", False),
    },
    "Tensor": {
        1: ("dims", "int", True),
        2: ("data_type", "int", False),
        4: ("float_data", "float", True),
        5: ("int32_data", "int", True),
        7: ("int64_data", "int", True),
        8: ("name", "text", False),
        9: ("raw_data", "view", False),
        10: ("double_data", "double", True),
        11: ("uint64_data", "int", True),
        13: ("external_data", "Entry", True),
        14: ("data_location", "int", False),
    },
    "Entry": {1: ("key", "text", False), 2: ("value", "text", False)},
    "ValueInfo": {1: ("name", "text", False), 2: ("type", "Type", False)},
    "Type": {1: ("tensor_type", "TensorType", False)},
    "TensorType": {1: ("elem_type", "int", False), 2: ("shape", "Shape", False)},
    "Shape": {1: ("dim", "Dim", True)},
    "Dim": {1: ("dim_value", "int", False), 2: ("dim_param", "text", False)},
}
_BLANK: dict[str, Any] = {"int": 0, "float": 0.0, "double": 0.0, "text": "", "bytes": b"", "view": memoryview(b"")}
_BY_NAME = {kind: {name: (what, several) for name, what, several in row.values()} for kind, row in _FIELDS.items()}
_STORED = {  # ONNX's number of a type: the type, and the field that holds its values where they are not raw
    1: ("<f4", "float_data"),
    2: ("|u1", "int32_data"),
    3: ("|i1", "int32_data"),
    4: ("<u2", "int32_data"),
    5: ("<i2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("|b1", "int32_data"),
    11: ("<f8", "double_data"),
    12: ("<u4", "uint64_data"),
    13: ("<u8", "uint64_data"),
}


class Message:
    """A message of ONNX.

    Args:
        kind: of `_FIELDS`.
        raw: its bytes.
        depth: how many messages it lies in.

    Raises:
        ValueError: it is not a protobuf message, or a text of it is none.
    """

    raw: memoryview

    def __init__(self, kind: str, raw: memoryview, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
        self.raw, self._kind = raw, kind
        held, known = self.__dict__, _FIELDS[kind]
        for field, wire, _, at, stop in fields(raw, 0, len(raw)):
            if field not in known:
                continue
            name, what, several = known[field]
            if what in _NUMBERS:
                values = _numbers(raw, what, wire, at, stop, several)
            elif wire == LENGTH:
                values = iter((self._value(what, raw[at:stop], depth),))
            else:  # as protobuf takes what is of another wire type: as a field that it does not know
                continue
            if several:
                held.setdefault(name, []).extend(values)
            else:
                for value in values:
                    if isinstance(value, Message) and name in held:  # parts of one, which no exporter writes
                        raise ValueError(f"its {name} comes in parts")
                    held[name] = value

    @staticmethod
    def _value(what: str, content: memoryview, depth: int) -> Any:
        if what == "text":
            return str(content, "utf-8")
        if what == "bytes":
            return bytes(content)
        return content if what == "view" else Message(what, content, depth + 1)

    def HasField(self, name: str) -> bool:
        """Whether it is there."""
        return name in self.__dict__

    def __getattr__(self, name: str) -> Any:  # of what is not there
        if name.startswith("_") or name not in _BY_NAME[self._kind]:
            raise AttributeError(f"a {self._kind} has no {name!r}")
        what, several = _BY_NAME[self._kind][name]
        if several:
            return []
        return _BLANK[what] if what in _BLANK else Message(what, memoryview(b""))


def _numbers(raw: memoryview, what: str, wire: int, at: int, stop: int, several: bool) -> Iterator[Any]:
    """The numbers of a field: one, or, where there may be several, some in one piece."""
    own, layout = _NUMBERS[what]
    if wire == LENGTH and several:
        if layout:
            yield from (value for (value,) in struct.iter_unpack(layout, raw[at:stop]))
            return
        while at < stop:
            value, at = number(raw, at, stop)
            yield _signed(value)
    elif wire == own:
        yield struct.unpack_from(layout, raw, at)[0] if layout else _signed(number(raw, at, stop)[0])


def _signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def read_model(content: Data) -> Message:
    """The model that a file's content is; what is read of it lies in `content`.

    Raises:
        ValueError: it is none.
    """
    try:
        model = Message("Model", memoryview(content))
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"it is not an ONNX model: {error}") from error
    if not model.HasField("graph"):
        raise ValueError("it has no graph")
    return model


def to_array(tensor: Message) -> npt.NDArray[Any]:
    """A tensor's values where they lie, or a copy of those that were stored one by one.

    Raises:
        ValueError: they do not fill its shape, or are of a type that no part of a ViT that is read here has.
    """
    if tensor.data_type not in _STORED:
        raise ValueError(f"its type is number {tensor.data_type} of ONNX")
    dtype, name = _STORED[tensor.data_type]
    if tensor.HasField("raw_data"):
        values = np.frombuffer(tensor.raw_data, dtype) if len(tensor.raw_data) else np.zeros(0, dtype)
    else:
        values = np.array(getattr(tensor, name)).astype(dtype)
    if min(tensor.dims, default=0) < 0:  # numpy would find a size for -1
        raise ValueError(f"its shape is {tensor.dims}")
    return values.reshape(tuple(tensor.dims))
