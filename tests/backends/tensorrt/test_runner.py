"""The TensorRT runner where there is no GPU: its order of work on a simulated one, every name against the real modules.

On a real GPU the contract suite and tests/gpu run it.
"""

from __future__ import annotations

import ast
import gc
import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from tests.tools import simulated_gpu
from tests.tools.any_line import lines_of, raised_at
from tests.tools.signatures import of_module, of_stub
from tests.tools.simulated_gpu import (
    GPU,
    DataType,
    ExecutionContextAllocationStrategy,
    LayerInformationFormat,
    SimulatedCuda,
    SimulatedTensorRT,
    SimulatedTensorRTRtx,
    Status,
    TensorIOMode,
    model,
    plan,
    write_engine_bundle,
)
from vitdeploy import load
from vitdeploy.backends import base
from vitdeploy.backends.dlpack import DeviceArray
from vitdeploy.backends.tensorrt import compatibility, cuda, engine, execution, runner
from vitdeploy.backends.tensorrt.cuda import Stream
from vitdeploy.backends.tensorrt.runner import TensorRTRunner
from vitdeploy.bundle import Bundle
from vitdeploy.core import admission, machine
from vitdeploy.core.errors import (
    BundleError,
    DependencyError,
    EngineError,
    InputError,
    OutOfMemoryError,
    RunnerClosedError,
)
from vitdeploy.core.specs import ShapeRange
from vitdeploy.runtime import selection

SIMULATED = {
    simulated_gpu.RuntimeCache: "IRuntimeCache",
    simulated_gpu.RuntimeConfig: "IRuntimeConfig",
    simulated_gpu.Runtime: "Runtime",
    simulated_gpu.Engine: "ICudaEngine",
    simulated_gpu.Context: "IExecutionContext",
    simulated_gpu.Refitter: "Refitter",
    simulated_gpu.ParserRefitter: "OnnxParserRefitter",
    simulated_gpu.Inspector: "EngineInspector",
}


