"""The reader of the kernels' graph against ONNX Runtime: what a mutated graph means to it, or an error of ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.tools.fuzz import rounds
from tests.tools.native import needs_kernels
from vitdeploy import load
from vitdeploy.backends.native import graph_reader
from vitdeploy.backends.native.packing import Encoder
from vitdeploy.backends.native.plain_vit import PlainVit, read_plain_vit
from vitdeploy.backends.subgraphs import head_of
from vitdeploy.bundle import Bundle
from vitdeploy.bundle.graphs import exact_bytes
from vitdeploy.bundle.onnx_messages import Message, read_model
from vitdeploy.compiler.passes.cut import cut
from vitdeploy.core.errors import ModelError
from vitdeploy.runtime import selection

pytestmark = pytest.mark.usefixtures("exact_products")

ROUNDS = rounds(300)
SIZES = (0, 1, 2, 3, -1, 16, 17, 64, 255, 65536, 2**31 - 1, 2**31, 2**32 + 1, -(2**31), 2**63 - 1)
NUMBERS = (0.0, 1e-45, -1.0, 2.0, 1e10, 3e38, float("nan"), float("inf"), float("-inf"))
KEYS = [0, 2, 3, 1]  # the order of axes by which keys are turned
OPERATIONS = ("Relu", "Tanh", "Identity", "Softmax", "Add", "Sub", "Mul", "MatMul", "Gelu", "Transpose", "Cast")


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> bytes:
    """The tiny ViT from its pixel values on, serialised."""
    model = cut(ir.load(tiny_bundle / "model.int8-cpu.onnx"), "pixel_values", "logits")
    return bytes(ir.to_proto(model).SerializeToString())


def parsed(model: Any) -> Message:
    """An `onnx.ModelProto` as our own reader has it."""
    return read_model(model.SerializeToString())


def form_of(model: Any) -> PlainVit:
    return read_plain_vit(parsed(model))


def read(content: bytes, change: Callable[[Any], None]) -> tuple[Any, PlainVit]:
    model = onnx.load_from_string(content)
    change(model.graph)
    return model, form_of(model)


def first(graph: Any, kind: str) -> Any:
    return next(node for node in graph.node if node.op_type == kind)


def tensor(graph: Any, name: str) -> Any:
    return next(each for each in graph.initializer if each.name == name)


def put(graph: Any, name: str, array: Any) -> None:
    tensor(graph, name).CopyFrom(numpy_helper.from_array(np.asarray(array), name))


def pixels(form: PlainVit, count: int = 2) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, *form.image)).astype(np.float32)


def theirs(model: Any, values: np.ndarray, begin: str = "pixel_values") -> np.ndarray | None:
    """ONNX Runtime's logits of a model, which may be serialised; None where it refuses the graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    exact_bytes(options)
    try:
        content = model if isinstance(model, bytes) else model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {begin: values})[0])
    except Exception:  # its errors have no base class of their own
        return None


def ours(model: Any, form: PlainVit, values: np.ndarray) -> np.ndarray | None:
    """The kernels' logits, with ONNX Runtime behind them; None where it refuses that part."""
    encoder = Encoder(form, 1)
    try:
        made = encoder.run(values)
    finally:
        encoder.close()
    if form.classifier is not None:
        return made
    return theirs(head_of(parsed(model), form.end, (form.read, len(form.kernel))), made, form.end)


# What ONNX Runtime takes in another spelling


def vectors_of_one(graph: Any) -> None:
    for node in (node for node in graph.node if node.op_type == "MatMulIntegerToFloat"):
        for place in (2, 4):
            array = numpy_helper.to_array(tensor(graph, node.input[place]))
            put(graph, node.input[place], array.reshape(1))


def no_epsilon(graph: Any) -> None:
    """A LayerNorm of small numbers, where 1e-5 counts."""
    node = first(graph, "LayerNormalization")
    node.attribute.remove(next(each for each in node.attribute if each.name == "epsilon"))
    for name in (first(graph, "Add").input[1], *first(graph, "Conv").input[1:]):
        put(graph, name, numpy_helper.to_array(tensor(graph, name)) * np.float32(0.003))


def short_shapes(graph: Any) -> None:
    """Reshapes that leave a size to be counted."""
    for node in (node for node in graph.node if node.op_type == "Reshape"):
        del node.attribute[:]
        sizes = numpy_helper.to_array(tensor(graph, node.input[1])).copy()
        if sizes[0] == -1:
            sizes[0], sizes[1 if len(sizes) == 4 else -1] = 0, -1
            put(graph, node.input[1], sizes)


