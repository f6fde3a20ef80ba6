"""What build makes, what it leaves alone, and what it does when it is stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.command_line import invoke
from tests.tools.files import snapshot
from tests.tools.notes import kept_notes
from vitdeploy import __version__
from vitdeploy.backends.tensorrt.options import EngineOptions, Profile
from vitdeploy.bundle import Bundle
from vitdeploy.bundle.selftest import Selftest
from vitdeploy.compiler.build import _request, build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.lint import attention
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.core.errors import BundleError, DatasetError, InputError, ModelError
from vitdeploy.core.specs import ShapeRange


@pytest.fixture
def plain(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with its FP32 graph only."""
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copy(tiny_bundle / "model.onnx", folder)
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    data["artifacts"] = [artifact for artifact in data["artifacts"] if artifact["path"] == "model.onnx"]
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


def test_forms_are_smaller_and_tied_to_their_source(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle.verify()
    single = bundle.find(kind="onnx", precision="fp32")
    half = bundle.find(kind="onnx", precision="fp16")
    assert single is not None and half is not None
    assert half.size_bytes < 0.7 * single.size_bytes
    for artifact in bundle.manifest.artifacts:
        if artifact.path != "model.onnx":
            assert artifact.built_from == single.sha256


def readers_of(name: str, graph: Any) -> set[str]:
    """Operators that read a value, in the branches of a graph too."""
    found = {node.op_type for node in graph.node if name in node.input}
    branches = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return found.union(*(readers_of(name, branch) for branch in branches))


def test_cpus_get_another_layout_and_the_same_pixel_values(tiny_bundle: Path) -> None:
    import onnx
    import onnxruntime

    image = np.random.default_rng(0).integers(0, 256, (2, 37, 50, 3), dtype=np.uint8)
    values = []
    for name, casts_the_image in (("model.onnx", True), ("model.int8-cpu.onnx", False)):
        model = onnx.load(tiny_bundle / name)
        assert ("Cast" in readers_of("image", model.graph)) is casts_the_image
        model.graph.output.append(onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        values.append(session.run(["pixel_values"], {"image": image})[0])
    np.testing.assert_array_equal(*values)


def test_nothing_is_built_twice(tiny_bundle_copy: Path) -> None:
    before = snapshot(tiny_bundle_copy)
    result = build(tiny_bundle_copy, ["fp16", "int8"], target="onnx")
    assert not result.built and {a.path for a in result.kept} == {
        "model.fp16.onnx",
        "model.int8.onnx",
        "model.int8-cpu.onnx",
    }
    assert snapshot(tiny_bundle_copy) == before


@pytest.mark.parametrize("what", ["version", "source", "file"])
def test_a_form_of_another_version_or_graph_or_that_is_gone_is_built_again(what: str, tiny_bundle_copy: Path) -> None:
    data = json.loads((tiny_bundle_copy / "manifest.json").read_text())
    (half,) = (artifact for artifact in data["artifacts"] if artifact["path"] == "model.fp16.onnx")
    if what == "version":
        half["built_with"]["vitdeploy"] = "0.0.1"
    elif what == "source":
        half["built_from"] = "0" * 64
    else:
        (tiny_bundle_copy / "model.fp16.onnx").unlink()
    (tiny_bundle_copy / "manifest.json").write_text(json.dumps(data))
    build(tiny_bundle_copy, ["fp16"], target="onnx")
    bundle = Bundle.open(tiny_bundle_copy)
    bundle.verify()
    made, single = bundle.find(kind="onnx", precision="fp16"), bundle.find(kind="onnx", precision="fp32")
    assert made is not None and single is not None and made.built_from == single.sha256
    assert made.built_with["vitdeploy"] == __version__ and made.built_with["kept_fp32"] == []


def test_a_bundle_without_a_self_test_gets_one_of_all_its_forms(tiny_bundle_copy: Path) -> None:
    data = json.loads((tiny_bundle_copy / "manifest.json").read_text())
    data["artifacts"] = [artifact for artifact in data["artifacts"] if artifact["kind"] != "selftest"]
    (tiny_bundle_copy / "manifest.json").write_text(json.dumps(data))
    bundle = build(tiny_bundle_copy, ["fp32"], target="onnx").bundle
    assert set(Selftest.of(bundle).bounds) == {artifact.path for artifact in bundle.select(kind="onnx")}


def test_fp16_looks_at_the_images_that_calibrate_and_at_its_own_without(plain: Path, tiny_images: Path) -> None:
    def looked_at() -> Any:
        plan = Bundle.open(plain).find(kind="half-plan")
        assert plan is not None
        return plan.built_with["images"].get("looked_at")

    build(plain, ["fp16"], target="onnx")
    assert looked_at() is None
    build(plain, ["fp16"], target="onnx", recipe=Recipe(str(tiny_images), count=8))
    assert looked_at() == 8


def test_int8_is_rebuilt_from_the_calibration_bit_for_bit(tiny_bundle_copy: Path) -> None:
    before = snapshot(tiny_bundle_copy)
    result = build(tiny_bundle_copy, ["int8"], target="onnx", force=True)
    assert result.bundle.manifest == Bundle.open(tiny_bundle_copy).manifest
    after = snapshot(tiny_bundle_copy)
    assert all(after[name] == before[name] for name in ("model.int8.onnx", "model.int8-cpu.onnx", "calibration.json"))


def test_another_recipe_calibrates_again(tiny_bundle_copy: Path, tiny_images: Path) -> None:
    before = snapshot(tiny_bundle_copy)
    same = Recipe(dataset=str(tiny_images), count=24)
    assert not build(tiny_bundle_copy, ["int8"], target="onnx", recipe=same).built
    other = Recipe(dataset=str(tiny_images), count=24, method="minmax", smoothing=False)
    built = build(tiny_bundle_copy, ["int8"], target="onnx", recipe=other).built
    assert {a.path for a in built} == {"calibration.json", "model.int8.onnx", "model.int8-cpu.onnx"}
    assert snapshot(tiny_bundle_copy)["model.int8.onnx"] != before["model.int8.onnx"]
    assert str(tiny_images.parent) not in (tiny_bundle_copy / "manifest.json").read_text()


def test_int8_needs_images_or_a_calibration(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(plain)
    monkeypatch.setattr("vitdeploy.compiler.forms.plan_for", None)  # no model runs before it is said
    with pytest.raises(InputError, match="needs calibration images") as caught:
        build(plain, ["int8"], target="onnx")
    assert "--calibration-data" in str(caught.value.hint)
    assert snapshot(plain) == before


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_calibration_images_of_another_size_than_the_graphs_are_refused(
    precision: str, tiny_checkpoint: Path, tiny_images: Path, tmp_path: Path
) -> None:
    export(tiny_checkpoint, tmp_path / "fixed", input_size=(48, 48))
    before = snapshot(tmp_path / "fixed")
    with pytest.raises(InputError, match="exported for 48x48 only") as caught:
        build(tmp_path / "fixed", [precision], target="onnx", recipe=Recipe(str(tiny_images), count=8))
    assert "--input-size" in caught.value.hint
    assert snapshot(tmp_path / "fixed") == before


def test_missing_images_leave_the_bundle(plain: Path) -> None:
    before = snapshot(plain)
    with pytest.raises(DatasetError):
        build(plain, ["fp16", "int8"], target="onnx", recipe=Recipe(dataset="./nowhere"))
    assert snapshot(plain) == before


@pytest.mark.parametrize("precisions", [[], ["int4"]])
def test_unknown_precisions_are_refused(precisions: list[str], tiny_bundle: Path) -> None:
    with pytest.raises(InputError):
        build(tiny_bundle, precisions, target="onnx")


def test_a_calibration_of_another_model_is_refused(tiny_bundle_copy: Path) -> None:
    bundle = Bundle.open(tiny_bundle_copy)
    data = json.loads((tiny_bundle_copy / "calibration.json").read_text())
    data["model_sha256"] = "0" * 64
    with bundle.edit() as editor:
        editor.path_for("calibration.json").write_text(json.dumps(data))
        editor.add("calibration.json", kind="calibration")
    with pytest.raises(BundleError, match="made for another model"):
        build(tiny_bundle_copy, ["int8"], target="onnx")


def test_a_tampered_graph_is_not_built_from(tiny_bundle_copy: Path) -> None:
    content = bytearray((tiny_bundle_copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tiny_bundle_copy / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        build(tiny_bundle_copy, ["fp16"], target="onnx", force=True)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_stopped_build_leaves_the_bundle(
    stop: object, tiny_bundle_copy: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(tiny_bundle_copy)

    def fail(*_: object) -> None:
        raise stop  # type: ignore[misc]

    monkeypatch.setattr("vitdeploy.compiler.forms.check_half", fail)
    with pytest.raises((KeyboardInterrupt, Exception)):
        build(tiny_bundle_copy, ["fp16", "int8"], target="onnx", force=True, recipe=Recipe(str(tiny_images), count=8))
    assert snapshot(tiny_bundle_copy) == before


def test_a_form_that_loses_too_much_is_refused(tiny_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the plan for FP16 keep nothing, and scale what is written to the residual stream: FP16 overflows."""
    import onnx_ir as ir

    from vitdeploy.compiler.float16 import plan
    from vitdeploy.compiler.passes.values import constant, new_initializer

    model = ir.load(tiny_bundle_copy / "model.onnx")
    for node in model.graph:
        if node.op_type == "MatMul" and (node.name or "").endswith(("o_proj/MatMul", "fc2/MatMul")):
            weight = constant(node.inputs[1])
            assert weight is not None
            node.replace_input_with(1, new_initializer(model.graph, f"{node.name}.big", weight * 60000))
    bundle = Bundle.open(tiny_bundle_copy)
    with bundle.edit() as editor:
        ir.save(model, editor.path_for("model.onnx"))
        editor.add("model.onnx", kind="onnx", precision="fp32")
    before = snapshot(tiny_bundle_copy)
    real = plan.plan_half
    monkeypatch.setattr(plan, "plan_half", lambda *arguments: replace(real(*arguments), kept=()))
    with pytest.raises(ModelError, match=r"no finite logits|FP16 loses too much"):
        build(tiny_bundle_copy, ["fp16"], target="onnx")
    assert snapshot(tiny_bundle_copy) == before
    monkeypatch.undo()
    build(tiny_bundle_copy, ["fp16"], target="onnx")  # with the plan it can be had


def test_int8_that_would_be_slower_than_fp16_fails_the_build(
    tiny_bundle_copy: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused INT8 attention takes so many tokens; let it be one less than the model has."""
    recipe = Recipe(str(tiny_images), count=8, attention=True)
    before = snapshot(tiny_bundle_copy)
    monkeypatch.setattr(attention, "LONGEST", 16)
    with pytest.raises(ModelError, match="no fused INT8 attention for 17 tokens"):
        build(tiny_bundle_copy, ["int8"], target="onnx", recipe=recipe)
    assert snapshot(tiny_bundle_copy) == before
    monkeypatch.setattr(attention, "LONGEST", 17)
    assert build(tiny_bundle_copy, ["int8"], target="onnx", recipe=recipe).built


def test_an_engine_is_built_once(plain: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    first = build(plain, ["fp16"], target="tensorrt-rtx")
    engine = first.bundle.find(kind="engine", precision="fp16", target="tensorrt-rtx")
    source = first.bundle.find(kind="onnx", precision="fp16")
    assert engine is not None and source is not None and engine.built_from == source.sha256
    assert engine.built_with["tensorrt"]["flavour"] == "tensorrt-rtx"
    with kept_notes() as said:
        again = build(plain, ["fp16"], target="tensorrt-rtx")
    assert not again.built and engine in again.kept
    assert "engines/tensorrt-rtx-fp16.engine is up to date: nothing to build." in said
    small = EngineOptions("tensorrt-rtx", (Profile(ShapeRange(1, 1, 2), ShapeRange(8, 32, 32), ShapeRange(8, 32, 32)),))
    other = build(plain, ["fp16"], target="tensorrt-rtx", engine_options=small)
    assert [artifact.kind for artifact in other.built] == ["engine"]


def test_an_engine_that_is_wished_otherwise_is_another() -> None:
    """Every option that an engine can have."""
    others: dict[str, Any] = {
        "profiles": (Profile(ShapeRange(1, 1, 2)),),
        "workspace_mib": 64,
        "optimization_level": 1,
        "max_aux_streams": 0,
        "timing_cache": Path("cache"),
        "hardware_compatible": True,
        "version_compatible": True,
        "strip_weights": True,
    }
    plain, rtx = EngineOptions("tensorrt"), EngineOptions("tensorrt-rtx")
    wishes = [plain, rtx, *(replace(plain, **{name: value}) for name, value in others.items())]
    wishes.append(replace(rtx, compute_capabilities=("8.6",)))
    requests = [_request(wish) for wish in wishes]
    assert all(one != other for place, one in enumerate(requests) for other in requests[:place])
    assert {*others, "flavour", "compute_capabilities"} == {field.name for field in fields(EngineOptions)}


def test_an_engine_of_an_earlier_graph_is_not_called_up_to_date(plain: Path, tiny_images: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    recipe = Recipe(str(tiny_images), count=8)
    first = build(plain, ["int8"], target="tensorrt-rtx", recipe=recipe)
    assert not first.stale
    other = build(plain, ["int8"], target="onnx", recipe=replace(recipe, count=12))
    engine = other.bundle.find(kind="engine", precision="int8", target="tensorrt-rtx")
    assert other.stale == (engine,) and engine not in other.kept
    said = invoke("build-engine", plain, "--int8", "--target", "onnx").stdout
    line = next(line for line in said.splitlines() if "tensorrt-rtx-int8.engine" in line)
    assert "up to date" not in line and f"build-engine {plain} --int8 --target tensorrt-rtx" in line
    listed = json.loads(invoke("build-engine", plain, "--int8", "--target", "onnx", "--json").stdout)
    assert [artifact["path"] for artifact in listed["stale"]] == ["engines/tensorrt-rtx-int8.engine"]
    fresh = build(plain, ["int8"], target="tensorrt-rtx")
    assert not fresh.stale and [artifact.kind for artifact in fresh.built] == ["engine"]