class Here:
    """A simulated machine."""

    def __init__(self) -> None:
        self.cuda = SimulatedCuda()
        self.trt = SimulatedTensorRT(self.cuda)
        self.rtx = SimulatedTensorRTRtx(self.cuda)

    def require(self, module: str, extra: str) -> Any:
        return {"tensorrt": self.trt, "tensorrt_rtx": self.rtx, "cuda.bindings.runtime": self.cuda}[module]

    def released(self) -> bool:
        return not (
            self.cuda.device
            or self.cuda.host
            or self.cuda.streams
            or self.cuda.events
            or self.cuda.graphs
            or self.cuda.captured
        )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()
    monkeypatch.setattr(runner, "require", here.require)
    monkeypatch.setattr(runner, "gpus", lambda: (GPU,))
    return here


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which compiled kernels are kept."""
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensorrt-rtx"


RTX = {"tensorrt": {"flavour": "tensorrt-rtx", "version": "1.7.1"}, "compute_capabilities": ["8.6"]}


def rtx_runner(path: Path, **options: Any) -> TensorRTRunner:
    return TensorRTRunner(path, "tensorrt-rtx", **options)


def images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def logits(runner: TensorRTRunner, pixels: np.ndarray) -> np.ndarray:
    return runner.infer({"image": pixels})["logits"]


def test_the_time_on_the_gpu_is_kept(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_engine_bundle(tmp_path / "bundle")) as runner:
        assert runner.device_ms is None and len(here.cuda.events) == 2
        logits(runner, images(1))
        assert runner.device_ms is not None and runner.device_ms > 0
    assert here.released()


def test_answers_of_many_shapes_in_turn(here: Here, tmp_path: Path) -> None:
    """The same arithmetic on the same bytes: equal, not close."""
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
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
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        assert runner.device_memory == (2, 0)
        for seed, count in enumerate([2, 3, 2, 2, 2]):  # a shape that comes again would become a CUDA graph
            pixels = images(count, seed=seed)
            address, owner = here.cuda.lend(pixels, past_alignment=0 if aligned else 16)
            answer = runner.infer_on_device({"image": DeviceArray(address, pixels.shape, (2, 0), owner)})["logits"]
            here.cuda.take_back(address)
            np.testing.assert_array_equal(answer, model(pixels, 4))
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
    assert here.released()
    with pytest.raises(RunnerClosedError):
        runner.infer_on_device({"image": DeviceArray(0, (1, 8, 8, 3), (2, 0), None)})


def test_memory_is_kept_and_grows(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        logits(runner, images(4))
        made = here.cuda.allocations
        for count in (1, 4, 2):
            logits(runner, images(count))
        assert here.cuda.allocations == made
        logits(runner, images(8))
        assert here.cuda.allocations > made
        assert len(here.cuda.device) == 3 and len(here.cuda.host) == 2  # scratch memory is on the GPU alone


def test_outside_the_ranges_of_the_engine(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        for wrong, says in ((images(9), "batch of 1 to 8"), (images(1, 65), "height of 1 to 64")):
            with pytest.raises(InputError, match=says) as caught:
                logits(runner, wrong)
            assert caught.value.hint
        assert logits(runner, images(8)).shape == (8, 4)


def test_out_of_gpu_memory_is_said_and_survived(here: Here, tmp_path: Path) -> None:
    here.cuda.memory_bytes = 20_000
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        with pytest.raises(InputError, match="out of memory") as caught:
            logits(runner, images(8, 64, 64))
        assert "smaller" in (caught.value.hint or "")
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    assert here.released()


def test_a_run_that_fails_is_said_and_survived(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
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
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
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
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
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
    shapes = [(1, 8, 8 + i) for i in range(execution.GRAPHS + 4)]
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        logits(runner, images(8, 64, 64))  # the memory for all
        for _ in range(5):
            for i, shape in enumerate(shapes):
                np.testing.assert_array_equal(logits(runner, images(*shape, seed=i)), model(images(*shape, seed=i), 4))
                assert len(here.cuda.graphs) <= execution.GRAPHS
        assert here.trt.contexts == 1 + len(shapes)  # one that had to go is not captured again in every round
    with TensorRTRunner(write_engine_bundle(tmp_path / "c"), cuda_graphs=False) as runner:
        for _ in range(4):
            logits(runner, images(1))
        assert here.cuda.graphs == []
    assert here.released()


def test_what_can_not_be_captured_runs_plainly(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stream: Any) -> tuple[Any, ...]:
        here.cuda.capturing.pop(int(stream))
        return Status.cudaErrorStreamCaptureInvalidated, None

    monkeypatch.setattr(here.cuda, "cudaStreamEndCapture", broken)
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        for call in range(5):
            pixels = images(2, seed=call)
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
        assert here.cuda.graphs == [] and here.trt.contexts == 2  # tried once
    assert here.released()


def test_a_graph_for_which_there_is_no_context_is_not_had_and_not_tried_again(here: Here, tmp_path: Path) -> None:
    here.trt.most_contexts = 1
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        for call in range(6):
            pixels = images(2, 16, 24, seed=call)
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
        assert here.trt.contexts == 1 and here.cuda.graphs == []
        told = runner.cuda_graphs
        assert told["by"] == "vitdeploy" and told["kept"] == 0 and "out of memory" in told["why_not"]
    assert here.released()


def test_an_execution_for_which_there_is_no_context_is_given_up_for_the_other(here: Here, tmp_path: Path) -> None:
    here.trt.most_contexts = 1
    batches = [images(4, seed=i) for i in range(24)]
    path = write_engine_bundle(tmp_path / "b")
    with TensorRTRunner(path, streams=4, cuda_graphs=False) as runner, ThreadPoolExecutor(4) as pool:
        for batch, answer in zip(batches, pool.map(lambda b: logits(runner, b), batches), strict=True):
            np.testing.assert_array_equal(answer, model(batch, 4))
        assert runner.cuda_graphs == {"by": None, "kept": 0, "why_not": "switched off"}
    assert here.released()


def test_an_execution_for_which_there_is_no_stream_is_done_without(here: Here, tmp_path: Path) -> None:
    here.cuda.most_streams = 2
    batches = [images(4, seed=i) for i in range(48)]
    with TensorRTRunner(write_engine_bundle(tmp_path / "b"), streams=6) as runner, ThreadPoolExecutor(6) as pool:
        for batch, answer in zip(batches, pool.map(lambda b: logits(runner, b), batches), strict=True):
            np.testing.assert_array_equal(answer, model(batch, 4))
        assert len(here.cuda.streams) <= 2
    assert here.released()
    here.cuda.most_streams = 0
    with pytest.raises(OutOfMemoryError), TensorRTRunner(write_engine_bundle(tmp_path / "c")):
        pass
    assert here.released()


def test_a_graph_that_finds_no_memory_when_it_is_launched_is_not_had(here: Here, tmp_path: Path) -> None:
    here.cuda.no_memory_for_launches = True
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        for call in range(5):
            np.testing.assert_array_equal(logits(runner, images(2, seed=call)), model(images(2, seed=call), 4))
        assert here.cuda.graphs == [] and here.trt.contexts == 2  # tried once
        assert "out of memory" in runner.cuda_graphs["why_not"]
    assert here.released()


def test_an_engine_that_waits_in_the_middle_of_a_call_gets_no_graph(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_engine_bundle(tmp_path / "b", plan(synchronises=True))) as runner:
        for call in range(5):
            np.testing.assert_array_equal(logits(runner, images(2, seed=call)), model(images(2, seed=call), 4))
        told = runner.cuda_graphs
        assert here.trt.contexts == 2 and told["kept"] == 0 and told["why_not"] == "CUDA could not capture the call"
    assert here.released()


def test_the_callers_device_stays_its_own(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine on the second GPU, callers whose own is the first or the second, a call that fails among them."""
    monkeypatch.setattr(runner, "gpus", lambda: (GPU, GPU))

    def answer(opened: TensorRTRunner, own: int) -> int:
        here.cuda.cudaSetDevice(own)
        np.testing.assert_array_equal(logits(opened, images(2, seed=own)), model(images(2, seed=own), 4))
        return here.cuda.on()

    here.cuda.cudaSetDevice(0)
    with TensorRTRunner(write_engine_bundle(tmp_path / "b"), device=1, streams=4) as opened:
        assert here.cuda.on() == 0 and {here.cuda.device_of[stream] for stream in here.cuda.streams} == {1}
        with ThreadPoolExecutor(4) as pool:
            own = [number % 2 for number in range(40)]
            assert list(pool.map(answer, [opened] * 40, own)) == own
        here.trt.fail_next = "no kernel"
        with pytest.raises(EngineError, match="no kernel"):
            logits(opened, images(3))
        assert here.cuda.on() == 0
    assert here.cuda.on() == 0 and here.released()