@needs_kernels
@pytest.mark.parametrize("change", [vectors_of_one, no_epsilon, short_shapes])
def test_another_spelling_of_the_same(plain: bytes, change: Callable[[Any], None]) -> None:
    model, form = read(plain, change)
    expected = theirs(model, pixels(form, 8))
    assert expected is not None
    found = ours(model, form, pixels(form, 8))
    assert np.abs(found - expected).max() < 0.1 * expected.std()
    if change is no_epsilon:
        assert form.layers[0].before.epsilon == pytest.approx(1e-5)


# What is refused, by the node's name


def scale_of_zero(graph: Any) -> None:
    put(graph, first(graph, "QuantizeLinear").input[1], np.float32(0))


def no_sizes(graph: Any) -> None:
    del graph.input[0].type.tensor_type.shape.dim[3]


def another_file(graph: Any) -> None:
    bias = tensor(graph, first(graph, "Gemm").input[1])
    bias.ClearField("raw_data")
    bias.data_location = TensorProto.EXTERNAL
    bias.external_data.add(key="location", value="../secret")


def other_heads(graph: Any) -> None:
    """[-1, 17, 1, 12] in the place of [-1, 17, 4, 12]."""
    node = next(node for node in graph.node if node.op_type == "Reshape" and node.input[1] != "")
    parted = [each for each in graph.node if each.op_type == "Reshape"][1]
    sizes = numpy_helper.to_array(tensor(graph, parted.input[1])).copy()
    assert node is not None and len(sizes) == 4
    sizes[1], sizes[2] = -1, 1
    put(graph, parted.input[1], sizes)


def not_finite(graph: Any) -> None:
    name = first(graph, "LayerNormalization").input[1]
    weight = numpy_helper.to_array(tensor(graph, name)).copy()
    weight[3] = np.inf
    put(graph, name, weight)


def no_number(graph: Any) -> None:
    name = first(graph, "MatMulIntegerToFloat").input[6]
    put(graph, name, np.full_like(numpy_helper.to_array(tensor(graph, name)), np.nan))


def steps_backwards(graph: Any) -> None:
    node = first(graph, "Slice")
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "back"))
    node.input.append("back")


def circle(graph: Any) -> None:
    first(graph, "LayerNormalization").input[0] = [node for node in graph.node if node.op_type == "Add"][2].output[0]


def another_domain(graph: Any) -> None:
    first(graph, "Gelu").domain = "somebody.else"


def two_outputs(graph: Any) -> None:
    graph.output.append(helper.make_tensor_value_info(first(graph, "Gelu").output[0], TensorProto.FLOAT, None))


def no_keys(graph: Any) -> None:
    """What should be turned, to be multiplied with, is not."""
    turned = next(node for node in graph.node if node.op_type == "Transpose" and list(node.attribute[0].ints) == KEYS)
    turned.attribute[0].ints[:] = [0, 2, 1, 3]


def room_behind(graph: Any) -> None:
    put(graph, first(graph, "Pad").input[1], np.array([0, 1, 0, 0, 1, 0]))


