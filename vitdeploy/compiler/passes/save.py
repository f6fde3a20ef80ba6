"""Write a graph to disk without a second copy of its weights in memory.

An ONNX file is one protobuf message: header fields, then the graph, in it the weights. Building that message in memory
costs the model's size once, serialising it once more. Here everything but the weights is serialised; each weight is
then written behind it as the field it is, straight from where it lies. The lengths that protobuf wants in front are
known beforehand. The file is byte for byte a valid ONNX file, read by every parser.

Protobuf ends at 2 GiB. A larger model's weights go to a file of their own beside it, `NAME.onnx.data`, which the ONNX
file refers to by its name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vitdeploy.bundle.wire import head

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DATA_SUFFIX", "save", "save_without_weights"]

DATA_SUFFIX = ".data"
_LIMIT = (1 << 31) - (1 << 24)  # protobuf's, less what the graph itself may take
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers in onnx.proto: ModelProto.graph, GraphProto.initializer ...
_PAGE = 4096  # where each weight begins in a file of its own, so that it can be mapped


def save(model: ir.Model, path: Path, *, limit_bytes: int | None = None, external: bool = False) -> Path | None:
    """Write `model` to `path`; the file with its weights if they did not fit into one.

    Args:
        model: the graph; it is the same afterwards.
        limit_bytes: weights of more than this go to a file of their own; None: what protobuf can hold.
        external: they go there in any case.
    """
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if external or sum(tensor.nbytes for tensor in tensors) > (_LIMIT if limit_bytes is None else limit_bytes):
        return _save_external(model, path)
    _save_whole(model, path)
    return None


def save_without_weights(model: ir.Model, path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Write `model` to `path` with nothing but the names of its weights; these, by name, where they lie in memory
    (one that does not lie in rows, which `lay_out` cures, is copied).

    What runs the file is given the arrays instead of the file that it would look for.
    """
    import onnx_ir as ir

    weights = {name: value for name, value in model.graph.initializers.items() if _is_large(value)}
    before = {name: value.const_value for name, value in weights.items() if value.const_value is not None}
    try:
        for name, tensor in before.items():
            weights[name].const_value = ir.ExternalTensor(
                path.name + DATA_SUFFIX, 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape), name=name,
                base_dir=path.parent,
            )  # fmt: skip
        ir.save(model, path)
    finally:  # the argument is as it was
        for name, tensor in before.items():
            weights[name].const_value = tensor
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in before.items()}


def _save_external(model: ir.Model, path: Path) -> Path:
    import onnx_ir as ir

    data = path.with_name(path.name + DATA_SUFFIX)
    weights = {name: value for name, value in model.graph.initializers.items() if _is_large(value)}
    before = {name: value.const_value for name, value in weights.items()}
    try:
        with data.open("wb") as file:
            for name, value in weights.items():
                file.seek(-(-file.tell() // _PAGE) * _PAGE)
                value.const_value = _written(name, value, file, data)
        ir.save(model, path)
    finally:  # the argument is as it was
        for name, tensor in before.items():
            weights[name].const_value = tensor
    return data


def _written(name: str, value: ir.Value, file: BinaryIO, data: Path) -> ir.ExternalTensor:
    """Write a weight where the file stands; the tensor that lies there."""
    import onnx_ir as ir

    assert value.const_value is not None
    tensor, offset = value.const_value, file.tell()
    _write(value, file)
    shape = ir.Shape(tensor.shape)
    return ir.ExternalTensor(
        data.name, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name, base_dir=data.parent
    )


def _save_whole(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    weights = {name: value for name, value in model.graph.initializers.items() if _is_large(value)}
    tensors = [(_header(name, value), value) for name, value in weights.items()]
    for value in weights.values():
        del model.graph.initializers[value.name or ""]
    try:
        proto = ir.to_proto(model)
    finally:
        for value in weights.values():
            model.graph.register_initializer(value)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    fields = [(header, value, len(header) + _nbytes(value)) for header, value in tensors]
    length = len(graph) + sum(len(head(_INITIALIZER, size)) + size for _, _, size in fields)
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(head(_GRAPH, length))
        file.write(graph)
        for header, value, size in fields:
            file.write(head(_INITIALIZER, size))
            file.write(header)
            _write(value, file)


def _is_large(value: ir.Value) -> bool:
    """Whether a weight is written by itself: small ones travel with the graph."""
    return value.const_value is not None and value.const_value.nbytes >= 1024


def _nbytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return int(value.const_value.nbytes)


def _header(name: str, value: ir.Value) -> bytes:
    """A TensorProto without its data, then the tag and length of the data."""
    import onnx

    assert value.const_value is not None
    tensor = value.const_value
    empty = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy()))
    serialised: bytes = empty.SerializeToString()
    return serialised + head(_RAW_DATA, tensor.nbytes)


def _write(value: ir.Value, file: BinaryIO) -> None:
    """Write a tensor's bytes, without a copy of them where they lie in memory as they do in ONNX."""
    assert value.const_value is not None
    tensor = value.const_value
    array = tensor.numpy()
    if sys.byteorder == "little" and array.flags.c_contiguous and array.nbytes == tensor.nbytes:
        file.write(array.reshape(-1).view(np.uint8).data)
    else:  # types of less than a byte are packed
        file.write(tensor.tobytes())
