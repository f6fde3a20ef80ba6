"""Bundles with engines, loaded and run on a real GPU through the same calls as everywhere else."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vitdeploy import load
from vitdeploy.backends.tensorrt.runner import TensorRTRunner, _cuda_runtime
from vitdeploy.bundle import Bundle
from vitdeploy.core.errors import EngineError, ImageError, InputError, RunnerClosedError
from vitdeploy.core.machine import gpus
from vitdeploy.core.specs import ShapeRange

pytestmark = pytest.mark.gpu

# Largest difference from ONNX Runtime, as a share of the logits' range: FP16 has 11 bits, summed over 3 layers; INT8
# rounds to other integers where sums differ in the last bit.
TOLERANCES = {"fp16": 0.03, "int8": 0.06}


@pytest.fixture(scope="module")
def bundle(engine_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `engine_bundle` for these tests."""
    return Path(shutil.copytree(engine_bundle, tmp_path_factory.mktemp("gpu") / "bundle"))


def images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_auto_takes_the_int8_engine(bundle: Path, runtime_flavour: str) -> None:
    with load(bundle) as classifier:
        described = classifier.describe()
        assert (described["backend"], described["precision"], described["device"]) == (runtime_flavour, "int8", "cuda")
        assert described["passed_over"] == []
        assert classifier.predict(images(1)[0]).label in classifier.labels
    with load(bundle, device="cpu") as classifier:
        assert classifier.backend in ("native", "openvino", "onnxruntime")  # by the processor


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_engine_agrees_with_onnx_runtime(bundle: Path, runtime_flavour: str, precision: str) -> None:
    sizes = [(32, 32), (48, 100), (32, 32), (16, 128), (48, 100), (128, 16), (32, 32), (32, 32), (32, 32)]
    mixed = [images(1, *size, seed=i)[0] for i, size in enumerate(sizes)]
    with load(bundle, backend="onnxruntime", precision=precision) as reference:
        expected = reference.logits(mixed)
    with load(bundle, backend=runtime_flavour, precision=precision) as classifier:
        answers = classifier.logits(mixed)  # five of 32x32 in batches of at most 4
    scale = float(np.ptp(expected))
    assert np.abs(answers - expected).max() <= TOLERANCES[precision] * scale
    assert np.abs(answers - np.roll(expected, 1, axis=0)).max() > TOLERANCES[precision] * scale


def test_sizes_and_batches_outside_the_profile(bundle: Path, runtime_flavour: str) -> None:
    with load(bundle, backend=runtime_flavour, precision="fp16") as classifier:
        with pytest.raises(ImageError, match=r"height 16\.\.128, width 16\.\.128"):
            classifier.predict(images(1, 200, 32)[0])
        answers = classifier.predict([images(1)[0], images(1, 8, 8)[0]], errors="return")
        assert isinstance(answers[1], ImageError)
        assert len(classifier.predict(images(11))) == 11
    with TensorRTRunner(engine(bundle, "fp16"), runtime_flavour) as runner:
        assert runner.ranges["image"][0] == ShapeRange(1, 1, 4)
        with pytest.raises(InputError, match="batch of 1 to 4"):
            runner.infer({"image": images(5)})
        assert runner.infer({"image": images(4)})["logits"].shape == (4, 10)


def test_results_belong_to_the_caller_while_buffers_grow(bundle: Path, runtime_flavour: str) -> None:
    with TensorRTRunner(engine(bundle, "fp16"), runtime_flavour) as runner:
        first = runner.infer({"image": images(1)})["logits"]
        kept = first.copy()
        for count, side in ((4, 128), (1, 16), (2, 64), (4, 128)):
            runner.infer({"image": images(count, side, side, seed=count)})
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(runner.infer({"image": images(1)})["logits"], kept)
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(RunnerClosedError):
        runner.infer({"image": images(1)})


def test_threads(bundle: Path, runtime_flavour: str) -> None:
    batches = [images(1 + i % 4, 32, 32 + 16 * (i % 2), seed=i) for i in range(16)]
    with TensorRTRunner(engine(bundle, "fp16"), runtime_flavour) as runner:
        serial = [runner.infer({"image": batch})["logits"] for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            parallel = list(pool.map(lambda batch: runner.infer({"image": batch})["logits"], batches))
    for one, other in zip(serial, parallel, strict=True):  # the same kernels, in contexts of two executions
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 * float(np.ptp(np.concatenate(serial))))


def test_opening_and_closing_gives_the_memory_back(bundle: Path, runtime_flavour: str) -> None:
    runtime = _cuda_runtime("gpu")

    def free_bytes() -> int:
        return int(runtime.cudaMemGetInfo()[1])

    def once() -> None:
        with TensorRTRunner(engine(bundle, "fp16"), runtime_flavour) as runner:
            runner.infer({"image": images(4, 128, 128)})

    once()  # what the driver and TensorRT load once stays
    before = free_bytes()
    for _ in range(10):
        once()
    assert before - free_bytes() < 64 * 2**20  # the allocator works in steps of 2 MiB; ten leaks would be more


