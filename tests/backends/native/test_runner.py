"""The runner of our own INT8 kernels: which graphs it takes, what it says of the others, and where it has its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from tests.tools.backends import needs_torch
from tests.tools.families import write_family
from tests.tools.native import FORM, images, needs_compiled, needs_kernels
from vitdeploy import load
from vitdeploy.backends import registry
from vitdeploy.backends.native import library
from vitdeploy.backends.native.plain_vit import read_plain_vit
from vitdeploy.backends.native.runner import NativeRunner, check_plain_vit
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.bench import bench
from vitdeploy.bundle import Bundle, graphs
from vitdeploy.bundle.onnx_messages import read_model
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.passes.cut import cut
from vitdeploy.compiler.passes.integer_products import fuse_integer_products
from vitdeploy.compiler.passes.prune_token_rows import prune_token_rows
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.schemes import INT8_UNSIGNED
from vitdeploy.core.errors import ModelError
from vitdeploy.data import load_dataset

pytestmark = pytest.mark.usefixtures("exact_products")


@needs_kernels
@pytest.mark.parametrize("size", [(32, 32), (90, 50)])
def test_it_answers_as_onnxruntime_does(tiny_bundle: Path, size: tuple[int, int]) -> None:
    """Values between two steps are rounded to one or the other, so both are as far from FP32, and not the same."""
    pixels = images(32, *size)
    logits = []
    for runner in (
        OnnxRuntimeRunner(tiny_bundle / "model.onnx", 1),
        OnnxRuntimeRunner(tiny_bundle / FORM, 1),
        NativeRunner(tiny_bundle / FORM, 1),
    ):
        with runner:
            logits.append(runner.infer({"image": pixels})["logits"])
    exact, theirs, ours = logits
    error = np.sqrt(np.mean((theirs - exact) ** 2))
    assert np.sqrt(np.mean((ours - exact) ** 2)) < 1.2 * error
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < error
    assert np.sqrt(np.mean((ours - np.roll(theirs, 1, axis=0)) ** 2)) > 3 * error


def changed(bundle: Path, folder: Path, change: Callable[[Any], None], name: str = FORM) -> Path:
    model = onnx.load(bundle / name)
    change(model.graph)
    onnx.save(model, folder / name)
    return folder / name


def nodes(graph: Any, kind: str) -> list[Any]:
    return [node for node in graph.node if node.op_type == kind and "pixel" not in node.name]


def attribute(node: Any, name: str) -> Any:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def constant(graph: Any, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def tanh(graph: Any) -> None:
    attribute(nodes(graph, "Gelu")[1], "approximate").s = b"tanh"


def relu(graph: Any) -> None:
    node = nodes(graph, "Gelu")[0]
    node.op_type = "Relu"
    del node.attribute[:]


def other_token(graph: Any) -> None:
    for node in (node for node in nodes(graph, "Slice") if "/Rows" in node.output[0]):
        constant(graph, node.input[1], lambda _: np.array([1]))
        constant(graph, node.input[2], lambda _: np.array([2]))


def swapped(graph: Any) -> None:
    first = nodes(graph, "Softmax")[0].input[0]
    node = next(node for node in graph.node if first in node.output)
    node.input[:] = node.input[::-1]


def other_residual(graph: Any) -> None:
    adds = [node for node in nodes(graph, "Add") if "layers.1/" in node.output[0]]
    adds[0].input[1] = adds[0].input[0]


def short_bias(graph: Any) -> None:
    constant(graph, nodes(graph, "MatMulIntegerToFloat")[4].input[6], lambda bias: bias[:-1])


def long_weight(graph: Any) -> None:
    constant(graph, nodes(graph, "MatMulIntegerToFloat")[5].input[1], lambda weight: np.concatenate([weight, weight]))


def short_norm(graph: Any) -> None:
    constant(graph, nodes(graph, "LayerNormalization")[1].input[1], lambda weight: weight[:16])


def other_step(graph: Any) -> None:
    products = nodes(graph, "MatMulIntegerToFloat")
    products[4].input[2] = products[5].input[2]


def behind(graph: Any, *new: Any) -> None:
    """New nodes in the place of the one that takes the class token."""
    old = nodes(graph, "Gather")[-1]  # behind those of the preprocessing
    new[0].input[0], new[-1].output[0] = old.input[0], old.output[0]
    place = list(graph.node).index(old)
    graph.node.remove(old)
    for node in reversed(new):
        graph.node.insert(place, node)


def second_reader(graph: Any) -> None:
    """A product in the layers' last LayerNorm whose output nobody reads."""
    graph.node.append(
        helper.make_node("Relu", [nodes(graph, "LayerNormalization")[2].output[0]], ["more"], name="more")
    )