def no_output(graph: Any) -> None:
    del first(graph, "Softmax").output[:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (scale_of_zero, r"node '.*q_proj.*' .*scale is 0"),
        (no_sizes, r"node '.*Conv'.*size of its pixel values is not stated"),
        (another_file, r"node '.*Gemm'.*in another file"),
        (other_heads, r"node '.*Reshape'.*does not make \(images, 17, 1, 48\)"),
        (not_finite, r"node '.*LayerNormalization'.*not finite"),
        (no_number, r"node '.*MatMulIntegerToFloat'.*not finite"),
        (steps_backwards, r"node '.*Rows'.*more than the first token"),
        (circle, r"node '.*LayerNormalization'.*what no node before it makes"),
        (another_domain, r"node '.*Gelu'.*not the Gelu of ONNX"),
        (two_outputs, "another number of outputs than one"),
        (no_output, r"node '.*Softmax'.*makes nothing"),
        (no_keys, r"node '.*LayerNormalization'.*does not feed queries, keys and values"),
        (room_behind, r"node '.*Pad'.*makes no room for tokens"),
    ],
)
def test_what_is_refused(plain: bytes, change: Callable[[Any], None], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        read(plain, change)
    assert "onnxruntime" in (caught.value.hint or "")


def test_the_attributes_are_those_that_onnx_knows() -> None:
    for operation, names in graph_reader._ATTRIBUTES.items():
        if operation != "MatMulIntegerToFloat":
            schemas = [onnx.defs.get_schema(operation, version) for version in (20, 21, 23)]
            assert {name for schema in schemas for name in schema.attributes} == names


# Chance


def mutate(graph: Any, random: np.random.Generator) -> str:
    """Change one thing; returns what."""

    def pick(things: Any) -> Any:
        return things[int(random.integers(len(things)))]

    node, constant, size = pick(graph.node), pick(graph.initializer), pick(SIZES)
    kind = int(random.integers(11))
    if kind == 0 and constant.dims:
        constant.dims[int(random.integers(len(constant.dims)))] = size
    elif kind == 1:
        constant.dims.append(size)
    elif kind == 2:
        constant.raw_data = constant.raw_data[: int(random.integers(len(constant.raw_data) + 1))]
    elif kind == 3:
        constant.data_type = int(random.integers(24))
    elif kind == 4:
        array = _array(constant).copy()
        if array.size and array.dtype.kind in "fiu":
            limits = None if array.dtype.kind == "f" else np.iinfo(array.dtype)
            value = np.clip(size, int(limits.min), int(limits.max)) if limits else pick(NUMBERS)
            array.reshape(-1)[int(random.integers(array.size))] = value
            constant.CopyFrom(numpy_helper.from_array(array, constant.name))
    elif kind == 5:
        array = _array(constant)
        if array.ndim:
            shape = [*array.shape[:-1], int(pick((0, 1, 2, 16, 17, 64)))]
            constant.CopyFrom(numpy_helper.from_array(np.resize(array, shape), constant.name))
    elif kind == 6:
        node.op_type = pick(OPERATIONS)
    elif kind == 7 and node.attribute:
        attribute = pick(node.attribute)
        if random.integers(2):
            node.attribute.remove(attribute)
        elif attribute.ints:
            attribute.ints[int(random.integers(len(attribute.ints)))] = size
        elif attribute.type == onnx.AttributeProto.FLOAT:
            attribute.f = pick(NUMBERS)
        elif attribute.type == onnx.AttributeProto.INT:
            attribute.i = size
        else:
            attribute.s = pick((b"", b"none", b"tanh", b"VALID", b"reflect"))
    elif kind == 8:
        place = int(random.integers(len(node.input)))
        node.input[place] = pick(pick(graph.node).input)
    elif kind == 9:
        graph.node.remove(node)
    else:
        graph.input[0].type.tensor_type.shape.dim[int(random.integers(4))].dim_value = size
    return f"{kind}: {node.name}, {constant.name}, {size}"


def _array(constant: Any) -> np.ndarray:
    try:
        return np.asarray(numpy_helper.to_array(constant))
    except Exception:  # an earlier change left no array of it
        return np.zeros(())


NAMES = "node '|constants have the same name|pixel_values is not read|do not fit the rest|the least opset|a size of 0"


def read_or_refused(model: Any) -> PlainVit | str:
    try:
        return form_of(model)
    except ModelError as error:
        return error.message


@needs_kernels
@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_graph_means_what_it_means_to_onnxruntime_or_is_refused(plain: bytes) -> None:
    seen: Counter[str] = Counter()
    for seed in range(ROUNDS):
        random, changes = np.random.default_rng(seed), []
        model = onnx.load_from_string(plain)
        for _ in range(int(random.integers(1, 3))):
            changes.append(mutate(model.graph, random))
        form = read_or_refused(model)
        if isinstance(form, str):
            seen["refused" if re.search(NAMES, form) else form] += 1
            continue
        expected, found = theirs(model, pixels(form)), ours(model, form, pixels(form))
        if found is None:
            seen["refused"] += 1
            continue
        assert expected is not None, f"seed {seed}: ONNX Runtime refuses it: {changes}"
        spread = max(float(expected.std()), 0.1 * float(np.abs(expected).max()))
        assert np.abs(found - expected).max() <= 0.3 * spread + 1e-3, f"seed {seed}: another answer: {changes}"
        seen["the same"] += 1
    assert set(seen) == {"refused", "the same"} and min(seen.values()) > ROUNDS / 50, seen


# load goes on


def test_load_passes_over_a_backend_that_stumbles(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = selection.open_runner

    class Stumbling:
        def __enter__(self) -> None:
            raise ZeroDivisionError("float division by zero")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(
        selection, "open_runner", lambda spec: Stumbling() if spec.backend == "openvino" else opened(spec)
    )
    with load(Bundle.open(tiny_bundle), precision="fp32", device="cpu") as classifier:
        assert classifier.backend == "onnxruntime"
        (passed,) = classifier.describe()["passed_over"]
    assert passed["backend"] == "openvino" and "ZeroDivisionError: float division by zero" in passed["reason"]
    with pytest.raises(ModelError, match="ZeroDivisionError") as caught:
        load(tiny_bundle, backend="openvino", precision="fp32")
    assert caught.value.hint
