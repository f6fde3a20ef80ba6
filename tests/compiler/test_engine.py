"""TensorRT-RTX engines built for real, ahead of time; what can't be built is refused with the next step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy import machine, progress
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.engine import EngineOptions, Profile, build_engine, choose_target, why_not
from vitdeploy.compiler.engine.watch import BuildLog, Phases, explain_error
from vitdeploy.errors import EngineError, InputError, ModelError, VitdeployError
from vitdeploy.graphs import read_graph
from vitdeploy.specs import ShapeRange

needs_rtx = pytest.mark.skipif(
    why_not("tensorrt-rtx") is not None, reason="tensorrt-rtx can't build here: " + str(why_not("tensorrt-rtx"))
)


class Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.completed: list[float] = []
        self.details: list[str] = []

    def task(self, description: str, total: float | None, unit: str) -> AbstractContextManager[Any]:
        return nullcontext(self)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, amount: float = 1) -> None:
        raise AssertionError("the builder sets what is done")

    def update(self, *, completed: float | None = None, total: float | None = None, detail: str | None = None) -> None:
        if completed is not None:
            self.completed.append(completed)
        if detail:
            self.details.append(detail)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    with progress.use(recorder):
        yield recorder


@pytest.fixture(scope="session")
def options(tiny_bundle: Path) -> EngineOptions:
    return EngineOptions().for_manifest(Bundle.open(tiny_bundle).manifest)


def graph(text: str, path: Path, *, name: str = "vit.layers.3.mlp/Weird") -> Path:
    """An ONNX file from nodes in ONNX's text form: `image` uint8 -> `y` float32; the last node is called `name`."""
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["":20]>\n'
        f"g (uint8[batch,height,width,3] image) => (float[batch,height,width,3] y) {{ {text} }}"
    )
    model.graph.node[-1].name = name
    onnx.save(model, path)
    return path


IDENTITY = "y = Cast<to=1>(image)"


def fixed(*sizes: int) -> ShapeRange:
    """A range of one size, or (minimum, optimum, maximum)."""
    return ShapeRange(*(sizes * 3 if len(sizes) == 1 else sizes))


def square(size: int, **more: Any) -> EngineOptions:
    """Options of an engine for square images of one size."""
    return EngineOptions(profiles=(Profile(height=fixed(size), width=fixed(size)),), **more)


# --- Building ---


FORMS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx", "int8": "model.int8.onnx"}


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
    from vitdeploy.compiler.recipe import Recipe

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


@needs_rtx
def test_progress_rises_to_the_end_and_names_phases(
    tiny_bundle: Path, tmp_path: Path, options: EngineOptions, recorder: Recorder
) -> None:
    build_engine(tiny_bundle / "model.fp16.onnx", tmp_path / "e", options)
    assert recorder.completed == sorted(recorder.completed)
    assert recorder.completed[-1] == 100
    assert len({round(done) for done in recorder.completed}) > 10
    assert "Cloning network graph" in recorder.details


@needs_rtx
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
def test_every_form_of_a_real_model_and_their_sizes(test_data: Path, tmp_path: Path) -> None:
    """FP16 halves the weights and INT8 quarters them; the rest is the source text of fused kernels, which the device
    compiles: 6 to 11 MB where the sizes are fixed, 16 to 20 MB with the usual ranges (docs/results/engine-sizes.md)."""
    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.export import export
    from vitdeploy.compiler.recipe import Recipe

    bundle = export(test_data / "models" / "vit-small-patch14-112-cifar10", tmp_path / "bundle")
    recipe = Recipe(dataset=str(test_data / "cifar10"), count=4, smoothing=False)
    one = EngineOptions(profiles=(Profile(fixed(1), fixed(112), fixed(112)),))
    bundle = build(bundle, list(FORMS), target="tensorrt-rtx", recipe=recipe, engine_options=one).bundle
    sizes = {artifact.precision: artifact.size_bytes for artifact in bundle.select(kind="engine")}
    assert set(sizes) == set(FORMS)
    assert sizes["fp16"] <= 0.55 * sizes["fp32"] and sizes["int8"] <= 0.35 * sizes["fp32"], sizes
    build_engine(bundle.path / FORMS["int8"], tmp_path / "usual", EngineOptions().for_manifest(bundle.manifest))
    assert (tmp_path / "usual").stat().st_size > sizes["int8"]


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


# --- Graphs that TensorRT can't take ---