def residual_again(graph: Any) -> None:
    """The class token, and beside it what the first layer made of it."""
    layer = next(node for node in nodes(graph, "Add") if "layers.0/" in node.output[0])
    graph.initializer.append(numpy_helper.from_array(np.array(0), "first"))
    token = helper.make_node("Gather", ["", "first"], ["token"], axis=1)
    early = helper.make_node("Gather", [layer.output[0], "first"], ["early token"], axis=1, name="early")
    behind(graph, token, early, helper.make_node("Add", ["token", "early token"], [""]))


def counted(graph: Any) -> None:
    """A constant for each image is added to the class token: SigLIP's pooling begins so."""
    stored = {"first": np.array(0), "1": np.array([1]), "vector": np.linspace(-1, 1, 48, dtype=np.float32)[None]}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    token = helper.make_node("Gather", ["", "first"], ["token"], axis=1)
    count = helper.make_node("Shape", ["pixel_values"], ["count"], start=0, end=1)
    sizes = helper.make_node("Concat", ["count", "1"], ["sizes"], axis=0)
    rows = helper.make_node("Tile", ["vector", "sizes"], ["rows"])
    behind(graph, token, count, sizes, rows, helper.make_node("Add", ["token", "rows"], [""]))


def mean(graph: Any) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    behind(graph, helper.make_node("ReduceMean", ["", "axis"], [""], keepdims=0))


def last_token(graph: Any) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(-1), "last"))
    behind(graph, helper.make_node("Gather", ["", "last"], [""], axis=1))


def cosines(graph: Any) -> None:
    """The class token at length 1, in front of the last product, as zero-shot classifiers have it."""
    (product,) = nodes(graph, "Gemm")
    graph.node.insert(len(graph.node) - 1, helper.make_node("LpNormalization", [product.input[0]], ["unit"], axis=1))
    product.input[0] = "unit"


def norm_in_front(graph: Any) -> None:
    """CLIP's: the first layer's LayerNorm once more, in front of it."""
    first = nodes(graph, "LayerNormalization")[0]
    came = first.input[0]
    for node in graph.node:
        node.input[:] = ["in front" if name == came else name for name in node.input]
    norm = helper.make_node("LayerNormalization", [came, *first.input[1:]], ["in front"], axis=-1, epsilon=1e-5)
    graph.node.insert(list(graph.node).index(first), norm)


def quick(graph: Any) -> None:
    """CLIP's QuickGELU, and SiLU in the last layer."""
    graph.initializer.append(numpy_helper.from_array(np.array(1.702, np.float32), "steep"))
    for number, gelu in enumerate(nodes(graph, "Gelu")):
        value, made, place = gelu.input[0], gelu.output[0], list(graph.node).index(gelu)
        graph.node.remove(gelu)
        new = [helper.make_node("Mul", ["steep", value], [f"{made} 1"])] if number < 2 else []
        new.append(helper.make_node("Sigmoid", [new[0].output[0] if new else value], [f"{made} 2"]))
        new.append(helper.make_node("Mul", [value, f"{made} 2"], [made]))
        for node in reversed(new):
            graph.node.insert(place, node)