def test_what_another_library_still_writes_on_the_default_stream_is_waited_for(here: Here, tmp_path: Path) -> None:
    pixels = images(2, seed=5)
    address, owner = here.cuda.lend(pixels)
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as opened:
        answer = opened.infer_on_device({"image": DeviceArray(address, pixels.shape, (2, 0), owner)})["logits"]
    np.testing.assert_array_equal(answer, model(pixels, 4))


@pytest.mark.parametrize(
    ("place", "name", "broken", "said"),
    [
        (Stream, "wait_for_default", lambda stream: None, "while it is still written"),
        (execution, "_ALIGNMENT", 16, "256 divides an address"),
    ],
    ids=["no wait", "no alignment"],
)
def test_negative_twin_the_simulated_gpu_notices(
    place: Any, name: str, broken: Any, said: str, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, broken)
    pixels = images(2, seed=5)
    address, owner = here.cuda.lend(pixels, past_alignment=16)
    with (
        TensorRTRunner(write_engine_bundle(tmp_path / "b")) as opened,
        pytest.raises(AssertionError, match=said),
    ):
        opened.infer_on_device({"image": DeviceArray(address, pixels.shape, (2, 0), owner)})


def test_an_engine_without_scratch_memory_is_given_none(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_engine_bundle(tmp_path / "b", plan(no_scratch=True))) as opened:
        for call in range(4):
            np.testing.assert_array_equal(logits(opened, images(2, seed=call)), model(images(2, seed=call), 4))
    assert here.released()