@needs_rtx
@pytest.mark.parametrize(
    ("nodes", "reason", "hint"),
    [
        (
            "f = Cast<to=1>(image) y = Det(f)",
            "(op Det) of the layer vit.layers.3.mlp: TensorRT has no such operator",
            "--target onnx",
        ),
        (
            "f = Cast<to=1>(image) y = Foo(f)",
            "(op Foo) of the layer vit.layers.3.mlp: TensorRT has no such operator",
            "--target onnx",
        ),
        ("y = Transpose<perm=[0,1,2,3]>(image)", "first input has type UInt8", "cast the image before"),
    ],
)
def test_parser_errors_name_node_and_operator(tmp_path: Path, nodes: str, reason: str, hint: str) -> None:
    path = graph(nodes, tmp_path / "odd.onnx")
    with pytest.raises(ModelError) as raised:
        build_engine(path, tmp_path / "e", square(8))
    assert "odd.onnx" in raised.value.message
    assert "node vit.layers.3.mlp/Weird (op " in raised.value.message
    assert "of the layer vit.layers.3.mlp: " in raised.value.message
    assert reason in raised.value.message
    assert hint in str(raised.value.hint)
    assert "checkMacros" not in raised.value.message
    assert not (tmp_path / "e").exists()


@needs_rtx
@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"<html>not found</html>" * 50])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes, options: EngineOptions) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx") as raised:
        build_engine(path, tmp_path / "e", options)
    assert "again" in str(raised.value.hint)


@needs_rtx
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_graph(tiny_bundle: Path, tmp_path: Path, options: EngineOptions, share: float) -> None:
    whole = (tiny_bundle / "model.fp16.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=r"cut\.onnx.*(damaged|cut off)"):
        build_engine(path, tmp_path / "e", options)
    assert not (tmp_path / "e").exists()


BROKEN = """
    import json, random, sys
    from pathlib import Path
    from vitdeploy.compiler.engine import EngineOptions, Profile, build_engine
    from vitdeploy.errors import VitdeployError
    from vitdeploy.specs import ShapeRange

    whole, folder, seed = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3])
    size = ShapeRange(32, 32, 32)
    options = EngineOptions(profiles=(Profile(ShapeRange(1, 1, 1), size, size),))
    chance, counts = random.Random(seed), {}
    for number in range(int(sys.argv[4])):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 3, 40))):  # bits that flip, in the graph or in its weights
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        if number % 3 == 0:  # a block of zeros, as after a crash
            start = chance.randrange(len(content))
            content[start : start + 4096] = bytes(len(content[start : start + 4096]))
        (folder / "broken.onnx").write_bytes(content)
        try:
            build_engine(folder / "broken.onnx", folder / "e", options)
            kind = "built"
        except VitdeployError as error:
            assert error.hint, error.message
            kind = type(error).__name__
        print(number, kind, flush=True)
"""


@needs_rtx
def test_a_corrupted_graph_never_ends_the_process(tiny_bundle: Path, tmp_path: Path) -> None:
    """Flipped bits give an error with a hint, or an engine where they hit weights; TensorRT itself never crashes."""
    arguments = [tiny_bundle / "model.fp16.onnx", tmp_path, "0", "12"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BROKEN), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:])
    kinds = [line.split()[1] for line in done.stdout.splitlines()]
    assert len(kinds) == 12 and set(kinds) <= {"built", "ModelError", "EngineError", "InputError"}
    assert "ModelError" in kinds


def test_a_missing_graph(tmp_path: Path, options: EngineOptions) -> None:
    if why_not("tensorrt-rtx"):
        pytest.skip("tensorrt-rtx can't build here")
    with pytest.raises(ModelError, match="there is no graph"):
        build_engine(tmp_path / "none.onnx", tmp_path / "e", options)


@needs_rtx
def test_a_graph_that_takes_no_images(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["":20]>\n'
        "g (float[batch,3,8,8] pixels) => (float[batch,3,8,8] y) { y = Relu(pixels) }"
    )
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(InputError, match=r"pixels \(-1, 3, 8, 8\)"):
        build_engine(tmp_path / "old.onnx", tmp_path / "e", EngineOptions())


# --- Options that can't be fulfilled ---


@needs_rtx
def test_sizes_are_needed_and_checked_before_the_build(tmp_path: Path) -> None:
    path = graph(IDENTITY, tmp_path / "any.onnx")
    with pytest.raises(InputError, match="images of any height"):
        build_engine(path, tmp_path / "e", EngineOptions())
    huge = fixed(1, 224, 40_000)
    with pytest.raises(InputError, match="8 images of 40000x40000 pixels have 38400000000 values"):
        build_engine(path, tmp_path / "e", EngineOptions(profiles=(Profile(height=huge, width=huge),)))


