"""Engines built, loaded, run and compared on a real GPU, by `make test-gpu`; docs/gpu.md says what that needs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tools.on_gpu import FORMS, REFERENCES, SIZES, TOLERANCES, pixels
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.backends.tensorrt.runner import TensorRTRunner, _cuda_runtime
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.engine import EngineOptions, Profile, build_engine
from vitdeploy.core import machine
from vitdeploy.core.errors import BundleError, EngineError, InputError, ModelError
from vitdeploy.core.specs import ShapeRange
from vitdeploy.inspection.engine import read_engine_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not machine.gpus(), reason="needs an NVIDIA GPU and its driver, and there is none here"),
]


@pytest.fixture(scope="module")
def flavour(runtime_flavour: str) -> str:
    return runtime_flavour


@pytest.fixture(scope="module")
def options(tiny_bundle: Path, flavour: str, built_fast: Callable[..., EngineOptions]) -> EngineOptions:
    side = ShapeRange(1, 32, 256)
    sizes = built_fast(flavour, profiles=(Profile(height=side, width=side),))
    return sizes.for_manifest(Bundle.open(tiny_bundle).manifest)


@pytest.fixture(scope="module")
def forms(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a BF16 form as well. Read-only."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("forms") / "bundle"))
    build(path, ["bf16"], target="onnx")
    return path


@pytest.fixture(scope="module")
def engines(forms: Path, options: EngineOptions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An engine of each precision."""
    folder = tmp_path_factory.mktemp(options.flavour)
    paths = {precision: folder / f"{precision}.engine" for precision in FORMS}
    for precision, path in paths.items():
        info = build_engine(forms / FORMS[precision], path, options)
        assert info.precision == precision
        if options.flavour == "tensorrt":
            assert info.to_json()["compute_capability"] == machine.gpus()[0].compute_capability
    return paths


@pytest.mark.parametrize("precision", list(FORMS))
@pytest.mark.parametrize("size", SIZES)
def test_an_engine_answers_as_its_graph(
    tiny_bundle: Path, engines: dict[str, Path], flavour: str, precision: str, size: tuple[int, int, int]
) -> None:
    image = pixels(*size)
    with (
        OnnxRuntimeRunner(tiny_bundle / REFERENCES[precision]) as reference,
        TensorRTRunner(engines[precision], flavour=flavour, trusted=True) as runner,
    ):
        expected = reference.infer({"image": image})["logits"]
        found = runner.infer({"image": image})["logits"]
        swapped = runner.infer({"image": np.ascontiguousarray(image[..., ::-1])})["logits"]
    span = float(np.ptp(expected))
    assert found.shape == expected.shape and found.dtype == np.float32
    assert float(np.abs(found - expected).max()) <= TOLERANCES[precision] * span
    assert float(np.abs(swapped - expected).max()) > TOLERANCES[precision] * span  # the colours matter


def test_a_shape_that_comes_again_runs_as_a_cuda_graph(engines: dict[str, Path], flavour: str) -> None:
    """The answers are those without graphs, whatever shapes come between; TensorRT-RTX captures by itself."""
    largest = (8, 256, 256)  # first, so that no memory grows later, which would drop the graphs
    order = [largest, *[(1, 32, 32)] * 4, *[(3, 48, 40)] * 3, (1, 32, 32), largest, (1, 32, 32), (3, 48, 40)]
    with TensorRTRunner(engines["fp16"], flavour=flavour, trusted=True, cuda_graphs=False) as plain:
        expected = [plain.infer({"image": pixels(*size)})["logits"] for size in order]
    with TensorRTRunner(engines["fp16"], flavour=flavour, trusted=True) as runner:
        found = [runner.infer({"image": pixels(*size)})["logits"] for size in order[:8]]
        by, kept = ("TensorRT", 0) if flavour == "tensorrt-rtx" else ("vitdeploy", 2)
        assert runner.cuda_graphs == {"by": by, "kept": kept, "why_not": None}
        found += [runner.infer({"image": pixels(*size)})["logits"] for size in order[8:]]
        other = np.random.default_rng(99).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
        assert runner.device_ms is not None and runner.device_ms > 0
        changed = [runner.infer({"image": other})["logits"] for _ in range(4)]
    span = float(np.ptp(np.concatenate(expected)))
    for one, another in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, another, rtol=0, atol=1e-3 * span)  # the same kernels
    for again in changed:
        np.testing.assert_allclose(again, changed[0], rtol=0, atol=1e-3 * span)
        assert np.abs(again - expected[1]).max() > 1e-3 * span  # a graph reads the image of this call


