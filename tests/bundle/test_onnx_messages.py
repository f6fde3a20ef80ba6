"""Our reader of ONNX models beside the package onnx: the same fields and the same arrays, or an error of one kind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.fuzz import rounds
from tests.tools.small_bundle import write_small_bundle
from vitdeploy.bundle import onnx_messages
from vitdeploy.bundle.onnx_messages import Message, read_model, to_array
from vitdeploy.bundle.wire import framed, numbered

onnx = pytest.importorskip("onnx")
KINDS = ("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool", "float64", "uint32", "uint64")


def assert_alike(ours: Message, theirs: Any, where: str = "model") -> None:
    """Every field that is named, of every message in it."""
    for name, what, several in onnx_messages._FIELDS[ours._kind].values():
        found, expected, place = getattr(ours, name), getattr(theirs, name), f"{where}.{name}"
        pairs = list(zip(found, expected, strict=True)) if several else [(found, expected)]
        assert several or ours.HasField(name) == theirs.HasField(name), place
        for one, other in pairs:
            if what in onnx_messages._FIELDS:
                assert_alike(one, other, place) if several or theirs.HasField(name) else None
            elif what == "view":
                assert bytes(one) == other, place
            else:
                assert one == other, place


def unusual() -> Any:
    """A model with what ours have not: subgraphs, a function, numbers below zero, values one by one, fields unnamed."""
    helper = onnx.helper
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "inner", [], [])
    nodes = [
        helper.make_node("If", ["c"], ["b"], name="branches", then_branch=inner, else_branch=inner),
        helper.make_node("Scan", ["x"], ["s"], body=inner, num_scan_inputs=-7, axes=[-1, 2**62, 0], alpha=-0.5),
        helper.make_node("Own", ["x", ""], ["o"], domain="mine", mode="größer", several=[inner, inner], texts=["a"]),
    ]
    stored = [
        helper.make_tensor("floats", onnx.TensorProto.FLOAT, [3], [0.5, -1.0, 2.0]),
        helper.make_tensor("sizes", onnx.TensorProto.INT64, [2], [-1, 2**40]),
        helper.make_tensor("bytes", onnx.TensorProto.INT8, [2, 1], [-128, 127]),
        onnx.numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "raw"),
    ]
    value = helper.make_tensor_value_info
    images = value("image", onnx.TensorProto.UINT8, ["batch", "height", None, 3])
    graph = helper.make_graph(nodes, "graph", [images], [value("b", onnx.TensorProto.FLOAT, [-1])], stored)
    function = onnx.FunctionProto(name="Own", domain="mine", node=[helper.make_node("Neg", ["x"], ["o"])])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], producer_name="tests")
    model.metadata_props.add(key="a", value="b")
    return model


def test_an_unusual_model_is_read_as_onnx_reads_it() -> None:
    model = unusual()
    read = read_model(model.SerializeToString())
    assert_alike(read, model)
    assert [len(attribute.graphs) for attribute in read.graph.node[2].attribute] == [0, 2, 0]
    for ours, theirs in zip(read.graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(to_array(ours), onnx.numpy_helper.to_array(theirs))


def test_every_form_of_a_bundle_is_read_as_onnx_reads_it(tiny_bundle: Path) -> None:
    for path in sorted(tiny_bundle.glob("*.onnx")):
        read, model = read_model(path.read_bytes()), onnx.load(path)
        assert_alike(read, model)
        for ours, theirs in zip(read.graph.initializer, model.graph.initializer, strict=True):
            if ours.data_type in onnx_messages._STORED:
                array = to_array(ours)
                assert array.dtype == onnx.numpy_helper.to_array(theirs).dtype
                np.testing.assert_array_equal(array, onnx.numpy_helper.to_array(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_type(kind: str) -> None:
    """In one piece, and value by value."""
    array = np.random.default_rng(0).integers(0, 2 if kind == "bool" else 120, (2, 3)).astype(kind)
    array = -array if np.dtype(kind).kind in "if" else array
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    for tensor in (
        onnx.numpy_helper.from_array(array, "t"),
        onnx.helper.make_tensor("t", number, array.shape, array.ravel().tolist()),
        onnx.numpy_helper.from_array(array[:0], "t"),
    ):
        found = to_array(Message("Tensor", memoryview(tensor.SerializeToString())))
        expected = onnx.numpy_helper.to_array(tensor)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)


def test_data_of_tensors_lie_where_they_were_read() -> None:
    content = bytearray(unusual().SerializeToString())
    tensor = next(t for t in read_model(memoryview(content)).graph.initializer if t.name == "raw")
    whole, array = np.frombuffer(content, np.uint8), to_array(tensor)
    assert whole.ctypes.data <= array.ctypes.data < whole.ctypes.data + len(content)


def test_arrays_that_are_none_are_refused() -> None:
    sizes = numbered(1, 5)
    for content, message in (
        (sizes + numbered(2, 16), "its type is number 16"),  # bfloat16
        (sizes + numbered(2, 8), "its type is number 8"),  # texts
        (sizes + numbered(2, 1) + framed(9, bytes(8)), "cannot reshape"),
        (sizes + numbered(2, 1) + framed(9, bytes(7)), "buffer size"),
        (sizes + numbered(2, 1), "cannot reshape"),
        (numbered(1, -1) + numbered(2, 1) + framed(9, bytes(8)), r"its shape is \[-1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            to_array(Message("Tensor", memoryview(content)))


def test_what_is_no_model_is_refused() -> None:
    nested = b""
    for _ in range(40):  # a graph in an attribute of a node of a graph
        nested = framed(1, framed(5, framed(6, nested)))
    for content, message in (
        (b"", "no graph"),
        (b"\x3a", "in the middle"),
        (b"\x3a\x05abc", "in the middle"),
        (b"\x3b", "wire type 3"),
        (b"\x08" + b"\xff" * 10, "more than 10 bytes"),
        (framed(7, framed(1, b"")) * 2, "in parts"),
        (framed(7, framed(1, framed(3, b"\xff"))), "utf-8"),
        (framed(7, framed(5, framed(4, b"abc"))), "multiple of 4"),
        (framed(7, nested), "deeper than 100"),
    ):
        with pytest.raises(ValueError, match=message):
            read_model(content)


def test_a_field_of_another_wire_type_is_none_that_is_known() -> None:
    graph = numbered(1, 5) + framed(1, framed(3, b"n") + numbered(3, 4))  # a number for a node, and for its name
    model = read_model(framed(1, b"abc") + numbered(1, 2**64 - 3) + framed(7, graph))
    assert model.ir_version == -3 and [node.name for node in model.graph.node] == ["n"]
    with pytest.raises(AttributeError, match="a Graph has no 'nodes'"):
        _ = model.graph.nodes


@pytest.mark.fuzz
def test_a_mutated_file_is_read_as_onnx_reads_it_or_refused(tmp_path: Path) -> None:
    whole = (write_small_bundle(tmp_path / "b", engine=False) / "model.onnx").read_bytes() + numbered(1, 9)
    draw, seen = random.Random(0), {"read": 0, "refused": 0}
    for _ in range(rounds(2000)):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        content = bytes(data[: draw.randint(0, len(data))] if draw.random() < 0.2 else data)
        try:
            read = read_model(content)
        except ValueError:
            seen["refused"] += 1
            continue
        try:
            model = onnx.load_model_from_string(content)
        except Exception:  # protobuf refuses what this passes over, such as a field of the number 0
            continue
        seen["read"] += 1
        for ours, theirs in zip(read.graph.node, model.graph.node, strict=True):
            assert ours.op_type == theirs.op_type and ours.input == list(theirs.input)
        for ours, theirs in zip(read.graph.initializer, model.graph.initializer, strict=True):
            assert ours.dims == list(theirs.dims) and bytes(ours.raw_data) == theirs.raw_data
    assert min(seen.values()) > 100, seen
