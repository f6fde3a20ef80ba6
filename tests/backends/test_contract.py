"""The promises of the runner protocol, held over every backend by one suite."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.backends import CPU_BACKENDS, needs_openvino
from tests.tools.killed import ended_well
from tests.tools.on_gpu import providers
from vitdeploy.backends.base import Runner
from vitdeploy.backends.native.library import kernels_obstacle
from vitdeploy.backends.registry import RunnerSpec, find, open_runner
from vitdeploy.backends.registry import backends as registered
from vitdeploy.core.errors import InputError, ModelError, RunnerClosedError, VitdeployError
from vitdeploy.core.machine import gpus

ENGINE_HERE = find("tensorrt").obstacle() is None and find("tensorrt").missing() is None


BACKENDS = (
    *("onnxruntime", "openvino", "openvino-throughput", "pytorch"),
    *providers(),
    *(("tensorrt",) if ENGINE_HERE else ()),
    *(("native",) if kernels_obstacle() is None else ()),
)
ON_GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
# The order of float32 sums may change with the batch: a few units in the last of 24 bits of logits near 1. TensorRT
# takes other kernels for other batches, and may multiply in TF32, of 11 bits.
FLOAT32 = 1e-2 if gpus() else 2e-5
SAME = FLOAT32 if gpus() else 0.0  # of the same call again: on a GPU another kernel may be the fastest by a hair


def make(backend: str, model: str | Path) -> Runner:
    """A runner as `load` and `bench` make it; "openvino-throughput" and "onnxruntime-cuda" are ways to open one."""
    name = backend.removesuffix("-throughput").removesuffix("-cuda")
    device = "cuda" if backend.endswith("-cuda") else find(name).devices[0]
    performance = "throughput" if backend.endswith("-throughput") else "latency"
    threads = 2 if name == "native" else 1
    if name == "pytorch":
        pytest.importorskip("torch")
    return open_runner(RunnerSpec(name, str(model), threads, device, performance=performance))


def test_every_backend_that_can_run_here_takes_part() -> None:
    for spec in registered():
        here = spec.obstacle() is None and spec.missing() is None and (gpus() or "cpu" in spec.devices)
        if here and spec.order is not None:
            assert spec.name in BACKENDS


@pytest.fixture(params=[pytest.param(b, marks=pytest.mark.gpu if b in ON_GPU else ()) for b in BACKENDS])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vitdeploy.compiler.build import build

    copy = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("contract") / "bundle"))
    bundle = build(copy, ["fp32"], target="tensorrt").bundle
    artifact = bundle.find(kind="engine", precision="fp32")
    assert artifact is not None
    return bundle.file(artifact)


@pytest.fixture
def model(backend: str, request: pytest.FixtureRequest) -> Path:
    if backend == "tensorrt":
        return Path(request.getfixturevalue("engine"))
    if backend == "pytorch":
        return Path(request.getfixturevalue("tiny_checkpoint"))
    file = "model.int8-cpu.onnx" if backend == "native" else "model.onnx"
    return Path(request.getfixturevalue("tiny_bundle")) / file


@pytest.mark.skipif(not ENGINE_HERE, reason="TensorRT needs a GPU and its package; with them every test runs on it")
def test_tensorrt_takes_part() -> None:
    assert "tensorrt" in BACKENDS


@pytest.fixture
def runner(backend: str, model: Path) -> Runner:
    return make(backend, model)


def images(count: int, height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def logits(runner: Runner, pixels: np.ndarray) -> np.ndarray:
    return runner.infer({"image": pixels})["logits"]


def test_constructor_does_no_io(backend: str) -> None:
    runner = make(backend, "no/such/model.onnx")
    with pytest.raises(VitdeployError) as caught, runner:
        pass
    assert "no/such/model.onnx" in caught.value.message
    assert caught.value.hint


def test_what_it_takes_and_gives(runner: Runner, backend: str) -> None:
    assert runner.backend == backend.partition("-")[0]
    with runner:
        (image,), (scores,) = runner.inputs, runner.outputs
        assert (image.name, image.dtype, len(image.shape), image.shape[3]) == ("image", "uint8", 4, 3)
        assert (scores.name, scores.dtype, len(scores.shape)) == ("logits", "float32", 2)
        answer = runner.infer({"image": images(3)})
        assert set(answer) == {"logits"}
        assert answer["logits"].shape == (3, 10)
        assert answer["logits"].dtype == np.float32
        assert np.isfinite(answer["logits"]).all()


def test_closed_outside_the_block(runner: Runner) -> None:
    def used() -> list[Any]:
        return [lambda: runner.inputs, lambda: runner.outputs, lambda: runner.infer({"image": images(1)})]

    for use in used():
        with pytest.raises(RunnerClosedError):
            use()
    with runner:
        for use in used():
            use()
    for use in used():
        with pytest.raises(RunnerClosedError):
            use()


def test_leaving_twice_is_fine_and_it_opens_again(runner: Runner) -> None:
    with runner:
        first = logits(runner, images(1))
    runner.__exit__(None, None, None)
    with runner:
        np.testing.assert_allclose(logits(runner, images(1)), first, atol=SAME, rtol=0)


def test_entering_twice_is_refused_and_harmless(runner: Runner) -> None:
    with runner:
        with pytest.raises(VitdeployError, match="open already"):
            runner.__enter__()
        assert logits(runner, images(1)).shape == (1, 10)


def test_an_error_inside_the_block_still_closes(runner: Runner) -> None:
    with pytest.raises(KeyError), runner:
        raise KeyError
    with pytest.raises(RunnerClosedError):
        logits(runner, images(1))


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        pytest.param({}, "image", id="nothing"),
        pytest.param({"pixels": images(1)}, "image", id="wrong name"),
        pytest.param({"image": images(1), "mask": images(1)}, "mask", id="one too many"),
        pytest.param({"image": images(1).astype(np.float32)}, "float32", id="dtype"),
        pytest.param({"image": images(1).astype(np.int8)}, "int8", id="signed"),
        pytest.param({"image": images(1)[0]}, "dimensions", id="rank"),
        pytest.param({"image": images(1)[..., :1]}, "must be 3", id="channels"),
        pytest.param({"image": images(1).transpose(0, 3, 1, 2)}, "must be 3", id="channels first"),
        pytest.param({"image": images(0)}, "empty", id="no image"),
        pytest.param({"image": images(1, height=0)}, "empty", id="no rows"),
        pytest.param({"image": images(1).tolist()}, "list", id="no array"),
    ],
)
def test_feeds_that_do_not_fit(runner: Runner, feeds: dict[str, Any], says: str) -> None:
    with runner:
        with pytest.raises(InputError, match=says) as caught:
            runner.infer(feeds)
        assert caught.value.hint
        assert logits(runner, images(1)).shape == (1, 10)  # a refused feed breaks nothing


def test_results_belong_to_the_caller(runner: Runner) -> None:
    with runner:
        pixels = images(2)
        first = logits(runner, pixels)
        kept = first.copy()
        other = logits(runner, images(2, seed=1))
        np.testing.assert_array_equal(first, kept)  # a later call does not write to it
        assert not np.array_equal(other, kept)
        first[:] = 7
        # writing to it changes no later call
        np.testing.assert_allclose(logits(runner, pixels), kept, atol=SAME, rtol=0)
        pixels[:] = 0
    np.testing.assert_array_equal(first, np.full_like(first, 7))


def test_results_outlive_the_runner(runner: Runner) -> None:
    with runner:
        answer = logits(runner, images(2))
        kept = answer.copy()
    np.testing.assert_array_equal(answer, kept)


def test_feeds_are_only_read(runner: Runner) -> None:
    pixels = images(2)
    kept = pixels.copy()
    pixels.flags.writeable = False
    with runner:
        np.testing.assert_allclose(logits(runner, pixels), logits(runner, kept), atol=SAME, rtol=0)
    np.testing.assert_array_equal(pixels, kept)


def test_strided_feeds(runner: Runner) -> None:
    wide = images(2, width=120)
    with runner:
        found, expected = logits(runner, wide[:, :, ::2]), logits(runner, wide[:, :, ::2].copy())
        np.testing.assert_allclose(found, expected, atol=SAME, rtol=0)


def test_the_first_answer_is_the_lasting_one(runner: Runner) -> None:
    """A backend that prepares on first use must not answer wrongly while it does, for any new shape."""
    shapes = ((1, 32, 32), (2, 32, 32), (1, 40, 60), (3, 90, 50), (1, 200, 32))
    with runner:
        for count, height, width in shapes:
            pixels = images(count, height, width)
            first = logits(runner, pixels)
            np.testing.assert_allclose(first, logits(runner, pixels), atol=FLOAT32, rtol=0)


def test_an_image_does_not_feel_its_neighbours(runner: Runner) -> None:
    pixels = images(5)
    with runner:
        together = logits(runner, pixels)
        alone = np.concatenate([logits(runner, pixels[i : i + 1]) for i in range(5)])
        shuffled = logits(runner, pixels[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=FLOAT32, rtol=0)
    np.testing.assert_allclose(together, shuffled, atol=FLOAT32, rtol=0)
    with pytest.raises(AssertionError):  # the tolerance tells images apart
        np.testing.assert_allclose(together, np.roll(alone, 1, axis=0), atol=FLOAT32, rtol=0)


def test_threads_get_what_a_single_caller_gets(runner: Runner) -> None:
    batches = [images(1 + i % 3, 32 + 8 * (i % 2), 40, seed=i) for i in range(24)]
    with runner:
        serial = [logits(runner, batch) for batch in batches]
        with ThreadPoolExecutor(6) as pool:
            parallel = list(pool.map(lambda batch: logits(runner, batch), batches))
    for one, other in zip(serial, parallel, strict=True):
        np.testing.assert_allclose(one, other, atol=FLOAT32, rtol=0)


def test_closing_while_others_run_ends_them_cleanly(runner: Runner) -> None:
    """A call that meets a closing runner either gives its answer or says that it is closed."""
    pixels = images(1)
    runner.__enter__()
    expected = logits(runner, pixels)

    def until_closed(_: int) -> int:
        for count in range(10_000):
            try:
                np.testing.assert_allclose(logits(runner, pixels), expected, atol=FLOAT32, rtol=0)
            except RunnerClosedError:
                return count
        raise AssertionError("never closed")

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(until_closed, i) for i in range(3)]
        logits(runner, pixels)
        runner.__exit__(None, None, None)
        for future in running:
            future.result(timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("ending", ["close", "leave"])
def test_a_forked_process_is_told(runner: Runner, ending: str) -> None:
    """After a fork a backend's threads are gone: to use or to close it would hang, so neither is tried."""
    with runner:
        runner.infer({"image": images(2)})
        child = os.fork()
        if child == 0:
            code = 1
            try:
                runner.infer({"image": images(1)})
            except RunnerClosedError:
                code = 0
            finally:
                if ending == "close":
                    runner.__exit__(None, None, None)
                os._exit(code)
        assert ended_well(child)