def test_the_callers_device_and_what_is_compiled_stay(
    engines: dict[str, Path], flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last GPU runs it, whatever the caller's own is; TensorRT-RTX's kernels are kept for the next start."""
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path))
    cuda = _cuda_runtime("gpu")
    cuda.cudaSetDevice(0)
    expected = None
    for _ in range(2):
        last = len(machine.gpus()) - 1
        with TensorRTRunner(engines["fp16"], flavour=flavour, device=last, trusted=True) as runner:
            found = runner.infer({"image": pixels(2, 32, 32)})["logits"]
        assert int(cuda.cudaGetDevice()[1]) == 0
        expected = found if expected is None else expected
        assert np.abs(found - expected).max() <= 1e-3 * float(np.ptp(expected))
        kept = {file.name: file.read_bytes() for file in (tmp_path / "tensorrt-rtx").glob("*")}
        assert len(kept) == (flavour == "tensorrt-rtx")
    for name, content in kept.items():  # of a second start's new shape there is more
        with TensorRTRunner(engines["fp16"], flavour=flavour, device=last, trusted=True) as runner:
            runner.infer({"image": pixels(3, 48, 40)})
        assert (tmp_path / "tensorrt-rtx" / name).stat().st_size >= len(content)


def test_several_profiles(forms: Path, flavour: str, built_fast: Callable[..., EngineOptions], tmp_path: Path) -> None:
    def size(*values: int) -> ShapeRange:
        return ShapeRange(*(values * 3 if len(values) == 1 else values))

    profiles = (Profile(size(1), size(48), size(64)), Profile(size(1, 4, 8), size(8, 32, 64), size(8, 32, 64)))
    path = tmp_path / "two.engine"
    info = build_engine(forms / FORMS["fp16"], path, built_fast(flavour, profiles=profiles))
    assert len(info.profiles) == 2
    with (
        OnnxRuntimeRunner(forms / FORMS["fp16"]) as reference,
        TensorRTRunner(path, flavour=flavour, trusted=True) as runner,
    ):
        assert runner.engine.profile_for({"image": (1, 48, 64, 3)}) == 0
        assert runner.engine.profile_for({"image": (8, 32, 32, 3)}) == 1
        for shape in [(1, 48, 64), (8, 32, 32), (1, 48, 64), (3, 8, 64)]:
            expected = reference.infer({"image": pixels(*shape)})["logits"]
            found = runner.infer({"image": pixels(*shape)})["logits"]
            assert np.abs(found - expected).max() <= TOLERANCES["fp16"] * float(np.ptp(expected))
        with pytest.raises(InputError, match="batch of 1 to 8"):
            runner.infer({"image": pixels(11, 64, 64)})


def test_an_engine_without_weights_is_refitted_when_it_is_loaded(
    tiny_bundle_copy: Path, options: EngineOptions, flavour: str
) -> None:
    if flavour != "tensorrt":
        pytest.skip("vitdeploy strips no TensorRT-RTX engines")
    whole = build(tiny_bundle_copy, ["fp16"], target=flavour, engine_options=options).bundle
    engine = whole.find(kind="engine", precision="fp16")
    assert engine is not None
    with TensorRTRunner(whole.file(engine), flavour) as runner:
        expected = runner.infer({"image": pixels(2, 32, 32)})["logits"]
    light = build(
        tiny_bundle_copy, ["fp16"], target=flavour, engine_options=replace(options, strip_weights=True)
    ).bundle
    stripped = light.find(kind="engine", precision="fp16")
    assert stripped is not None and stripped.size_bytes < engine.size_bytes
    assert stripped.built_with["flags"]["strip_weights"] is True
    with TensorRTRunner(light.file(stripped), flavour) as runner:
        found = runner.infer({"image": pixels(2, 32, 32)})["logits"]
    assert np.abs(found - expected).max() <= TOLERANCES["fp16"] * float(np.ptp(expected))
    graph = light.find(kind="onnx", precision="fp16")
    assert graph is not None
    (light.path / graph.path).write_bytes(b"another graph")
    with pytest.raises(BundleError, match="SHA-256"), TensorRTRunner(light.path / stripped.path, flavour):
        pass


def test_an_output_whose_size_only_the_run_knows(flavour: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["":20]>\n'
        "g (uint8[batch,height,width,3] image) => (int64[4,found] y) { f = Cast<to=1>(image) y = NonZero(f) }"
    )
    onnx.save(model, tmp_path / "nonzero.onnx")
    side = ShapeRange(4, 8, 16)
    options = EngineOptions(flavour=flavour, profiles=(Profile(ShapeRange(1, 1, 2), side, side),))
    try:
        build_engine(tmp_path / "nonzero.onnx", tmp_path / "e", options)
    except (EngineError, ModelError) as error:
        pytest.skip(f"this TensorRT builds no NonZero: {error.message}")
    image = np.where(pixels(2, 8, 8) > 128, pixels(2, 8, 8), 0).astype(np.uint8)
    with TensorRTRunner(tmp_path / "e", flavour=flavour, trusted=True) as runner:
        for content in (image, image[:1], image, image):
            found = runner.infer({"image": np.ascontiguousarray(content)})["y"]
            np.testing.assert_array_equal(found, np.stack(np.nonzero(content)))


def test_layers_of_an_engine(engines: dict[str, Path], forms: Path, options: EngineOptions, flavour: str) -> None:
    """Every layer, and for INT8 an account of every product that the graph asks for."""
    bundle = Bundle.open(shutil.copytree(forms, engines["int8"].parent / f"bundle-{flavour}"))
    made = build(bundle, ["int8"], target=flavour, engine_options=options).bundle
    artifact = made.find(kind="engine", precision="int8")
    assert artifact is not None
    facts = read_engine_file(made.file(artifact), artifact)
    assert facts.layers is not None, facts.reason
    assert len(facts.layers.layers) > 0 and set(facts.layers.tensors) in ({"image", "logits"}, set())
    assert facts.memory is not None and len(facts.memory["scratch_bytes"]) == 1
    print(flavour, facts.layers.by_precision, facts.int8)
    if flavour == "tensorrt":
        assert facts.layers.detailed and facts.int8 is not None
        assert facts.int8.asked == len(artifact.built_with["int8_products"]) > 0
        assert facts.int8.running + len(facts.int8.elsewhere) + len(facts.int8.unknown) == facts.int8.asked


def test_an_engine_of_another_version_is_refused(tiny_bundle_copy: Path, options: EngineOptions, flavour: str) -> None:
    made = build(tiny_bundle_copy, ["fp16"], target=flavour, engine_options=options).bundle
    artifact = made.find(kind="engine", precision="fp16")
    assert artifact is not None
    text = (made.path / "manifest.json").read_text()
    version = artifact.built_with["tensorrt"]["version"]
    (made.path / "manifest.json").write_text(text.replace(f'"version": "{version}"', '"version": "9.1.0"'))
    with pytest.raises(EngineError, match=r"built by .* 9\.1\.0") as caught:
        TensorRTRunner(made.path / artifact.path, flavour).__enter__()
    assert "vitdeploy build-engine" in str(caught.value.hint)


def test_sizes_outside_the_profile_are_refused(engines: dict[str, Path], flavour: str) -> None:
    with TensorRTRunner(engines["fp16"], flavour=flavour, trusted=True) as runner:
        for size in ((9, 32, 32), (1, 300, 32)):
            with pytest.raises((InputError, EngineError)):
                runner.infer({"image": pixels(*size)})
        assert runner.infer({"image": pixels(1, 32, 32)})["logits"].shape == (1, 10)


def test_a_damaged_engine_is_refused(engines: dict[str, Path], flavour: str, tmp_path: Path) -> None:
    whole = engines["fp16"].read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "other": b"no engine" * 100}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EngineError, match=name), TensorRTRunner(tmp_path / name, flavour=flavour, trusted=True):
            pass


def test_building_again_with_nothing_changed_does_nothing(tiny_bundle_copy: Path, options: EngineOptions) -> None:
    first = build(tiny_bundle_copy, ["fp16"], target=options.flavour, engine_options=options)
    assert [artifact.path for artifact in first.built] == [f"engines/{options.flavour}-fp16.engine"]
    again = build(tiny_bundle_copy, ["fp16"], target=options.flavour, engine_options=options)
    assert again.built == ()


def test_a_timing_cache_is_kept_and_used_again(
    tiny_bundle: Path, options: EngineOptions, flavour: str, tmp_path: Path
) -> None:
    if flavour != "tensorrt":
        pytest.skip("TensorRT-RTX has no timing cache")
    cached = replace(options, timing_cache=tmp_path / "cache")
    first = build_engine(tiny_bundle / FORMS["fp16"], tmp_path / "a", cached)
    size = (tmp_path / "cache").stat().st_size
    second = build_engine(tiny_bundle / FORMS["fp16"], tmp_path / "b", cached)
    assert size > 0 and first.timing_cache_sha256 and second.timing_cache_sha256
    # The second build timed (nearly) nothing new: without the first one's times it would be as many again.
    assert (tmp_path / "cache").stat().st_size <= 1.2 * size
    (tmp_path / "cache").write_bytes(b"damaged")
    with pytest.raises(EngineError, match="timing cache"):
        build_engine(tiny_bundle / FORMS["fp16"], tmp_path / "c", cached)


def test_ctrl_c_ends_a_build_on_the_gpu(tiny_bundle: Path, flavour: str, tmp_path: Path) -> None:
    code = """
        import json, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        from contextlib import nullcontext
        from pathlib import Path
        from vitdeploy.core import progress
        from vitdeploy.bundle import Bundle
        from vitdeploy.compiler.engine import EngineOptions, build_engine

        class Speaker:
            def task(self, *_): return nullcontext(self)
            def note(self, message): pass
            def advance(self, amount=1): pass
            def update(self, **_): print("building", flush=True)

        bundle = Bundle.open(sys.argv[1])
        options = EngineOptions().for_manifest(bundle.manifest, sys.argv[3])
        with progress.use(Speaker()):
            try:
                build_engine(bundle.path / "model.onnx", Path(sys.argv[2]), options)
                print(json.dumps("built"))
            except KeyboardInterrupt:
                print(json.dumps("cancelled"))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), tiny_bundle, tmp_path / "e", flavour],
        stdout=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode in (0, 130)  # 130: it ended before TensorRT had stopped
    assert json.loads(out.splitlines()[-1]) == "cancelled"
    assert not (tmp_path / "e").exists()