def test_an_engine_that_is_damaged(bundle: Path, runtime_flavour: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.engine"
    damaged.write_bytes(engine(bundle, "fp16").read_bytes()[:1000])
    runner = TensorRTRunner(damaged, runtime_flavour, trusted=True)
    with pytest.raises(EngineError, match=r"can't load damaged\.engine") as caught, runner:
        pass
    assert caught.value.hint
    with pytest.raises(EngineError, match="no bundle"), TensorRTRunner(damaged, runtime_flavour):
        pass


def test_an_engine_of_another_gpu_is_passed_over(bundle: Path, runtime_flavour: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    opened = Bundle.open(copy)
    with opened.edit() as editor:
        for artifact in opened.select(kind="engine"):
            shutil.copy(copy / artifact.path, editor.path_for(artifact.path))
            other = {"compute_capability": "5.3", "gpu": "an older one"}
            editor.add(
                artifact.path,
                kind="engine",
                precision=artifact.precision,
                target=artifact.target,
                built_with={**artifact.built_with, **other, "compute_capabilities": ["5.3"]},
            )
    with load(copy) as classifier:
        described = classifier.describe()
    assert described["backend"] != runtime_flavour  # ONNX Runtime on the GPU where it is here, else a CPU's
    engines = [c["reason"] for c in described["passed_over"] if c["backend"] == runtime_flavour]
    assert len(engines) == 2 and all("5.3" in reason and "build-engine" in reason for reason in engines)


def engine(bundle: Path, precision: str) -> Path:
    opened = Bundle.open(bundle)
    artifact = opened.find(kind="engine", precision=precision)
    assert artifact is not None
    return opened.file(artifact)


def test_onnx_runtime_on_the_gpu(tiny_bundle: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if not gpus() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs an NVIDIA GPU and onnxruntime-gpu")
    pixels = images(5, 48, 64)
    with load(tiny_bundle, backend="onnxruntime", precision="fp32", device="cpu") as reference:
        expected = reference.logits(pixels)
    with load(tiny_bundle, backend="onnxruntime", precision="fp32", device="cuda") as classifier:
        assert classifier.describe()["device"] == "cuda"
        answers = classifier.logits(pixels)
    # products in TF32 keep 11 bits
    assert np.abs(answers - expected).max() <= 0.01 * float(np.ptp(expected))


def test_a_tensor_on_the_gpu_is_used_there(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs an NVIDIA GPU, PyTorch with CUDA and onnxruntime-gpu")
    pixels = images(40, 48, 64)
    with load(tiny_bundle, backend="onnxruntime", precision="fp32", device="cuda") as classifier:
        expected = classifier.logits(pixels)
        infer = classifier._runner.infer
        monkeypatch.setattr(classifier._runner, "infer", None)  # the way through the machine's memory is closed
        tensor = torch.from_numpy(pixels).cuda()
        answers = classifier.logits(tensor)
        assert classifier.predict(tensor[3]).index == int(answers[3].argmax())
        for number in range(20):  # what PyTorch still computes is waited for
            made = (tensor.float() + number).clamp(0, 255).to(torch.uint8)
            assert np.isfinite(classifier.logits(made)).all()
        monkeypatch.setattr(classifier._runner, "infer", infer)
        last = classifier.logits(made.cpu().numpy())
        np.testing.assert_allclose(classifier.logits(made), last, atol=0.01 * float(np.ptp(last)), rtol=0)
    # other kernels may be taken for other batches
    np.testing.assert_allclose(answers, expected, atol=0.01 * float(np.ptp(expected)), rtol=0)


def test_an_engine_uses_a_tensor_on_the_gpu_there(
    bundle: Path, runtime_flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs PyTorch with CUDA")
    pixels = images(9, 48, 64)
    with load(bundle, backend=runtime_flavour, precision="fp16") as classifier:
        expected = classifier.logits(pixels)  # in batches of at most 4
        monkeypatch.setattr(classifier._runner, "infer", None)  # the way through the machine's memory is closed
        tensor = torch.from_numpy(pixels).cuda()
        for _ in range(3):
            np.testing.assert_array_equal(classifier.logits(tensor), expected)
        one = classifier.logits(tensor[3])  # 9,216 bytes an image: every one aligned
        shifted = torch.empty(pixels[3].size + 1, dtype=torch.uint8, device="cuda")[1:].view(48, 64, 3)
        shifted.copy_(tensor[3])
        np.testing.assert_array_equal(classifier.logits(shifted), one)
    # TensorRT takes other kernels for other batches
    np.testing.assert_allclose(one[0], expected[3], atol=TOLERANCES["fp16"] * float(np.ptp(expected)), rtol=0)
