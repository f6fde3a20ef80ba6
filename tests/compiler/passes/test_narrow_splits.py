"""Splits that WebGPU can't run become Slices, and the numbers stay the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vitdeploy.compiler.passes.narrow_splits import MOST_PARTS, narrow_splits  # noqa: E402
from vitdeploy.compiler.preprocessing.graph import build_preprocessing  # noqa: E402
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec  # noqa: E402


def session(model: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def wide(model: Any) -> list[Any]:
    """Splits of float32 into many parts, as ONNX Runtime's types have it."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    splits = [node for node in proto.graph.node if node.op_type == "Split" and len(node.output) > MOST_PARTS]
    return [node for node in splits if types[node.input[0]] == TensorProto.FLOAT]


@pytest.mark.parametrize(("edge", "resample"), [(112, "bilinear"), (224, "bicubic")])
def test_the_preprocessing_gives_the_same_bits(edge: int, resample: str) -> None:
    spec = PreprocessSpec(ResizeSpec(resample, edge, edge), None, 1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    before, after = build_preprocessing(spec), build_preprocessing(spec)
    result = narrow_splits(after)
    assert wide(before) and not wide(after) and result.changed == len(wide(before)) and result.declined is None
    one, other = session(before), session(after)
    draw = np.random.default_rng(0)
    for size in ((32, 32), (47, 31), (edge, edge), (480, 640), (300, 90)):
        image = draw.integers(0, 256, (2, *size, 3), np.uint8)
        found = [each.run(None, {"image": image})[0] for each in (one, other)]
        assert found[0].tobytes() == found[1].tobytes(), size


def split(size: int | str, parts: int, sizes: list[int] | None = None, axis: int | None = None) -> Any:
    """A graph of one Split of float32 (2, size), or (size, 2) along axis 0."""
    shape = (2, size) if axis == -1 else (size, 2)
    names = [f"y{index}" for index in range(parts)]
    attributes = {} if axis is None else {"axis": axis}
    if sizes is None:
        attributes["num_outputs"] = parts
    node = helper.make_node("Split", ["x"] + ["sizes"] * (sizes is not None), names, **attributes)
    graph = helper.make_graph(
        [node],
        "split",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [] if sizes is None else [numpy_helper.from_array(np.array(sizes, np.int64), "sizes")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.mark.parametrize(
    ("size", "parts", "sizes", "axis"),
    [(14, 14, None, None), (14, 14, None, -1), (30, 8, None, -1), (20, 9, [1, 2, 3, 4, 5, 2, 1, 1, 1], 0)],
)
def test_every_part_is_the_same(size: int, parts: int, sizes: list[int] | None, axis: int | None) -> None:
    before, after = (split(size, parts, sizes, axis) for _ in range(2))
    assert narrow_splits(after).changed == 1
    assert [node.op_type for node in after.graph] == ["Slice"] * parts
    assert [value.name for value in after.graph.outputs] == [f"y{index}" for index in range(parts)]
    x = np.random.default_rng(0).random((2, size) if axis == -1 else (size, 2), np.float32)
    for one, other in zip(session(before).run(None, {"x": x}), session(after).run(None, {"x": x}), strict=True):
        assert one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("model", "why"),
    [(split(7, 7), "no Split has more than 7 outputs"), (split("n", 9), "the sizes of 1 are not known")],
)
def test_what_is_left_alone(model: Any, why: str) -> None:
    result = narrow_splits(model)
    assert (result.changed, result.declined) == (0, why)
    assert [node.op_type for node in model.graph] == ["Split"]