@needs_rtx
def test_a_compute_capability_it_does_not_know(tmp_path: Path) -> None:
    path = graph(IDENTITY, tmp_path / "any.onnx")
    with pytest.raises(InputError, match=r"nothing for compute capability 8\.7") as raised:
        build_engine(path, tmp_path / "e", square(8, compute_capabilities=("8.7",)))
    assert "8.6" in str(raised.value.hint) and "Jetson" in str(raised.value.hint)


@needs_rtx
def test_turing_has_no_fp32_products(tiny_bundle: Path, tmp_path: Path, options: EngineOptions) -> None:
    turing = replace(options, compute_capabilities=("7.5",))
    with pytest.raises(EngineError, match=r"7\.5 \(Turing\)") as raised:
        build_engine(tiny_bundle / "model.onnx", tmp_path / "e", turing)
    assert "--compute-capability" in str(raised.value.hint)


@needs_rtx
def test_a_workspace_that_is_too_small_is_named(tiny_bundle: Path, tmp_path: Path, options: EngineOptions) -> None:
    with pytest.raises(EngineError) as raised:
        build_engine(tiny_bundle / "model.onnx", tmp_path / "e", replace(options, workspace_mib=1))
    assert "--workspace" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"hardware_compatible": True}, "--hardware-compatible: every TensorRT-RTX engine already runs on all GPUs"),
        ({"version_compatible": True}, "--version-compatible: TensorRT-RTX has no lean runtime"),
        ({"timing_cache": Path("c")}, "--timing-cache"),
        ({"optimization_level": 0}, "--optimization-level"),
        (
            {"flavour": "tensorrt", "compute_capabilities": ("8.6",)},
            "--compute-capability: TensorRT builds for the GPU",
        ),
        ({"flavour": "tensorrt", "optimization_level": 6}, "optimization level 6"),
        ({"workspace_mib": 0}, "workspace of 0 MiB"),
        ({"max_aux_streams": -1}, "-1 auxiliary streams"),
        ({"compute_capabilities": ("ampere",)}, "'ampere' is no compute capability"),
        ({"compute_capabilities": ("8.6", "8.6")}, "named twice"),
        ({"strip_weights": True}, "--strip-weights: TensorRT-RTX makes refittable engines on a GPU only"),
        ({"profiles": ()}, "at least one profile"),
        ({"flavour": "rtx"}, "'rtx' is no kind of TensorRT"),
    ],
)
def test_refused_before_anything_is_read(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as raised:
        EngineOptions(**wrong)
    assert reason in raised.value.message
    assert raised.value.hint


def test_the_other_flavour_takes_what_one_refuses() -> None:
    options = EngineOptions(
        flavour="tensorrt",
        hardware_compatible=True,
        optimization_level=5,
        timing_cache=Path("a/b"),
        strip_weights=True,
    )
    assert options.to_json() == {
        "strip_weights": True,
        "hardware_compatible": True,
        "optimization_level": 5,
        "timing_cache": "b",
    }


def test_sizes_come_from_the_bundle_and_given_ones_stay(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    two = EngineOptions(profiles=(Profile(height=fixed(4, 5, 6)), Profile(batch=fixed(2))))
    filled = two.for_manifest(manifest, "tensorrt")
    assert filled.flavour == "tensorrt"
    assert filled.profiles == (
        Profile(None, fixed(4, 5, 6), fixed(1, 32, 1920)),
        Profile(fixed(2), fixed(1, 32, 1080), fixed(1, 32, 1920)),
    )


# --- Ctrl-C ---

CANCELLED = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    from contextlib import nullcontext
    from pathlib import Path
    from vitdeploy import progress
    from vitdeploy.compiler.engine import EngineOptions, build_engine
    from vitdeploy.bundle import Bundle

    class Slow:
        said = False
        def task(self, *_): return nullcontext(self)
        def note(self, message): pass
        def advance(self, amount=1): pass
        def update(self, **_):
            if not self.said:
                print("building", flush=True)
            self.said = True
            time.sleep(0.01)

    bundle = Bundle.open(sys.argv[1])
    with progress.use(Slow()):
        try:
            build_engine(bundle.path / "model.onnx", Path(sys.argv[2]), EngineOptions().for_manifest(bundle.manifest))
            print("built")
        except KeyboardInterrupt:
            print("cancelled")
"""


@needs_rtx
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_the_build_and_leaves_the_old_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "old.engine"
    output.write_bytes(b"the old one")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CANCELLED), tiny_bundle, output],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("cancelled\n", 0), err
    said = output.with_suffix(".log").read_text()
    assert "Opset version" in said and "Engine generation completed" not in said  # TensorRT stopped, and did not finish
    assert output.read_bytes() == b"the old one"
    assert {path.name for path in tmp_path.iterdir()} == {"old.engine", "old.log"}


# --- What is built here ---


def test_choose_target_by_what_is_here(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    gpu = machine.Gpu("Orin", "8.7", 8 << 30, "540.3", "12.6", True)

    def here(modules: set[str], gpus: tuple[machine.Gpu, ...], processor: str) -> str:
        monkeypatch.setattr(machine, "has_module", lambda name: name in modules)
        monkeypatch.setattr(machine, "gpus", lambda: gpus)
        monkeypatch.setattr("platform.machine", lambda: processor)
        return choose_target("auto")

    assert here({"tensorrt", "tensorrt_rtx"}, (gpu,), "x86_64") == "tensorrt"
    assert here({"tensorrt", "tensorrt_rtx"}, (), "x86_64") == "tensorrt-rtx"
    assert here({"tensorrt_rtx"}, (gpu,), "AMD64") == "tensorrt-rtx"
    assert recorder.notes == []
    assert here({"tensorrt_rtx"}, (gpu,), "aarch64") == "onnx"
    assert "pip install 'vitdeploy[gpu]'" in recorder.notes[0] and "x86-64 only" in recorder.notes[0]
    assert here(set(), (), "x86_64") == "onnx"
    assert "pip install 'vitdeploy[rtx]'" in recorder.notes[1]
    assert choose_target("onnx") == "onnx"
    with pytest.raises(EngineError, match="no NVIDIA GPU here") as raised:
        choose_target("tensorrt")
    assert "--target tensorrt-rtx" in str(raised.value.hint)
    with pytest.raises(EngineError, match="tensorrt-rtx is not installed"):
        choose_target("tensorrt-rtx")
    with pytest.raises(InputError, match="'cuda' is not known"):
        choose_target("cuda")


def test_a_flavour_that_can_not_be_built_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    if machine.gpus():
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError, match="no NVIDIA GPU here"):
        build_engine(tiny_bundle / "model.onnx", tmp_path / "e", EngineOptions(flavour="tensorrt"))
    assert list(tmp_path.iterdir()) == []


# --- Parts ---


def test_phases_nest_and_never_fall() -> None:
    phases, seen = Phases(), []
    phases.start("whole", None, 2)
    phases.start("first", "whole", 4)
    for step in range(4):
        phases.advance("first", step)
        seen.append(phases.done())
    phases.finish("first")
    phases.advance("whole", 0)
    phases.start("second", "whole", 10)
    seen.append(phases.done())
    assert seen == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])  # by hand: a half of the whole in quarters
    assert phases.current() == "second"
    phases.finish("second")
    phases.finish("whole")
    assert phases.done() == 1


def test_warnings_that_matter_are_told_in_plain_words(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:
        log = BuildLog(file)
        for message in (
            "Detected layernorm nodes in FP16: running them may cause overflow",
            "Skipping tactic 0x1 due to insufficient memory on requested size of 9",
            "Skipping tactic 0x2 due to insufficient memory on requested size of 9",
            "Something nobody needs to know",
        ):
            log.add("WARNING", message)
    assert len(log.notes()) == 2
    assert "vitdeploy bench" in log.notes()[0] and "--workspace" in log.notes()[1]
    assert "nobody needs" in (tmp_path / "log").read_text()


def test_an_unknown_error_is_shown_without_its_place(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:
        log = BuildLog(file)
        log.add("ERROR", "IBuilder::f: Error Code 9: Something new In compile at /_src/a/b.cpp:12")
        log.add("ERROR", "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35: driver)")
    assert explain_error(log) == ("IBuilder::f: Error Code 9: Something new", None)


def test_the_options_load_no_heavy_package() -> None:
    """The command line reads them before anything is built."""
    code = (
        "import sys, vitdeploy.compiler.engine; print({'tensorrt', 'tensorrt_rtx', 'onnx', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


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
    monkeypatch.setattr(trt, "__version__", "8.6.2")
    with pytest.raises(EngineError, match=r"8\.6\.2 is installed, and vitdeploy needs 10\.3 or later"):
        build_engine(tiny_bundle / "model.fp16.onnx", tmp_path / "f", wanted)
    monkeypatch.setattr(machine, "jetson_release", lambda: "R36.4.3")
    with pytest.raises(InputError, match="this is a Jetson"):
        build_engine(tiny_bundle / "model.fp16.onnx", tmp_path / "f", wanted)


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
