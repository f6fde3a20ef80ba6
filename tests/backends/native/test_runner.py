"""The runner of our own INT8 kernels: which graphs it takes, what it says of the others, and where it has its place."""

from __future__ import annotations

import platform
import re
import shutil
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

from tests.tools.backends import needs_torch
from tests.tools.families import write_family
from tests.tools.native import compiled
from vitdeploy import load
from vitdeploy.backends import registry
from vitdeploy.backends.native import library, structures
from vitdeploy.backends.native.library import kernels_obstacle
from vitdeploy.backends.native.plain_vit import read_plain_vit
from vitdeploy.backends.native.runner import NativeRunner, check_plain_vit
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.bench import bench
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.passes.cut import cut
from vitdeploy.compiler.passes.integer_products import fuse_integer_products
from vitdeploy.compiler.passes.prune_token_rows import prune_token_rows
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.schemes import INT8_UNSIGNED
from vitdeploy.core import machine
from vitdeploy.core.errors import DependencyError, ModelError
from vitdeploy.core.machine import has_module
from vitdeploy.data import load_dataset
from vitdeploy.doctor import examine
from vitdeploy.runtime.selection import candidates

OBSTACLE = kernels_obstacle()
needs_kernels = pytest.mark.skipif(OBSTACLE is not None, reason=": ".join(OBSTACLE or ()))
FORM = "model.int8-cpu.onnx"


