"""Engines built, loaded, run and compared on a real GPU, by `make test-gpu`; docs/gpu.md says what that needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vitdeploy import machine
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.engine import EngineOptions, Profile, build_engine, why_not
from vitdeploy.errors import EngineError, InputError
from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from vitdeploy.runtime.tensorrt import TensorRTRunner
from vitdeploy.specs import ShapeRange

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not machine.gpus(), reason="needs an NVIDIA GPU and its driver, and there is none here"),
]

# Largest difference from ONNX Runtime on the same graph, as a share of the logits' range. FP32 products use TF32 (10
# bits of mantissa), as FP16 does; INT8 results round to other integers where sums differ in the last bit.
TOLERANCES = {"fp32": 0.01, "fp16": 0.03, "int8": 0.06}
FORMS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
SIZES = ((1, 32, 32), (3, 32, 32), (2, 48, 100), (1, 17, 250), (8, 64, 64))  # (batch, height, width)


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    obstacle = why_not(request.param)
    if obstacle is not None:
        pytest.skip(f"{obstacle[0]}; {obstacle[1]}")
    if not machine.has_module("cuda.bindings") and not machine.has_module("cuda.cudart"):
        pytest.skip("cuda-python is not installed; pip install cuda-python")
    return str(request.param)


@pytest.fixture(scope="module")
def options(tiny_bundle: Path, flavour: str) -> EngineOptions:
    side = ShapeRange(1, 32, 256)
    sizes = EngineOptions(profiles=(Profile(height=side, width=side),))
    return sizes.for_manifest(Bundle.open(tiny_bundle).manifest, flavour)


@pytest.fixture(scope="module")
def engines(tiny_bundle: Path, options: EngineOptions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An engine of each precision."""
    folder = tmp_path_factory.mktemp(options.flavour)
    paths = {precision: folder / f"{precision}.engine" for precision in FORMS}
    for precision, path in paths.items():
        info = build_engine(tiny_bundle / FORMS[precision], path, options)
        assert info.precision == precision
        if options.flavour == "tensorrt":
            assert info.to_json()["compute_capability"] == machine.gpus()[0].compute_capability
    return paths


def pixels(batch: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(batch + height + width).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("precision", list(FORMS))
@pytest.mark.parametrize("size", SIZES)
def test_an_engine_answers_as_its_graph(
    tiny_bundle: Path, engines: dict[str, Path], flavour: str, precision: str, size: tuple[int, int, int]
) -> None:
    image = pixels(*size)
    with (
        OnnxRuntimeRunner(tiny_bundle / FORMS[precision]) as reference,
        TensorRTRunner(engines[precision], flavour=flavour, trusted=True) as runner,
    ):
        expected = reference.infer({"image": image})["logits"]
        found = runner.infer({"image": image})["logits"]
        swapped = runner.infer({"image": np.ascontiguousarray(image[..., ::-1])})["logits"]
    span = float(np.ptp(expected))
    assert found.shape == expected.shape and found.dtype == np.float32
    assert float(np.abs(found - expected).max()) <= TOLERANCES[precision] * span
    assert float(np.abs(swapped - expected).max()) > TOLERANCES[precision] * span  # the colours matter


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
    second = build_engine(tiny_bundle / FORMS["fp16"], tmp_path / "b", cached)
    assert first.timing_cache_sha256 == second.timing_cache_sha256  # the second build timed nothing new
    (tmp_path / "cache").write_bytes(b"damaged")
    with pytest.raises(EngineError, match="timing cache"):
        build_engine(tiny_bundle / FORMS["fp16"], tmp_path / "c", cached)


def test_ctrl_c_ends_a_build_on_the_gpu(tiny_bundle: Path, flavour: str, tmp_path: Path) -> None:
    code = """
        import json, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        from contextlib import nullcontext
        from pathlib import Path
        from vitdeploy import progress
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
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1]) == "cancelled"
    assert not (tmp_path / "e").exists()