def gates(graph: Any) -> None:
    """SwiGLU: a second product beside fc1, of the same weights the other way round, through SiLU."""
    for gelu in nodes(graph, "Gelu"):
        add = next(node for node in graph.node if gelu.input[0] in node.output)
        bias = next(name for name in add.input if name in {each.name for each in graph.initializer})
        product = next(node for node in graph.node if node.output[0] in add.input)
        stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        made, place = gelu.output[0], list(graph.node).index(gelu)
        weight = np.ascontiguousarray(stored[product.input[1]][::-1])
        graph.initializer.append(numpy_helper.from_array(weight, f"{made} weight"))
        graph.node.remove(gelu)
        for node in (
            helper.make_node("Mul", [f"{made} silu", add.output[0]], [made]),
            helper.make_node("Mul", [f"{made} gate", f"{made} sigmoid"], [f"{made} silu"]),
            helper.make_node("Sigmoid", [f"{made} gate"], [f"{made} sigmoid"]),
            helper.make_node("Add", [f"{made} product", bias], [f"{made} gate"]),
            helper.make_node("MatMul", [product.input[0], f"{made} weight"], [f"{made} product"]),
        ):
            graph.node.insert(place, node)


@needs_compiled
@pytest.mark.parametrize(
    ("change", "rest"),
    [
        pytest.param(tanh, False, id="GELU by tanh in a layer"),
        pytest.param(quick, False, id="QuickGELU and SiLU"),
        pytest.param(gates, False, id="SwiGLU"),
        pytest.param(norm_in_front, False, id="a LayerNorm in front"),
        pytest.param(mean, True, id="the mean of the tokens"),
        pytest.param(last_token, True, id="the last token"),
        pytest.param(cosines, True, id="cosines"),
        pytest.param(counted, True, id="the number of images"),
    ],
)
def test_layers_and_heads_of_other_families(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], rest: bool
) -> None:
    """In FP32, where nothing is rounded; `rest`: what is behind the layers is run by ONNX Runtime."""
    monkeypatch.setenv(library.VARIABLE, "portable")
    path = changed(tiny_bundle, tmp_path, change, "model.onnx")
    assert (read_plain_vit(read_model(path.read_bytes())).classifier is None) == rest
    logits = []
    for runner in (
        OnnxRuntimeRunner(tiny_bundle / "model.onnx", 1),
        OnnxRuntimeRunner(path, 1),
        NativeRunner(path, 2),
    ):
        with runner:
            assert [(spec.name, spec.shape[1:]) for spec in runner.outputs] == [("logits", (10,))]
            logits.append(runner.infer({"image": images(5, 40, 50)})["logits"])
    before, expected, found = logits
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.abs(before - expected).max() > 5e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(relu, r"Relu.*Gelu was expected", id="no GELU"),
        pytest.param(other_token, r"Slice.*first token", id="another token"),
        pytest.param(swapped, r"MatMul.*queries with keys", id="keys times queries"),
        pytest.param(other_residual, r"node .*layers\.1", id="another residual"),
        pytest.param(second_reader, r"more", id="one more reader in a layer"),
        pytest.param(residual_again, r"early", id="a head that reads an early layer"),
        pytest.param(short_bias, r"fc1 of layer 0", id="a bias that is too short"),
        pytest.param(long_weight, r"fc2 of layer 0", id="a weight that is too long"),
        pytest.param(short_norm, r"LayerNorm", id="a LayerNorm that is too short"),
        pytest.param(other_step, r"fc1.*another scale", id="another scale"),
    ],
)
def test_a_graph_that_is_no_plain_vit(
    tiny_bundle: Path, tmp_path: Path, change: Callable[[Any], None], says: str
) -> None:
    check_plain_vit(tiny_bundle / FORM)
    path = changed(tiny_bundle, tmp_path, change)
    with pytest.raises(ModelError, match=says) as caught:
        check_plain_vit(path)
    assert "onnxruntime" in (caught.value.hint or "")


def test_the_form_for_engines_is_not_for_it(tiny_bundle: Path) -> None:
    with pytest.raises(ModelError, match=r"node .*Cast.*Conv was expected"):
        check_plain_vit(tiny_bundle / "model.int8.onnx")


