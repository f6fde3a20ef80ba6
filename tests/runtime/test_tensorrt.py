"""The TensorRT runner where there is no GPU: its order of work on a simulated one, every name against the real modules.

On a real GPU the contract suite and tests/gpu run it.
"""

from __future__ import annotations

import ast
import ctypes
import gc
import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from tests.runtime import simulated_gpu
from tests.runtime.simulated_gpu import (
    DataType,
    ExecutionContextAllocationStrategy,
    LayerInformationFormat,
    SimulatedCuda,
    SimulatedTensorRT,
    Status,
    TensorIOMode,
    model,
    plan,
)
from tests.stubs.signatures import of_stub
from vitdeploy import load, machine
from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.errors import BundleError, DependencyError, EngineError, InputError, RunnerClosedError
from vitdeploy.runtime import engine, engine_fit, lane, selection, tensorrt
from vitdeploy.runtime.dlpack import DeviceArray
from vitdeploy.runtime.tensorrt import TensorRTRunner
from vitdeploy.specs import PreprocessSpec, ShapeRange, TensorSpec

ENGINE = "engines/tensorrt-fp16.engine"
SIMULATED = {
    simulated_gpu.Runtime: "Runtime",
    simulated_gpu.Engine: "ICudaEngine",
    simulated_gpu.Context: "IExecutionContext",
    simulated_gpu.Refitter: "Refitter",
    simulated_gpu.ParserRefitter: "OnnxParserRefitter",
    simulated_gpu.Inspector: "EngineInspector",
}
GPU = machine.Gpu("NVIDIA Simulated", "8.6", 1 << 24, "580.1", "13.0", False)
BUILT = {"tensorrt": {"flavour": "tensorrt", "version": "11.4.1.6"}, "compute_capability": "8.6", "flags": {}}


def write_bundle(path: Path, content: bytes | None = None, graph: bytes | None = None, **built: Any) -> Path:
    """A bundle with one simulated engine, and a file in the place of the graph it was built from; the engine's path."""
    manifest = Manifest(
        model={"name": "mean-colour"},
        labels=("a", "b", "c", "d"),
        preprocess=PreprocessSpec(None, None, None, None, None),
        inputs=(TensorSpec("image", "uint8", ("batch", "height", "width", 3)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 4)),),
    )
    with Bundle.create(path, manifest) as editor:
        source = None
        if graph is not None:
            editor.path_for("model.fp16.onnx").write_bytes(graph)
            source = editor.add("model.fp16.onnx", kind="onnx", precision="fp16").sha256
        editor.path_for(ENGINE).write_bytes(plan() if content is None else content)
        editor.add(
            ENGINE, kind="engine", precision="fp16", target="tensorrt", built_from=source, built_with={**BUILT, **built}
        )
    return path / ENGINE


class Here:
    """A simulated machine."""

    def __init__(self) -> None:
        self.cuda = SimulatedCuda()
        self.trt = SimulatedTensorRT(self.cuda)

    def require(self, module: str, extra: str) -> Any:
        return {"tensorrt": self.trt, "tensorrt_rtx": self.trt, "cuda.bindings.runtime": self.cuda}[module]

    def released(self) -> bool:
        return not (self.cuda.device or self.cuda.host or self.cuda.streams or self.cuda.events or self.cuda.graphs)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()
    monkeypatch.setattr(tensorrt, "require", here.require)
    monkeypatch.setattr(tensorrt, "gpus", lambda: (GPU,))
    return here


def images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def logits(runner: TensorRTRunner, pixels: np.ndarray) -> np.ndarray:
    return runner.infer({"image": pixels})["logits"]


def test_the_time_on_the_gpu_is_kept(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_bundle(tmp_path / "bundle")) as runner:
        assert runner.device_ms is None and len(here.cuda.events) == 2
        logits(runner, images(1))
        assert runner.device_ms is not None and runner.device_ms > 0
    assert here.released()