def test_tensorrt_rtx_compiles_at_the_first_call_of_a_shape_and_never_again(
    here: Here, tmp_path: Path, kernels: Path
) -> None:
    path = write_engine_bundle(tmp_path / "b", **RTX)
    for compiled in (2, 2):  # the second start finds them
        with rtx_runner(path) as opened:
            for seed, count in enumerate((1, 1, 2, 1)):
                np.testing.assert_array_equal(
                    logits(opened, images(count, seed=seed)), model(images(count, seed=seed), 4)
                )
            assert opened.cuda_graphs == {"by": "TensorRT", "kept": 0, "why_not": None} and here.cuda.graphs == []
        assert here.rtx.compiled == compiled
    (file,) = kernels.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")  # damaged: not one of these is taken
    with rtx_runner(path, cuda_graphs=False) as opened:
        logits(opened, images(1))
        assert here.rtx.compiled == 3 and opened.cuda_graphs["why_not"] == "switched off"
    assert here.released()


@pytest.mark.parametrize("capability", ["8.0", "8.7", "9.0"])
def test_tensorrt_rtx_is_not_tried_on_a_gpu_that_it_is_not_for(
    here: Here, tmp_path: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    monkeypatch.setattr(runner, "gpus", lambda: (replace(GPU, compute_capability=capability),))
    path = write_engine_bundle(tmp_path / "b", **{**RTX, "compute_capabilities": [capability]})
    for options in ({}, {"trusted": True}):
        with (
            pytest.raises(EngineError, match=f"TensorRT-RTX is for .* here has {capability}"),
            rtx_runner(path, **options),
        ):
            pass
    assert not kernels.exists()


def test_kernels_are_kept_where_a_process_ends_without_closing(here: Here, tmp_path: Path, kernels: Path) -> None:
    path = write_engine_bundle(tmp_path / "b", **RTX)
    opened = rtx_runner(path).__enter__()
    logits(opened, images(1))
    assert [file.stat().st_size > 32 for file in kernels.iterdir()] == [True]
    with rtx_runner(path) as second:
        logits(second, images(1))
    assert here.rtx.compiled == 1
    opened.close()


def test_without_a_folder_for_kernels_they_are_compiled_anew(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "file" / "folder"))
    path = write_engine_bundle(tmp_path / "b", **RTX)
    for compiled in (1, 2):
        with rtx_runner(path) as opened:
            np.testing.assert_array_equal(logits(opened, images(1)), model(images(1), 4))
        assert here.rtx.compiled == compiled
    assert here.released()


def test_a_runner_without_memory_for_its_only_context_says_so(here: Here, tmp_path: Path) -> None:
    here.trt.most_contexts = 0
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        with pytest.raises(OutOfMemoryError, match="out of memory"):
            logits(runner, images(1))
        here.trt.most_contexts = None
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    assert here.released()