FORKED = """
import gc, multiprocessing, sys
import numpy as np
from vitdeploy import load

classifier = load(sys.argv[1], backend=sys.argv[2], precision="int8", threads=2)
classifier.predict(np.zeros((32, 32, 3), np.uint8))

def drop():
    global classifier
    del classifier
    gc.collect()

child = multiprocessing.get_context("fork").Process(target=drop)
child.start()
child.join(60)
classifier.close()
if child.exitcode is None:
    child.kill()
sys.exit(child.exitcode != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_forked_process_may_drop_it(tiny_bundle: Path, backend: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tiny_bundle), backend]
    assert subprocess.run(command, timeout=120).returncode == 0


@pytest.mark.parametrize("content", [b"", b"not a graph", None], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_damaged_graph(backend: str, content: bytes | None, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((tiny_bundle / "model.onnx").read_bytes()[:5000] if content is None else content)
    runner = make(backend, path)
    with pytest.raises(ModelError, match=r"model\.onnx") as caught, runner:
        pass
    assert caught.value.hint
    with pytest.raises(RunnerClosedError):
        runner.infer({"image": images(1)})


@needs_openvino
def test_backends_agree(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """At the size the model was made for nothing is resized, and only the order of sums differs."""
    pixels = images(4, 32, 32)
    answers = []
    for backend in BACKENDS[: BACKENDS.index("pytorch") + 1]:
        with make(backend, tiny_checkpoint if backend == "pytorch" else tiny_bundle / "model.onnx") as runner:
            answers.append(logits(runner, pixels))
            wrong = logits(runner, pixels[..., ::-1])  # channels swapped
        np.testing.assert_allclose(answers[-1], answers[0], atol=1e-4, rtol=0)
        assert np.abs(wrong - answers[0]).max() > 1e-2


def test_threads_count_of_the_process_comes_back(tiny_checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with make("pytorch", tiny_checkpoint):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_backend_that_is_not_installed(name: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what Python itself does with a module that can't be imported
    with pytest.raises(VitdeployError, match=name) as caught, make(name, tiny_bundle / "model.onnx"):
        pass
    assert caught.value.hint is not None and caught.value.hint.replace("'", "").startswith(f"pip install {name}")


def test_openvino_computes_float32_unless_asked(tiny_bundle: Path) -> None:
    from vitdeploy.backends.openvino.runner import OpenVinoRunner

    with pytest.raises(InputError, match="inference_precision"):
        OpenVinoRunner(tiny_bundle / "model.onnx", inference_precision="f8")
    pixels = images(4, 32, 32)
    with make("onnxruntime", tiny_bundle / "model.onnx") as reference:
        expected = logits(reference, pixels)
    with make("openvino", tiny_bundle / "model.onnx") as exact:
        np.testing.assert_allclose(logits(exact, pixels), expected, atol=1e-4, rtol=0)


def test_cuda_without_a_gpu(tiny_bundle: Path) -> None:
    from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner

    if gpus():
        pytest.skip("there is a GPU here")
    with (
        pytest.raises(InputError, match="CUDA") as caught,
        OnnxRuntimeRunner(tiny_bundle / "model.onnx", device="cuda"),
    ):
        pass
    assert caught.value.hint