def test_answers_of_many_shapes_in_turn(here: Here, tmp_path: Path) -> None:
    """The same arithmetic on the same bytes: equal, not close."""
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        (image,), (scores,) = runner.inputs, runner.outputs
        assert (image.shape, image.dtype) == (("batch", "height", "width", 3), "uint8")
        assert (scores.shape[1], scores.dtype) == (4, "float32")
        kept = []
        for seed, shape in enumerate([(1, 8, 8), (8, 64, 64), (1, 8, 8), (3, 20, 33), (3, 33, 20)]):
            pixels = images(*shape, seed=seed)
            kept.append((logits(runner, pixels), model(pixels, 4)))
        for answer, expected in kept:  # none was written to by a later call
            np.testing.assert_array_equal(answer, expected)
            assert answer.flags.owndata
    assert here.released()


@pytest.mark.parametrize("aligned", [True, False])
def test_inputs_on_the_gpu_do_not_come_here(here: Here, tmp_path: Path, aligned: bool) -> None:
    """Aligned as TensorRT asks it is read where it lies, else from a copy on the GPU; there is no pinned memory."""
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        assert runner.device_memory == (2, 0)
        for seed, count in enumerate([2, 3, 2, 2, 2]):  # a shape that comes again would become a CUDA graph
            pixels = images(count, seed=seed)
            block = (ctypes.c_uint8 * (pixels.nbytes + 512)).from_buffer_copy(pixels.tobytes() + bytes(512))
            start = ctypes.addressof(block)
            address = start + (-start % 256) + (0 if aligned else 16)
            tensor = (ctypes.c_uint8 * pixels.nbytes).from_address(address)
            ctypes.memmove(tensor, pixels.tobytes(), pixels.nbytes)
            here.cuda.device[address] = tensor
            answer = runner.infer_on_device({"image": DeviceArray(address, pixels.shape, (2, 0), block)})["logits"]
            del here.cuda.device[address]
            np.testing.assert_array_equal(answer, model(pixels, 4))
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
    assert here.released()
    with pytest.raises(RunnerClosedError):
        runner.infer_on_device({"image": DeviceArray(0, (1, 8, 8, 3), (2, 0), None)})