def images(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


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


def changed(bundle: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    model = onnx.load(bundle / FORM)
    change(model.graph)
    onnx.save(model, folder / FORM)
    return folder / FORM


def nodes(graph: Any, kind: str) -> list[Any]:
    return [node for node in graph.node if node.op_type == kind and "pixel" not in node.name]


def attribute(node: Any, name: str) -> Any:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def constant(graph: Any, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    from onnx import numpy_helper

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


def second_reader(graph: Any) -> None:
    from onnx import helper

    graph.node.append(helper.make_node("Identity", [nodes(graph, "Gemm")[0].input[0]], ["features"], name="more"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(tanh, r"mlp.*Gelu.*approximate", id="another GELU"),
        pytest.param(relu, r"Relu.*Gelu was expected", id="no GELU"),
        pytest.param(other_token, r"Slice.*first token", id="another token"),
        pytest.param(swapped, r"MatMul.*queries with keys", id="keys times queries"),
        pytest.param(other_residual, r"node .*layers\.1", id="another residual"),
        pytest.param(second_reader, r"more", id="one more output"),
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
    form = read_plain_vit(onnx.load(tmp_path / FORM))
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
@pytest.mark.parametrize("name", ["dinov2", "beit"])
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
    form = read_plain_vit(onnx.load(bundle / FORM))
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


def order(bundle: Path) -> list[tuple[str, str, bool]]:
    found = candidates(Bundle.open(bundle), "auto", "int8", "cpu")
    return [(form.precision, form.backend, form.reason is None) for form in found]


def test_its_place(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(registry.find("native"), obstacle=lambda: None)
    monkeypatch.setitem(registry._specs, "native", spec)
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    assert [name for _, name, _ in order(tiny_bundle)] == ["native", "openvino", "onnxruntime"]
    for flags in ({"avx512_vnni", "amx_int8"}, {"avx_vnni"}):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert [name for _, name, _ in order(tiny_bundle)] == ["openvino", "onnxruntime", "native"]


@needs_kernels
def test_load_takes_it(tiny_bundle: Path) -> None:
    if "amx_int8" in machine.cpu_flags():
        pytest.skip("it is the last here")
    with load(tiny_bundle, threads=2) as classifier:
        assert (classifier.precision, classifier.backend) == ("int8", "native")
        assert classifier.predict(images(1)[0]).label


OLD = library.InstructionSet("avx", "AVX-512 VNNI", False, structures.Tile(), 0)
PLAIN = library.InstructionSet("plain", None, True, structures.Tile(), 0)


def without_kernels() -> None:
    raise DependencyError("vitdeploy was installed without its kernels", hint="install g++")


@pytest.mark.parametrize(
    ("found", "named", "says"),
    [
        pytest.param(lambda: (OLD, PLAIN), "", "has no AVX-512 VNNI", id="an older processor"),
        pytest.param(lambda: (OLD, PLAIN), "avx", "VITDEPLOY_ISA is 'avx'.* has no AVX-512", id="an older one, named"),
        pytest.param(lambda: (OLD, PLAIN), "mmx", "'mmx': the kernels have avx, plain", id="a name that is none"),
        pytest.param(lambda: (PLAIN,), "", "no instruction set of this kind", id="another kind of processor"),
        pytest.param(without_kernels, "", "without its kernels", id="installed without a compiler"),
    ],
)
def test_where_it_can_not_run(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, found: Callable[[], Any], named: str, says: str
) -> None:
    monkeypatch.setattr(library, "instruction_sets", found)
    monkeypatch.setenv(library.VARIABLE, named)
    obstacle = kernels_obstacle()
    assert obstacle is not None and re.search(says, obstacle[0])
    with pytest.raises(DependencyError, match=says) as caught, NativeRunner(tiny_bundle / FORM):
        pass
    assert caught.value.hint
    (form,) = (form for form in candidates(Bundle.open(tiny_bundle), "native", "auto", None))
    assert re.search(says, form.reason or "")
    with load(tiny_bundle, device="cpu") as classifier:
        assert (classifier.precision, classifier.backend) == ("int8", "openvino")
        assert classifier.describe()["instruction_set"] is None
    monkeypatch.setenv(library.VARIABLE, "plain")
    assert (kernels_obstacle() is None) == (found is not without_kernels)


@pytest.mark.skipif(not has_module("vitdeploy.backends.native._kernels"), reason="there are no kernels")
def test_the_portable_instruction_set_runs_anywhere_when_it_is_asked_for(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest = next((isa.name for isa in library.instruction_sets() if isa.missing is None and not isa.on_request), None)
    asked = {"portable": "portable"} | ({"": fastest} if fastest else {})
    scores = []
    for name, taken in asked.items():
        monkeypatch.setenv(library.VARIABLE, name)
        with load(tiny_bundle, backend="native", threads=2) as classifier:
            assert classifier.describe()["instruction_set"] == taken
            scores.append([each.score for each in classifier.predict(list(images(3)))])
        (note,) = (each.note for each in examine().capabilities if each.key == "native")
        assert note == f"compiled for {taken}"
    assert scores[0] == scores[-1]


NATIVE = Path(library.__file__).parent


def test_only_instruction_sets_name_instructions() -> None:
    files = [path for path in NATIVE.rglob("*") if path.suffix in (".cpp", ".h")]
    intrinsic = re.compile(r"\b_mm|\b__m\d|\basm\b|include <(\w*intrin|arm_neon)")
    named = {path.parent.name for path in files if intrinsic.search(path.read_text())}
    assert named == {"isa"}


@pytest.mark.full
@pytest.mark.skipif(None in map(shutil.which, ("g++", "objdump", "nm")), reason="needs g++ and binutils")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86's instructions")
def test_no_code_of_an_instruction_set_is_run_by_another(tmp_path: Path) -> None:
    """AVX and AVX-512 are in the files that say so, and no file offers the linker more than its table of steps."""
    objects = {path.stem: path for path in compiled(tmp_path, ["-O3"])}
    code = {name: subprocess.check_output(["objdump", "-d", path], text=True) for name, path in objects.items()}
    of_avx512 = re.compile(r"^ *[0-9a-f]+:\t62 |%zmm|%k[0-7]", re.MULTILINE)  # no other encoding begins with 62
    assert {name for name, text in code.items() if of_avx512.search(text)} == {"avx512vnni", "avx512vl"}
    assert {name for name, text in code.items() if "%ymm" in text} == {"avx512vnni", "avx512vl", "avxvnni"}
    for name, path in objects.items():
        offered = subprocess.check_output(["nm", "-C", "--defined-only", "--extern-only", path], text=True)
        if name != "encoder":
            assert [line.split(maxsplit=2)[2] for line in offered.splitlines()] == [f"kernels::{name}::steps"]


@pytest.mark.full
@needs_kernels
def test_every_instruction_set_answers_2000_images_alike(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(test_data / "models" / "vit-small-patch14-112-cifar10", tmp_path / "bundle")
    recipe = Recipe(dataset=str(test_data / "cifar10"), count=4, smoothing=False)
    build(tmp_path / "bundle", ["int8"], target="onnx", recipe=recipe)
    dataset = load_dataset(str(test_data / "cifar10"), split="test")
    pixels = np.stack([np.asarray(dataset.image(place)) for place in range(2000)])
    answers = {}
    for isa in library.instruction_sets():
        if isa.missing is None and isa.name != "portable":
            monkeypatch.setenv(library.VARIABLE, isa.name)
            with NativeRunner(tmp_path / "bundle" / FORM, 2) as runner:
                assert runner.instruction_set == isa.name
                answers[isa.name] = np.concatenate(
                    [runner.infer({"image": pixels[start : start + 50]})["logits"] for start in range(0, 2000, 50)]
                )
    first = next(iter(answers.values()))
    assert len(np.unique(first.argmax(axis=1))) == 10
    for logits in answers.values():
        np.testing.assert_array_equal(logits.view(np.uint32), first.view(np.uint32))


@needs_kernels
def test_without_onnx(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DependencyError, match="onnx") as caught, NativeRunner(tiny_bundle / FORM):
        pass
    assert caught.value.hint is not None and caught.value.hint.replace("'", "").startswith("pip install onnx")


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
    form = read_plain_vit(onnx.load(tiny_bundle / FORM))
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