@needs_torch
@needs_kernels
def test_products_that_were_left_out_of_int8(tiny_bundle: Path, tmp_path: Path) -> None:
    """What `--max-drop` makes: the first layer's QKV and FC2, the second one's FC1, the last one's QKV in float32."""
    single = Bundle.open(tiny_bundle).find(kind="onnx", precision="fp32")
    assert single is not None
    calibration = Calibration.load(tiny_bundle / "calibration.json", single.sha256)
    left_out = tuple(calibration.names[place] for place in (0, 3, 6, len(calibration.names) - 4))
    model = ir.load(tiny_bundle / "model.onnx")
    quantize(model, replace(calibration, left_out=left_out), scheme=INT8_UNSIGNED)
    fuse_integer_products(model)
    prune_token_rows(model)
    ir.save(model, tmp_path / FORM)
    form = read_plain_vit(read_model((tmp_path / FORM).read_bytes()))
    exact = [[name for name in vars(layer) if getattr(getattr(layer, name), "exact", False)] for layer in form.layers]
    assert exact == [["query", "key", "value", "fc2"], ["fc1"], ["query", "key", "value"]]
    logits = []
    for path in (tiny_bundle / "model.onnx", tmp_path / FORM):
        with OnnxRuntimeRunner(path, 1) as runner:
            logits.append(runner.infer({"image": images(16)})["logits"])
    with NativeRunner(tmp_path / FORM, 2) as runner:
        ours = runner.infer({"image": images(16)})["logits"]
    error = np.sqrt(np.mean((logits[1] - logits[0]) ** 2))
    assert np.sqrt(np.mean((ours - logits[0]) ** 2)) < 1.2 * error
    assert np.sqrt(np.mean((ours - logits[1]) ** 2)) < error


@needs_kernels
def test_in_float32_it_is_exact(tiny_bundle: Path) -> None:
    """Nothing is rounded in FP32, so that all the rest of the kernels shows: attention, GELU, LayerNorm, patches."""
    with (
        OnnxRuntimeRunner(tiny_bundle / "model.onnx", 1) as theirs,
        NativeRunner(tiny_bundle / "model.onnx", 2) as ours,
    ):
        expected, found = (runner.infer({"image": images(16)})["logits"] for runner in (theirs, ours))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@needs_compiled