def test_memory_is_kept_and_grows(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        logits(runner, images(4))
        made = here.cuda.allocations
        for count in (1, 4, 2):
            logits(runner, images(count))
        assert here.cuda.allocations == made
        logits(runner, images(8))
        assert here.cuda.allocations > made
        assert len(here.cuda.device) == 3 and len(here.cuda.host) == 2  # scratch memory is on the GPU alone


def test_outside_the_ranges_of_the_engine(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        for wrong, says in ((images(9), "batch of 1 to 8"), (images(1, 65), "height of 1 to 64")):
            with pytest.raises(InputError, match=says) as caught:
                logits(runner, wrong)
            assert caught.value.hint
        assert logits(runner, images(8)).shape == (8, 4)


def test_out_of_gpu_memory_is_said_and_survived(here: Here, tmp_path: Path) -> None:
    here.cuda.memory_bytes = 20_000
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        with pytest.raises(InputError, match="out of memory") as caught:
            logits(runner, images(8, 64, 64))
        assert "smaller" in (caught.value.hint or "")
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    assert here.released()


def test_a_run_that_fails_is_said_and_survived(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        here.trt.fail_next = "Error Code 1: Cask (no kernel)"
        with pytest.raises(EngineError, match="no kernel") as caught:
            logits(runner, images(2))
        assert caught.value.hint
        assert not here.cuda.pending  # no copy still reads memory that the next call writes to
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    with pytest.raises(RunnerClosedError):
        logits(runner, images(1))
    assert here.released()


def test_a_shape_that_comes_again_runs_as_a_graph(here: Here, tmp_path: Path) -> None:
    """Plain, then captured, then launched; and the answers are of the images of that call."""
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        for call in range(6):
            pixels = images(2, 16, 24, seed=call)
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
            assert here.cuda.launches == max(0, call - 1)
            assert len(here.cuda.graphs) == (call > 0)
        assert here.trt.contexts == 2  # the graph has one of its own
        logits(runner, images(1, 16, 24))
        np.testing.assert_array_equal(logits(runner, images(2, 16, 24)), model(images(2, 16, 24), 4))
        assert here.cuda.launches == 5
    assert here.released()


def test_graphs_are_dropped_when_memory_grows(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        for _ in range(3):
            logits(runner, images(1, 8, 8))
        assert len(here.cuda.graphs) == 1
        logits(runner, images(4, 64, 64))
        assert here.cuda.graphs == []
        for seed in (5, 6, 7):
            pixels = images(1, 8, 8, seed=seed)
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
        assert len(here.cuda.graphs) == 1  # it is captured again
    assert here.released()


def test_graphs_are_bounded(here: Here, tmp_path: Path) -> None:
    shapes = [(1, 8, 8 + i) for i in range(lane.GRAPHS + 4)]
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        logits(runner, images(8, 64, 64))  # the memory for all
        for _ in range(5):
            for i, shape in enumerate(shapes):
                np.testing.assert_array_equal(logits(runner, images(*shape, seed=i)), model(images(*shape, seed=i), 4))
                assert len(here.cuda.graphs) <= lane.GRAPHS
        assert here.trt.contexts == 1 + len(shapes)  # one that had to go is not captured again in every round
    with TensorRTRunner(write_bundle(tmp_path / "c"), cuda_graphs=False) as runner:
        for _ in range(4):
            logits(runner, images(1))
        assert here.cuda.graphs == []
    assert here.released()


def test_what_can_not_be_captured_runs_plainly(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stream: Any) -> tuple[Any, ...]:
        here.cuda.capturing.pop(int(stream))
        return Status.cudaErrorStreamCaptureInvalidated, None

    monkeypatch.setattr(here.cuda, "cudaStreamEndCapture", broken)
    with TensorRTRunner(write_bundle(tmp_path / "b")) as runner:
        for call in range(5):
            pixels = images(2, seed=call)
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
        assert here.cuda.graphs == [] and here.trt.contexts == 2  # tried once
    assert here.released()


def test_the_profile_that_is_tuned_closest_runs(here: Here, tmp_path: Path) -> None:
    camera = ((1, 480, 640), (1, 480, 640), (1, 480, 640))
    crops = ((1, 32, 32), (8, 32, 32), (16, 32, 32))
    path = write_bundle(tmp_path / "b", plan(more=(camera, crops)))
    with TensorRTRunner(path) as runner:
        assert runner.ranges["image"][0] == ShapeRange(1, 1, 16)
        assert [
            runner.engine.profile_for({"image": (*size, 3)}) for size in [(1, 32, 32), (8, 32, 32), (1, 480, 640)]
        ] == [0, 2, 1]
        assert runner.engine.profile_for({"image": (2, 480, 640, 3)}) is None
        for shape in [(1, 32, 32), (16, 32, 32), (1, 480, 640), (8, 64, 64), (5, 32, 32)]:
            np.testing.assert_array_equal(logits(runner, images(*shape)), model(images(*shape), 4))
        assert here.trt.contexts == 3  # one a profile
        with pytest.raises(InputError, match="no profile of tensorrt-fp16.engine takes image") as caught:
            logits(runner, images(1, 100, 100))
        assert "1..1 x 480..480 x 640..640" in caught.value.message and "--image-size" in str(caught.value.hint)
    assert here.released()


def test_a_batch_that_no_profile_takes_whole_is_run_in_parts(here: Here, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b", plan(more=(((1, 96, 96), (1, 96, 96), (3, 96, 96)),)))
    with TensorRTRunner(path) as runner:
        for count in (1, 3, 4, 7, 8):
            pixels = images(count, 96, 96, seed=count)
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
    assert here.released()


def test_an_output_whose_size_only_the_run_knows(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_bundle(tmp_path / "b", plan(data_dependent=True))) as runner:
        for count in (1, 1, 1, 8, 2):
            pixels = images(count, seed=count)
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
        assert here.cuda.graphs == []
    here.cuda.memory_bytes = 8 * 32 * 32 * 3 + 16 + 8 * 32 * 32 * 3 // 8  # the input and scratch memory, no more
    with TensorRTRunner(write_bundle(tmp_path / "c", plan(data_dependent=True))) as runner:
        with pytest.raises(InputError, match="out of memory"):
            logits(runner, images(8))
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    assert here.released()


@pytest.mark.parametrize("streams", [1, 2, 5])
def test_threads_run_side_by_side(here: Here, tmp_path: Path, streams: int) -> None:
    batches = [images(1 + i % 4, 8 + i % 3, seed=i) for i in range(120)]
    with (
        TensorRTRunner(write_bundle(tmp_path / "b"), streams=streams) as runner,
        ThreadPoolExecutor(8) as pool,
    ):
        for batch, answer in zip(batches, pool.map(lambda b: logits(runner, b), batches), strict=True):
            np.testing.assert_array_equal(answer, model(batch, 4))
        assert 1 <= len(here.cuda.streams) <= streams
    assert here.released()


def test_a_second_caller_does_not_wait_for_the_first(here: Here, tmp_path: Path) -> None:
    """One call stands still on the GPU while another one is answered."""
    inside, go_on = threading.Event(), threading.Event()
    wait = SimulatedCuda.cudaStreamSynchronize

    def slow(stream: Any) -> tuple[Any, ...]:
        if threading.current_thread().name == "slow":
            inside.set()
            assert go_on.wait(30)
        return wait(here.cuda, stream)

    here.cuda.cudaStreamSynchronize = slow  # type: ignore[method-assign]
    with TensorRTRunner(write_bundle(tmp_path / "b"), streams=2) as runner:
        answers: list[Any] = []
        first = threading.Thread(target=lambda: answers.append(logits(runner, images(3))), name="slow")
        first.start()
        assert inside.wait(30)
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
        assert answers == []
        go_on.set()
        first.join(30)
        np.testing.assert_array_equal(answers[0], model(images(3), 4))
    assert here.released()


def test_a_lane_without_memory_is_given_up_for_the_other(here: Here, tmp_path: Path) -> None:
    largest = 8 * 64 * 64 * 3
    here.cuda.memory_bytes = largest + largest // 8 + 16 + 8 * 4 * 4 + 100  # for one call of the largest batch
    batches = [images(8, 64, 64, seed=i) for i in range(24)]
    with TensorRTRunner(write_bundle(tmp_path / "b"), streams=4) as runner, ThreadPoolExecutor(4) as pool:
        for batch, answer in zip(batches, pool.map(lambda b: logits(runner, b), batches), strict=True):
            np.testing.assert_array_equal(answer, model(batch, 4))
    assert here.released()


def test_an_engine_without_weights_takes_them_from_the_bundles_graph(here: Here, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b", plan(weights="these"), flags={"strip_weights": True}, graph=b"these weights")
    with TensorRTRunner(path) as runner:
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    with TensorRTRunner(path, trusted=True, weights=tmp_path / "b" / "model.fp16.onnx") as runner:
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    (tmp_path / "b" / "model.fp16.onnx").write_bytes(b"those weights")
    with pytest.raises(BundleError, match="SHA-256"), TensorRTRunner(path):
        pass
    other = write_bundle(tmp_path / "c", plan(weights="these"), flags={"strip_weights": True}, graph=b"other weights")
    with pytest.raises(
        EngineError, match=r"model\.fp16\.onnx does not give them: weights are of another model; it lacks 2"
    ):
        TensorRTRunner(other).__enter__()
    alone = write_bundle(tmp_path / "d", plan(weights="these"), flags={"strip_weights": True})
    with pytest.raises(EngineError, match="the graph that has them is not in the bundle") as caught:
        TensorRTRunner(alone).__enter__()
    assert "build-engine" in str(caught.value.hint)
    assert here.released()


def test_a_runner_that_nobody_closes_gives_its_memory_back(here: Here, tmp_path: Path) -> None:
    runner = TensorRTRunner(write_bundle(tmp_path / "b")).__enter__()
    logits(runner, images(2))
    assert not here.released()
    del runner
    gc.collect()
    assert here.released()


def test_an_engine_that_can_not_be_read(here: Here, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Magic tag") as caught, TensorRTRunner(write_bundle(tmp_path / "b", b"x")):
        pass
    assert "build-engine" in (caught.value.hint or "")
    assert here.released()


def test_an_engine_of_unknown_origin(here: Here, tmp_path: Path) -> None:
    alone = tmp_path / "found.engine"
    alone.write_bytes(plan())
    with pytest.raises(EngineError, match="described by no bundle"), TensorRTRunner(alone):
        pass
    stranger = write_bundle(tmp_path / "b").with_name("stranger.engine")
    stranger.write_bytes(plan())
    with pytest.raises(EngineError, match="described by no bundle"), TensorRTRunner(stranger):
        pass
    with TensorRTRunner(alone, trusted=True) as runner:
        assert logits(runner, images(1)).shape == (1, 4)


def test_an_engine_that_was_exchanged(here: Here, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b")
    path.write_bytes(plan(classes=5))
    with pytest.raises(BundleError, match="SHA-256"), TensorRTRunner(path):
        pass
    assert here.released()


def test_an_engine_of_an_older_graph_is_refused(here: Here, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b", graph=b"a graph")
    with TensorRTRunner(path) as runner:
        assert logits(runner, images(1)).shape == (1, 4)
    with Bundle.open(tmp_path / "b").edit() as editor:
        editor.path_for("model.fp16.onnx").write_bytes(b"a newer graph")
        editor.add("model.fp16.onnx", kind="onnx", precision="fp16")
    with pytest.raises(EngineError, match="another graph than the model.fp16.onnx") as caught, TensorRTRunner(path):
        pass
    assert "--fp16 --target tensorrt" in str(caught.value.hint)
    with Bundle.open(tmp_path / "b").edit() as editor:  # the CPU's graph is no source of engines
        editor.path_for("model.fp16.onnx").write_bytes(b"a graph")
        editor.add("model.fp16.onnx", kind="onnx", precision="fp16")
        editor.path_for("model.cpu.onnx").write_bytes(b"for the CPU")
        editor.add("model.cpu.onnx", kind="onnx", precision="fp16", target="cpu")
    with TensorRTRunner(path) as runner:
        assert logits(runner, images(1)).shape == (1, 4)


def test_load_reads_an_engine_once_and_stops_at_an_exchanged_one(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (selection, tensorrt):
        monkeypatch.setattr(module, "gpus", lambda: (GPU,))
    monkeypatch.setattr(selection, "has_module", lambda name: True)
    monkeypatch.setattr(selection, "version", lambda name: None)
    path = write_bundle(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr("vitdeploy.bundle.sha256", None)  # the bytes that are loaded are hashed, and the file not again
        with load(tmp_path / "b") as classifier:
            assert classifier.backend == "tensorrt"
            np.testing.assert_array_equal(classifier.logits(images(3)), model(images(3), 4))
    path.write_bytes(plan(classes=5))
    with pytest.raises(BundleError, match="SHA-256"):
        load(tmp_path / "b")
    assert here.released()


@pytest.mark.parametrize(
    ("built", "says"),
    [
        ({"tensorrt": {"flavour": "tensorrt", "version": "10.13.3.9"}}, "10.13.3.9.* 11.4.1.6 is installed"),
        ({"tensorrt": {"flavour": "tensorrt", "version": "11.4.0.9"}}, "11.4.0.9.* 11.4.1.6 is installed"),
        ({"tensorrt": {"flavour": "tensorrt-rtx", "version": "1.7.1"}}, "built by tensorrt-rtx"),
        ({"compute_capability": "8.9"}, "compute capability 8.9.* NVIDIA Simulated here has 8.6"),
        ({"compute_capabilities": ["8.0", "8.9", "12.0+"]}, "8.0, 8.9, 12.0"),
        ({"compute_capability": "9.0", "flags": {"version_compatible": True}}, "compute capability 9.0"),
    ],
)
def test_an_engine_of_another_machine(here: Here, tmp_path: Path, built: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught, TensorRTRunner(write_bundle(tmp_path / "b", **built)):
        pass
    assert f"vitdeploy build-engine {tmp_path / 'b'} --fp16 --target tensorrt" in str(caught.value.hint)
    assert here.released()


@pytest.mark.parametrize(
    "built",
    [
        {"tensorrt": {"flavour": "tensorrt", "version": "11.4.1.0"}},  # the fourth number is for TensorRT to judge
        {"tensorrt": {"flavour": "tensorrt", "version": "11.2.0.1"}, "flags": {"version_compatible": True}},
        {"compute_capability": "8.0", "flags": {"hardware_compatible": True}},
        {"compute_capability": None, "compute_capabilities": ["8.0", "8.6"]},
        {"compute_capability": None, "compute_capabilities": ["7.5+"]},
    ],
)
def test_an_engine_that_fits(here: Here, tmp_path: Path, built: dict[str, Any]) -> None:
    with TensorRTRunner(write_bundle(tmp_path / "b", **built)) as runner:
        assert logits(runner, images(1)).shape == (1, 4)


def test_versions_compare_as_numbers(tmp_path: Path) -> None:
    artifact = Bundle.open(write_bundle(tmp_path / "b").parents[1]).manifest.artifacts[0]
    with pytest.raises(EngineError):
        engine_fit.check_version(artifact, "tensorrt", "11.40.0")
    engine_fit.check_version(artifact, "tensorrt", "11.4.1")


def test_wrong_arguments(here: Here, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="flavour"):
        TensorRTRunner("x.engine", "tensorrt-lite")
    with pytest.raises(InputError, match="no GPU 1"), TensorRTRunner(write_bundle(tmp_path / "b"), device=1):
        pass
    with pytest.raises(EngineError, match="no engine at"), TensorRTRunner(tmp_path / "none.engine"):
        pass


@pytest.mark.skipif(bool(machine.gpus()), reason="there is a GPU here; tests/gpu runs engines on it")
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu(tmp_path: Path, flavour: str) -> None:
    path = write_bundle(tmp_path / "b", tensorrt={"flavour": flavour, "version": "1.7"})
    runner = TensorRTRunner(path, flavour)
    with pytest.raises(EngineError, match="needs an NVIDIA GPU") as caught, runner:
        pass
    assert caught.value.hint
    with pytest.raises(EngineError, match="no NVIDIA GPU"):
        load(path.parents[1])


def used_names(source: str, receivers: dict[str, str]) -> dict[str, set[str]]:
    """The attributes that code takes of some variables: {receiver's role: names}."""
    found: dict[str, set[str]] = {role: set() for role in receivers.values()}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            holder = node.value
            name = getattr(holder, "id", None) or getattr(holder, "attr", None)
            if name in receivers:
                found[receivers[name]].add(node.attr)
    return found


def source(name: str) -> str:
    return Path(tensorrt.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")


def missing(used: dict[str, set[str]], real: dict[str, Any]) -> dict[str, set[str]]:
    return {role: {n for n in names if not hasattr(real[role], n)} for role, names in used.items() if names}


def test_the_real_cuda_python_has_every_name() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed: no names to compare with")
    used = used_names(
        source("cuda"), {"_cuda": "cuda", "cuda": "cuda", "cudaMemcpyKind": "kind", "cudaStreamCaptureMode": "mode"}
    )
    used["cuda"] -= {"bindings"}
    assert len(used["cuda"]) >= 20
    assert not any(
        missing(used, {"cuda": cuda, "kind": cuda.cudaMemcpyKind, "mode": cuda.cudaStreamCaptureMode}).values()
    )
    assert int(cuda.cudaError_t.cudaErrorMemoryAllocation) == 2
    stream = cuda.cudaStream_t(1234)
    assert importlib.import_module("vitdeploy.runtime.cuda")._address(stream) == 1234


def test_the_simulation_has_no_name_that_the_real_cuda_lacks() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed: no names to compare with")
    for name in vars(SimulatedCuda):
        assert not name.startswith("cuda") or hasattr(cuda, name)


@pytest.mark.parametrize("release", ["10_3", "10_13", "11_4"])
def test_the_simulation_is_called_as_the_real_tensorrt(release: str) -> None:
    """Each method is one of the release's class, and takes as many arguments."""
    api = of_stub(Path(__file__).parents[1] / "stubs" / f"tensorrt_{release}.pyi")
    checked = 0
    for simulated, kind in SIMULATED.items():
        for name, method in vars(simulated).items():
            if name.startswith("_") or not isinstance(method, FunctionType):
                continue
            count = method.__code__.co_argcount - 1
            assert api[kind][name].takes([None] * count, {}), f"{kind}.{name}"
            checked += 1
    assert checked >= 20
    for enumeration in (DataType, TensorIOMode, ExecutionContextAllocationStrategy, LayerInformationFormat):
        assert set(enumeration.__members__) <= api[enumeration.__name__].keys()


def test_the_real_tensorrt_with_no_engine_in_the_file(tmp_path: Path) -> None:
    """It gives None, without a GPU as with one: that becomes an error that says why."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    with pytest.raises(EngineError, match=r"can't load some\.engine: \S+") as caught:
        engine.LoadedEngine(trt, "some.engine", b"plan")
    assert "build-engine" in (caught.value.hint or "")


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match="cuda-python") as caught:
        tensorrt._cuda_runtime("gpu")
    assert caught.value.hint == "pip install cuda-python"