def test_a_capture_that_fails_after_its_begin_leaves_no_graph(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        logits(runner, images(2))
        begin = here.cuda.cudaStreamBeginCapture

        def begin_and_fail(stream: Any, mode: Any) -> tuple[Any, ...]:
            here.trt.fail_next = "not in a capture"
            return begin(stream, mode)

        monkeypatch.setattr(here.cuda, "cudaStreamBeginCapture", begin_and_fail)
        for seed in (1, 2, 3):
            np.testing.assert_array_equal(logits(runner, images(2, seed=seed)), model(images(2, seed=seed), 4))
        assert here.cuda.graphs == here.cuda.captured == [] and runner.cuda_graphs["why_not"]
    assert here.released()


def test_the_profile_that_is_tuned_closest_runs(here: Here, tmp_path: Path) -> None:
    camera = ((1, 480, 640), (1, 480, 640), (1, 480, 640))
    crops = ((1, 32, 32), (8, 32, 32), (16, 32, 32))
    path = write_engine_bundle(tmp_path / "b", plan(more=(camera, crops)))
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
    path = write_engine_bundle(tmp_path / "b", plan(more=(((1, 96, 96), (1, 96, 96), (3, 96, 96)),)))
    with TensorRTRunner(path) as runner:
        for count in (1, 3, 4, 7, 8):
            pixels = images(count, 96, 96, seed=count)
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
    assert here.released()


def test_an_output_whose_size_only_the_run_knows(here: Here, tmp_path: Path) -> None:
    with TensorRTRunner(write_engine_bundle(tmp_path / "b", plan(data_dependent=True))) as runner:
        for count in (1, 1, 1, 8, 2):
            pixels = images(count, seed=count)
            np.testing.assert_array_equal(logits(runner, pixels), model(pixels, 4))
        assert here.cuda.graphs == []
    here.cuda.memory_bytes = 8 * 32 * 32 * 3 + 16 + 8 * 32 * 32 * 3 // 8  # the input and scratch memory, no more
    with TensorRTRunner(write_engine_bundle(tmp_path / "c", plan(data_dependent=True))) as runner:
        with pytest.raises(InputError, match="out of memory"):
            logits(runner, images(8))
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    assert here.released()


@pytest.mark.parametrize("streams", [1, 2, 5])
def test_threads_run_side_by_side(here: Here, tmp_path: Path, streams: int) -> None:
    batches = [images(1 + i % 4, 8 + i % 3, seed=i) for i in range(120)]
    with (
        TensorRTRunner(write_engine_bundle(tmp_path / "b"), streams=streams) as runner,
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
            assert go_on.wait(60)
        return wait(here.cuda, stream)

    here.cuda.cudaStreamSynchronize = slow  # type: ignore[method-assign]
    with TensorRTRunner(write_engine_bundle(tmp_path / "b"), streams=2) as runner:
        answers: list[Any] = []
        first = threading.Thread(target=lambda: answers.append(logits(runner, images(3))), name="slow")
        first.start()
        assert inside.wait(60)
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
        assert answers == []
        go_on.set()
        first.join(60)
        np.testing.assert_array_equal(answers[0], model(images(3), 4))
    assert here.released()


def test_an_execution_without_memory_is_given_up_for_the_other(here: Here, tmp_path: Path) -> None:
    largest = 8 * 64 * 64 * 3
    here.cuda.memory_bytes = largest + largest // 8 + 16 + 8 * 4 * 4 + 100  # for one call of the largest batch
    batches = [images(8, 64, 64, seed=i) for i in range(24)]
    with TensorRTRunner(write_engine_bundle(tmp_path / "b"), streams=4) as runner, ThreadPoolExecutor(4) as pool:
        for batch, answer in zip(batches, pool.map(lambda b: logits(runner, b), batches), strict=True):
            np.testing.assert_array_equal(answer, model(batch, 4))
    assert here.released()


def test_it_answers_after_ctrl_c_at_any_line_and_closes(here: Here, tmp_path: Path) -> None:
    """Also when the shape is new, when it is captured, and when its graph is launched."""
    modules = (runner, execution, admission)

    def calls(opened: TensorRTRunner, count: int) -> None:
        for seed in range(3):
            np.testing.assert_array_equal(logits(opened, images(count, seed=seed)), model(images(count, seed=seed), 4))

    with TensorRTRunner(write_engine_bundle(tmp_path / "b"), streams=1) as opened:
        lines = lines_of(lambda: calls(opened, 1), modules)
        assert len(lines) > 80
        for number, line in enumerate(lines):
            count = 1 + number % 8
            raised_at(line, lambda count=count: calls(opened, count), modules, KeyboardInterrupt())
            calls(opened, count)
    assert here.released()


def test_it_closes_after_ctrl_c_at_any_line_of_close(here: Here, tmp_path: Path) -> None:
    """Closed again, or by being forgotten."""
    modules, path = (base, runner, execution, cuda, admission), write_engine_bundle(tmp_path / "b")

    def opened() -> TensorRTRunner:
        made = TensorRTRunner(path).__enter__()
        logits(made, images(2))
        return made

    lines = lines_of(opened().close, modules)
    assert len(lines) > 10
    for line in lines:
        broken = opened()
        assert raised_at(line, broken.close, modules, KeyboardInterrupt()), line
        with suppress(RunnerClosedError):  # at the first line it is not closed yet
            logits(broken, images(2))
        broken.close()
        assert here.released(), line
        broken = opened()
        raised_at(line, broken.close, modules, KeyboardInterrupt())
        del broken
        gc.collect()
        assert here.released(), line


def test_an_engine_without_weights_takes_them_from_the_bundles_graph(here: Here, tmp_path: Path) -> None:
    path = write_engine_bundle(
        tmp_path / "b", plan(weights="these"), flags={"strip_weights": True}, graph=b"these weights"
    )
    with TensorRTRunner(path) as runner:
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    with TensorRTRunner(path, trusted=True, weights=tmp_path / "b" / "model.fp16.onnx") as runner:
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    (tmp_path / "b" / "model.fp16.onnx").write_bytes(b"those weights")
    with pytest.raises(BundleError, match="SHA-256"), TensorRTRunner(path):
        pass
    other = write_engine_bundle(
        tmp_path / "c", plan(weights="these"), flags={"strip_weights": True}, graph=b"other weights"
    )
    with pytest.raises(
        EngineError, match=r"model\.fp16\.onnx does not give them: weights are of another model; it lacks 2"
    ):
        TensorRTRunner(other).__enter__()
    alone = write_engine_bundle(tmp_path / "d", plan(weights="these"), flags={"strip_weights": True})
    with pytest.raises(EngineError, match="the graph that has them is not in the bundle") as caught:
        TensorRTRunner(alone).__enter__()
    assert "build-engine" in str(caught.value.hint)
    assert here.released()


def test_a_runner_that_nobody_closes_gives_its_memory_back(here: Here, tmp_path: Path) -> None:
    runner = TensorRTRunner(write_engine_bundle(tmp_path / "b")).__enter__()
    logits(runner, images(2))
    assert not here.released()
    del runner
    gc.collect()
    assert here.released()


def test_an_engine_that_can_not_be_read(here: Here, tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="Magic tag") as caught,
        TensorRTRunner(write_engine_bundle(tmp_path / "b", b"x")),
    ):
        pass
    assert "build-engine" in (caught.value.hint or "")
    assert here.released()


def test_an_engine_of_unknown_origin(here: Here, tmp_path: Path) -> None:
    alone = tmp_path / "found.engine"
    alone.write_bytes(plan())
    with pytest.raises(EngineError, match="described by no bundle"), TensorRTRunner(alone):
        pass
    stranger = write_engine_bundle(tmp_path / "b").with_name("stranger.engine")
    stranger.write_bytes(plan())
    with pytest.raises(EngineError, match="described by no bundle"), TensorRTRunner(stranger):
        pass
    with TensorRTRunner(alone, trusted=True) as runner:
        assert logits(runner, images(1)).shape == (1, 4)


def test_an_engine_that_was_exchanged(here: Here, tmp_path: Path) -> None:
    path = write_engine_bundle(tmp_path / "b")
    path.write_bytes(plan(classes=5))
    with pytest.raises(BundleError, match="SHA-256"), TensorRTRunner(path):
        pass
    assert here.released()


def test_an_engine_of_an_older_graph_is_refused(here: Here, tmp_path: Path) -> None:
    path = write_engine_bundle(tmp_path / "b", graph=b"a graph")
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
    for module in (selection, runner, machine):
        monkeypatch.setattr(module, "gpus", lambda: (GPU,))
    monkeypatch.setattr(machine, "has_module", lambda name: True)
    monkeypatch.setattr(machine, "version", lambda name: None)
    path = write_engine_bundle(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(
            "vitdeploy.core.storage.sha256", None
        )  # the bytes that are loaded are hashed, and the file not again
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
    with pytest.raises(EngineError, match=says) as caught, TensorRTRunner(write_engine_bundle(tmp_path / "b", **built)):
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
    with TensorRTRunner(write_engine_bundle(tmp_path / "b", **built)) as runner:
        assert logits(runner, images(1)).shape == (1, 4)


def test_versions_compare_as_numbers(tmp_path: Path) -> None:
    artifact = Bundle.open(write_engine_bundle(tmp_path / "b").parents[1]).manifest.artifacts[0]
    with pytest.raises(EngineError):
        compatibility.check_version(artifact, "tensorrt", "11.40.0")
    compatibility.check_version(artifact, "tensorrt", "11.4.1")


def test_wrong_arguments(here: Here, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="flavour"):
        TensorRTRunner("x.engine", "tensorrt-lite")
    with pytest.raises(InputError, match="no GPU 1"), TensorRTRunner(write_engine_bundle(tmp_path / "b"), device=1):
        pass
    with pytest.raises(EngineError, match="no engine at"), TensorRTRunner(tmp_path / "none.engine"):
        pass


@pytest.mark.skipif(bool(machine.gpus()), reason="there is a GPU here; tests/gpu runs engines on it")
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu(tmp_path: Path, flavour: str) -> None:
    path = write_engine_bundle(tmp_path / "b", tensorrt={"flavour": flavour, "version": "1.7"})
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
    return Path(runner.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")


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
    assert importlib.import_module("vitdeploy.backends.tensorrt.cuda")._address(stream) == 1234


def test_the_simulation_has_no_name_that_the_real_cuda_lacks() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed: no names to compare with")
    for name in vars(SimulatedCuda):
        assert not name.startswith("cuda") or hasattr(cuda, name)


@pytest.mark.parametrize("release", ["10_3", "10_13", "11_4", "rtx"])
def test_the_simulation_is_called_as_the_real_tensorrt(release: str) -> None:
    """Each method is one of the release's class, and takes as many arguments; the runtime's settings are of RTX."""
    if release == "rtx":
        api = of_module(pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed"))
    else:
        api = of_stub(Path(__file__).parents[2] / "stubs" / f"tensorrt_{release}.pyi")
    checked = 0
    for simulated, kind in SIMULATED.items():
        if release != "rtx" and kind in ("IRuntimeCache", "IRuntimeConfig"):
            continue
        for name, method in vars(simulated).items():
            if name.startswith("_") or not isinstance(method, FunctionType):
                continue
            if release != "rtx" and name == "create_runtime_config":
                continue
            count = method.__code__.co_argcount - 1
            assert api[kind][name].takes([None] * count, {}), f"{kind}.{name}"
            checked += 1
    assert checked >= 20
    shared = [DataType, TensorIOMode, ExecutionContextAllocationStrategy, LayerInformationFormat]
    own = [simulated_gpu.CudaGraphStrategy, simulated_gpu.DynamicShapesKernelSpecializationStrategy]
    for enumeration in [*shared, *(own if release == "rtx" else [])]:
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
        runner._cuda_runtime("gpu")
    assert caught.value.hint == "pip install cuda-python"
