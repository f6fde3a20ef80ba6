"""TensorRT-RTX engines built for real, ahead of time, from every form of a tiny ViT."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tools.engines import FORMS, Recorder, fixed, needs_rtx
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.engine import EngineOptions, Profile, build_engine
from vitdeploy.compiler.engine.builder import _configure as configure
from vitdeploy.compiler.engine.builder import _open_timing_cache as open_timing_cache
from vitdeploy.compiler.engine.watch import BuildLog
from vitdeploy.core import machine
from vitdeploy.core.errors import EngineError, InputError, VitdeployError
from vitdeploy.inspection.graph import read_graph


@pytest.fixture(scope="module")
def forms(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a BF16 form as well. Read-only."""
    from vitdeploy.compiler.build import build

    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("forms") / "bundle"))
    build(path, ["bf16"], target="onnx")
    return path


@needs_rtx
@pytest.mark.parametrize(("precision", "form"), FORMS.items())
def test_builds_every_form_without_a_gpu(
    forms: Path, tmp_path: Path, options: EngineOptions, recorder: Recorder, form: str, precision: str
) -> None:
    source, output = forms / form, tmp_path / "engines" / "some.engine"
    info = build_engine(source, output, options)
    data = info.to_json()
    assert data["precision"] == precision
    assert data["tensorrt"] == {"flavour": "tensorrt-rtx", "version": machine.version("tensorrt-rtx")}
    assert data["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0+"]
    assert data["profiles"] == [{"image": {"min": [1, 1, 1, 3], "opt": [1, 32, 32, 3], "max": [8, 1080, 1920, 3]}}]
    assert data["source_onnx_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (data["layers"].get("quantize", 0) > 0) == (precision == "int8")
    assert (data["layers"].get("float16", 0) > 0) == (precision in ("fp16", "int8"))
    assert (data["layers"].get("bfloat16", 0) > 0) == (precision == "bf16")
    graph = read_graph(source)
    assert (data["products"], len(data["int8_products"])) == (graph.products, graph.int8_products)
    assert json.loads(json.dumps(data)) == data
    assert output.stat().st_size == info.size_bytes > 10_000
    assert sorted(path.name for path in output.parent.iterdir()) == ["some.engine", "some.log"]
    assert "[INFO]" in output.with_suffix(".log").read_text()


@needs_rtx
@pytest.mark.parametrize("precision", FORMS)
def test_builds_every_form_for_one_size_and_named_gpus(forms: Path, tmp_path: Path, precision: str) -> None:
    one = EngineOptions(
        profiles=(Profile(fixed(2), fixed(32), fixed(32)),), compute_capabilities=("8.0", "8.6", "8.9", "12.0")
    )
    info = build_engine(forms / FORMS[precision], tmp_path / "e", one)
    assert info.precision == precision and info.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert info.profiles[0]["image"]["max"] == [2, 32, 32, 3]


@needs_rtx
def test_builds_every_form_of_a_graph_of_a_fixed_size(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from PIL import Image

    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.export import export
    from vitdeploy.compiler.quantization.recipe import Recipe

    for number, label in enumerate(("zero", "one") * 4):
        (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / label / f"{number}.png")
    bundle = export(tiny_checkpoint, tmp_path / "bundle", input_size=(40, 24))
    recipe = Recipe(dataset=str(tmp_path / "images"), count=8)
    result = build(bundle, list(FORMS), target="tensorrt-rtx", recipe=recipe)
    engines = {artifact.precision: artifact.built_with for artifact in result.bundle.select(kind="engine")}
    assert set(engines) == set(FORMS)
    for precision, made in engines.items():
        assert made["precision"] == precision and made["profiles"][0]["image"]["max"][1:] == [40, 24, 3]
    again = build(result.bundle, list(FORMS), target="tensorrt-rtx")
    assert again.built == () and {a.precision for a in again.kept if a.kind == "engine"} == set(FORMS)


def test_ranges_and_compute_capabilities_change_the_engine(
    tiny_bundle: Path, tmp_path: Path, options: EngineOptions
) -> None:
    source = tiny_bundle / "model.fp16.onnx"
    one = EngineOptions(profiles=(Profile(fixed(1), fixed(32), fixed(32)),))
    static = build_engine(source, tmp_path / "fixed", one)
    assert static.profiles[0]["image"] == {key: [1, 32, 32, 3] for key in ("min", "opt", "max")}
    named = EngineOptions(
        profiles=(replace(options.profiles[0], batch=fixed(2, 4, 4)),), compute_capabilities=("8.6", "8.9", "12.0")
    )
    info = build_engine(source, tmp_path / "named", named)
    assert info.profiles[0]["image"]["min"][0] == 2 and info.profiles[0]["image"]["max"][0] == 4
    assert info.compute_capabilities == ("8.6", "8.9", "12.0")
    assert info.to_json()["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert info.to_json()["flags"] == {}
    assert static.size_bytes < info.size_bytes  # code for one size against code for many


@needs_rtx
def test_a_static_graph_needs_no_sizes_and_takes_no_others(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["":20]>\n'
        "g (uint8[2,8,6,3] image) => (float[2,8,6,3] y) { y = Cast<to=1>(image) }"
    )
    path = tmp_path / "static.onnx"
    onnx.save(model, path)
    info = build_engine(path, tmp_path / "e", EngineOptions())
    assert info.profiles[0]["image"]["max"] == [2, 8, 6, 3]
    with pytest.raises(InputError, match="a batch of 2 only, not 1 to 8"):
        build_engine(path, tmp_path / "f", EngineOptions(profiles=(Profile(batch=fixed(1, 1, 8)),)))


@needs_rtx
def test_an_engine_is_written_whole_or_not_at_all(
    tiny_bundle: Path, tmp_path: Path, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.engine"
    output.write_bytes(b"the old one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VitdeployError, match="no space left"):
        build_engine(tiny_bundle / "model.fp16.onnx", output, options)
    assert output.read_bytes() == b"the old one"
    assert {path.name for path in tmp_path.iterdir()} == {"x.engine", "x.log"}


@needs_rtx
def test_several_profiles_in_one_engine(tiny_bundle: Path, tmp_path: Path, options: EngineOptions) -> None:
    source = tiny_bundle / "model.fp16.onnx"
    camera = Profile(fixed(1), fixed(48), fixed(64))
    uploads = Profile(fixed(1, 4, 8), fixed(1, 32, 256), fixed(1, 32, 256))
    info = build_engine(source, tmp_path / "two", EngineOptions(profiles=(camera, uploads)))
    assert info.profiles == (
        {"image": {"min": [1, 48, 64, 3], "opt": [1, 48, 64, 3], "max": [1, 48, 64, 3]}},
        {"image": {"min": [1, 1, 1, 3], "opt": [4, 32, 32, 3], "max": [8, 256, 256, 3]}},
    )
    assert info.size_bytes > build_engine(source, tmp_path / "one", EngineOptions(profiles=(camera,))).size_bytes
    log = (tmp_path / "two.log").read_text()
    with pytest.raises(InputError, match="profile 3 is the same as profile 1: 1x48x64:1x48x64:1x48x64"):
        build_engine(source, tmp_path / "two", EngineOptions(profiles=(camera, uploads, camera)))
    assert "Engine generation completed" in log


@needs_rtx
def test_the_path_of_tensorrt_runs_on_the_bindings_of_rtx(
    tiny_bundle: Path, tmp_path: Path, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT needs a GPU; TensorRT-RTX has the same classes, so each call of the other path is made for real."""
    trt = pytest.importorskip("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(trt, "__version__", "10.3.0.26")
    monkeypatch.setattr(machine, "has_module", lambda name: True)
    monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu("Orin", "8.7", 8 << 30, "540.3", "12.6", True),))
    cache = tmp_path / "timing.cache"
    wanted = EngineOptions(
        flavour="tensorrt",
        profiles=options.profiles,
        workspace_mib=4096,
        optimization_level=1,
        max_aux_streams=0,
        hardware_compatible=True,
        timing_cache=cache,
    )
    data = build_engine(tiny_bundle / "model.fp16.onnx", tmp_path / "e", wanted).to_json()
    assert (data["gpu"], data["compute_capability"], data["driver"], data["cuda"]) == ("Orin", "8.7", "540.3", "12.6")
    assert "compute_capabilities" not in data
    assert data["flags"] == {
        "workspace_mib": 4096,
        "optimization_level": 1,
        "max_aux_streams": 0,
        "hardware_compatible": True,
        "timing_cache": "timing.cache",
    }
    assert data["timing_cache_sha256"] == hashlib.sha256(cache.read_bytes()).hexdigest()
    assert "setHardwareCompatibilityLevel" in (tmp_path / "e.log").read_text()
    assert data["tensorrt"] == {"flavour": "tensorrt", "version": "10.3.0.26"}
    cache.write_bytes(b"damaged")
    with pytest.raises(EngineError, match=r"the timing cache .*timing.cache is damaged"):
        build_engine(tiny_bundle / "model.fp16.onnx", tmp_path / "f", wanted)
    assert cache.read_bytes() == b"damaged"
    monkeypatch.setattr(trt, "__version__", "8.6.2")
    with pytest.raises(EngineError, match=r"8\.6\.2 is installed, and vitdeploy needs 10\.3 or later"):
        build_engine(tiny_bundle / "model.fp16.onnx", tmp_path / "f", wanted)
    monkeypatch.setattr(machine, "jetson_release", lambda: "R36.4.3")
    with pytest.raises(InputError, match="this is a Jetson"):
        build_engine(tiny_bundle / "model.fp16.onnx", tmp_path / "f", wanted)


@needs_rtx
def test_weights_that_are_stripped_are_put_back_as_they_were() -> None:
    """TensorRT has kernels for the weights' own values then, which REFIT alone would forbid."""
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    flags = ("STRIP_PLAN", "REFIT_IDENTICAL", "REFIT", "VERSION_COMPATIBLE")
    for options, wanted in (
        ({"strip_weights": True}, {"STRIP_PLAN", "REFIT_IDENTICAL"}),
        ({"version_compatible": True}, {"VERSION_COMPATIBLE"}),
        ({}, set()),
    ):
        config = builder.create_builder_config()
        configure(trt, builder, config, EngineOptions(flavour="tensorrt", **options), ())
        assert {name for name in flags if config.get_flag(getattr(trt.BuilderFlag, name))} == wanted


BARE = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocker())
    from vitdeploy.cli.app import run
    sys.exit(run(["build-engine", sys.argv[1], "--int8", "--target", "tensorrt-rtx", "--json"]))
"""


@needs_rtx
def test_a_device_builds_from_a_finished_bundle_with_tensorrt_alone(tiny_bundle_copy: Path) -> None:
    """docs/gpu.md promises it: on the device there is neither PyTorch nor onnx nor a calibration image."""
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BARE), tiny_bundle_copy], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert [item["path"] for item in json.loads(answer.stdout)["built"]] == ["engines/tensorrt-rtx-int8.engine"]
    bundle = Bundle.open(tiny_bundle_copy)
    artifact = bundle.find(kind="engine", precision="int8", target="tensorrt-rtx")
    assert artifact is not None and artifact.built_with["precision"] == "int8"
    assert bundle.file(artifact).stat().st_size == artifact.size_bytes


@pytest.mark.parametrize("severity", ["WARNING", "ERROR"])
def test_a_timing_cache_that_tensorrt_leaves_unused_is_refused_however_it_says_so(
    severity: str, tmp_path: Path
) -> None:
    """RTX 1.7 warns, TensorRT 8.6 called the same words an error; both go on with an empty cache."""
    log, cache = BuildLog(io.StringIO()), tmp_path / "timing.cache"
    cache.write_bytes(b"of another GPU")

    class Config:
        def create_timing_cache(self, content: bytes) -> object:
            log.add(severity, "The timing cache will not be used!")
            return object()

        def set_timing_cache(self, cache: object, ignore_mismatch: bool) -> bool:
            return True

    with pytest.raises(EngineError, match="is damaged, or of another GPU"):
        open_timing_cache(Config(), EngineOptions(flavour="tensorrt", timing_cache=cache), log)