def test_a_weight_of_two_layers_is_read_for_both(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was copied for a layer is given back to the system, and a graph may store equal weights once."""
    monkeypatch.setenv(library.VARIABLE, "portable")

    layers = len(nodes(onnx.load(tiny_bundle / "model.onnx").graph, "Gelu"))
    assert layers > 1

    def tied(graph: Any) -> None:
        weights = {each.name: each.dims for each in graph.initializer}
        products = [node for node in nodes(graph, "MatMul") if list(weights.get(node.input[1], ())) == [48, 96]]
        assert len(products) == layers
        for node in products[1:]:
            node.input[1] = products[0].input[1]

    path = changed(tiny_bundle, tmp_path, tied, "model.onnx")
    released = []
    monkeypatch.setattr(
        graphs.Pages, "release", lambda self, part, real=graphs.Pages.release: (released.append(part), real(self, part))
    )
    with OnnxRuntimeRunner(path, 1) as theirs, NativeRunner(path, 2) as ours:
        expected, found = (runner.infer({"image": images(5)})["logits"] for runner in (theirs, ours))
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)
    assert len(released) == layers * 6 - (layers - 1)


LOAD = """
import sys, vitdeploy
with vitdeploy.load(sys.argv[1], precision="int8", device="cpu", backend="native", threads=2) as classifier:
    classifier.predict(sys.argv[2])
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""


@pytest.mark.full
@needs_compiled
@needs_torch
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
def test_the_memory_of_a_process_that_loads_a_vit_small(test_data: Path, tiny_images: Path, tmp_path: Path) -> None:
    """64 MB of its own were measured, 23 of them weights, which may not be there twice.

    How many pages of the libraries' files are counted besides depends on what the system maps of them.
    """
    export(test_data / "models" / "vit-small-patch14-112-cifar10", tmp_path / "bundle")
    recipe = Recipe(dataset=str(test_data / "cifar10"), count=4, smoothing=False)
    build(tmp_path / "bundle", ["int8"], target="onnx", recipe=recipe)
    image = next(path for path in sorted(tiny_images.rglob("*")) if path.is_file())
    environment = {**os.environ, library.VARIABLE: "portable"}
    command = [sys.executable, "-c", LOAD, tmp_path / "bundle", image]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    assert int(done.stdout) * 1024 < 78e6


@pytest.mark.parametrize("content", [b"not a graph", None], ids=["text", "truncated"])
def test_a_damaged_graph(content: bytes | None, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / FORM
    path.write_bytes((tiny_bundle / FORM).read_bytes()[:5000] if content is None else content)
    with pytest.raises(ModelError, match="int8-cpu"):
        check_plain_vit(path)


def family(name: str, folder: Path, pictures: Path, **recipe: Any) -> Path:
    checkpoint = write_family(name, folder / name)
    export(checkpoint, folder / "bundle")
    build(folder / "bundle", ["int8"], target="onnx", recipe=Recipe(dataset=str(pictures), count=24, **recipe))
    return folder / "bundle"


@needs_torch
@needs_kernels
@pytest.mark.parametrize("name", ["deit"])
def test_other_plain_vits(name: str, tmp_path: Path, tiny_images: Path) -> None:
    bundle = family(name, tmp_path, tiny_images)
    pixels = images(16)
    with NativeRunner(bundle / FORM, 2) as ours, OnnxRuntimeRunner(bundle / FORM, 1) as theirs:
        found, expected = (runner.infer({"image": pixels})["logits"] for runner in (ours, theirs))
    assert np.abs(found - expected).max() < 0.05 * expected.std()
    assert np.abs(found - np.roll(expected, 1, axis=0)).max() > 0.05 * expected.std()


@needs_torch
@needs_kernels
@pytest.mark.parametrize("name", ["beit"])
def test_a_model_that_is_none_runs_elsewhere(name: str, tmp_path: Path, tiny_images: Path) -> None:
    bundle = family(name, tmp_path, tiny_images)
    with pytest.raises(ModelError, match="node "):
        load(bundle, backend="native")
    with load(bundle, precision="int8", device="cpu") as classifier:
        assert classifier.backend == "openvino"
        passed = classifier.describe()["passed_over"]
    native, other = registry.find("native").order, registry.find("openvino").order
    assert native is not None and other is not None
    before = [("native", True)] * (native() < other())  # it comes later where the processor has AMX
    assert [(form["backend"], "plain ViT" in form["reason"]) for form in passed] == before


def half_of_attention(graph: Any) -> None:
    """The softmax's output as it is, beside values that are quantised."""
    there = next(
        node for node in nodes(graph, "QuantizeLinear") if node.input[0] == nodes(graph, "Softmax")[0].output[0]
    )
    back = next(node for node in graph.node if there.output[0] in node.input)
    mixing = next(node for node in graph.node if back.output[0] in node.input)
    mixing.input[0] = there.input[0]
    graph.node.remove(back)
    graph.node.remove(there)


def signed_queries(graph: Any) -> None:
    """Queries as keys are: bytes with a sign."""
    scores = next(node for node in graph.node if nodes(graph, "Softmax")[0].input[0] in node.output)
    makers = {name: node for node in graph.node for name in node.output}
    query, key = (makers[name] for name in scores.input)
    there = makers[query.input[0]]
    there.input[2] = query.input[2] = key.input[2]


@needs_torch
@needs_kernels
def test_attention_in_int8(tmp_path: Path, tiny_checkpoint: Path, tiny_images: Path) -> None:
    bundle = tmp_path / "bundle"
    export(tiny_checkpoint, bundle)
    recipe = Recipe(dataset=str(tiny_images), count=24, attention=True)
    build(bundle, ["int8"], target="onnx", recipe=recipe)
    form = read_plain_vit(read_model((bundle / FORM).read_bytes()))
    assert all(layer.factors is not None and layer.factors.share_zero == 0 for layer in form.layers)
    logits = []
    for runner in (
        OnnxRuntimeRunner(bundle / "model.onnx", 1),
        OnnxRuntimeRunner(bundle / FORM, 1),
        NativeRunner(bundle / FORM, 2),
    ):
        with runner:
            logits.append(runner.infer({"image": images(16)})["logits"])
    exact, theirs, ours = logits
    error = np.sqrt(np.mean((theirs - exact) ** 2))
    assert np.sqrt(np.mean((ours - exact) ** 2)) < 1.2 * error
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < error
    for change, says in ((half_of_attention, "a part of attention"), (signed_queries, "unsigned bytes by signed")):
        with pytest.raises(ModelError, match=says):
            check_plain_vit(changed(bundle, tmp_path, change))


@needs_kernels
def test_onnx_is_not_needed(tiny_bundle: Path) -> None:
    """Nor is it loaded where it is there, which would take 12 MB."""
    image = np.random.default_rng(4).integers(0, 256, (47, 31, 3), np.uint8)
    code = f"""
import sys, numpy as np, vitdeploy
sys.modules["onnx"] = sys.modules["ml_dtypes"] = sys.modules["google.protobuf"] = None
image = np.random.default_rng(4).integers(0, 256, (47, 31, 3), np.uint8)
with vitdeploy.load({str(tiny_bundle)!r}, "native", "int8", device="cpu") as classifier:
    print(*classifier.logits([image])[0].view(np.uint32))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    with load(tiny_bundle, "native", "int8", device="cpu") as classifier:
        assert done.stdout.split() == list(map(str, classifier.logits([image])[0].view(np.uint32)))


@needs_kernels
def test_the_benchmark_has_its_row(tiny_bundle: Path, tiny_images: Path) -> None:
    report = bench(
        tiny_bundle,
        load_dataset(str(tiny_images), split="test"),
        precisions=["int8"],
        backends=["native", "onnxruntime"],
        rounds=10,
        threads=2,
    )
    rows = {row.key: row for row in report.rows}
    assert rows["int8/native"].status == "ok", rows["int8/native"].reason
    assert rows["int8/native"].memory is not None and rows["int8/native"].latency is not None
    assert rows["int8/native"].phases is not None


@needs_torch
def test_the_reader_gives_the_constants_of_the_graph(tiny_bundle: Path) -> None:
    form = read_plain_vit(read_model((tiny_bundle / FORM).read_bytes()))
    assert (form.heads, form.image, len(form.layers)) == (4, (3, 32, 32), 3)
    assert form.positions.shape == (17, 48)
    assert form.layers[0].fc1.weight.shape == (48, 96)
    assert all(layer.query.scale == layer.key.scale == layer.value.scale for layer in form.layers)


@needs_kernels
def test_a_graph_from_pixel_values_on(tiny_bundle: Path, tmp_path: Path) -> None:
    ir.save(cut(ir.load(tiny_bundle / FORM), "pixel_values", "logits"), tmp_path / FORM)
    with NativeRunner(tiny_bundle / FORM, 2) as whole, NativeRunner(tmp_path / FORM, 2) as part:
        assert (part.inputs[0].name, part.inputs[0].shape) == ("pixel_values", ("batch", 3, 32, 32))
        values = whole.preprocess(images(3, 40, 50))
        assert part.preprocess(values) is values
        found = part.infer({"pixel_values": values})["logits"]
        np.testing.assert_array_equal(found, whole.infer({"image": images(3, 40, 50)})["logits"])


@needs_kernels
def test_a_large_image_is_preprocessed_by_all_threads(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, used = images(1, 1000, 1100), []
    ran = OnnxRuntimeRunner.infer_checked

    def noted(self: OnnxRuntimeRunner, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        used.append(self._threads)
        return ran(self, feeds)

    with OnnxRuntimeRunner(tiny_bundle / FORM, 1) as theirs, NativeRunner(tiny_bundle / FORM, 2) as ours:
        expected = theirs.infer({"image": large})["logits"]
        monkeypatch.setattr(OnnxRuntimeRunner, "infer_checked", noted)
        found = ours.infer({"image": large})["logits"]
        ours.infer({"image": images(1)})
    assert used == [2, 1]
    np.testing.assert_allclose(found, expected, atol=0.05, rtol=0)


def test_a_session_whose_threads_do_not_spin(tiny_bundle: Path) -> None:
    graph = (tiny_bundle / "model.onnx").read_bytes()
    for spinning, entry in ((True, ""), (False, "1")):
        with OnnxRuntimeRunner("no/such/file", 1, graph=graph, spinning=spinning) as runner:
            options = runner._session.get_session_options()
            try:
                found = options.get_session_config_entry("session.force_spinning_stop")
            except RuntimeError:  # it was not set
                found = ""
            assert found == entry
            assert runner.infer({"image": images(1)})["logits"].shape == (1, 10)
