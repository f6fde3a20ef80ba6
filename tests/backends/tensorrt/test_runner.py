"""The TensorRT runner where there is no GPU: its order of work, its memory and its answers, on a simulated one.

On a real GPU the contract suite and tests/gpu run it.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.simulated_gpu import Here, images, logits, model, plan, write_engine_bundle
from vitdeploy.backends.dlpack import DeviceArray
from vitdeploy.backends.tensorrt import execution
from vitdeploy.backends.tensorrt.cuda import Stream
from vitdeploy.backends.tensorrt.runner import TensorRTRunner
from vitdeploy.core.errors import EngineError, InputError, OutOfMemoryError, RunnerClosedError
from vitdeploy.core.specs import ShapeRange


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


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)", OutOfMemoryError),
        ("Error Code 1: Cuda Runtime (out of memory)", OutOfMemoryError),
        ("Error Code 1: Cuda Runtime (an illegal memory access was encountered)", EngineError),
    ],
)
def test_what_tensorrt_itself_finds_no_memory_for_is_said_as_that(
    here: Here, tmp_path: Path, said: str, kind: type[Exception]
) -> None:
    runner = TensorRTRunner(write_engine_bundle(tmp_path / "b"))
    here.trt.fail_next = said
    with pytest.raises(kind, match="can't load tensorrt-fp16"), runner:
        pass
    with runner:
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
        here.trt.fail_next = said
        with pytest.raises(kind, match="failed on an input of shape"):
            logits(runner, images(1))
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
    assert here.released()


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


def test_scratch_memory_is_lent_for_shapes_that_need_none_if_others_do(here: Here, tmp_path: Path) -> None:
    """TensorRT refuses a context that has none then, and one keeps what it was lent, though that has grown since."""
    with TensorRTRunner(write_engine_bundle(tmp_path / "b", plan(scratch_from=2))) as opened:
        for count in (1, 2, 1, 8, 1, 1, 8, 1):
            np.testing.assert_array_equal(logits(opened, images(count, 64, 64)), model(images(count, 64, 64), 4))
    assert here.released()


def test_a_runner_without_memory_for_its_only_context_says_so(here: Here, tmp_path: Path) -> None:
    here.trt.most_contexts = 0
    with TensorRTRunner(write_engine_bundle(tmp_path / "b")) as runner:
        with pytest.raises(OutOfMemoryError, match="out of memory"):
            logits(runner, images(1))
        here.trt.most_contexts = None
        np.testing.assert_array_equal(logits(runner, images(1)), model(images(1), 4))
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


def test_a_runner_that_nobody_closes_gives_its_memory_back(here: Here, tmp_path: Path) -> None:
    runner = TensorRTRunner(write_engine_bundle(tmp_path / "b")).__enter__()
    logits(runner, images(2))
    assert not here.released()
    del runner
    gc.collect()
    assert here.released()


def test_wrong_arguments(here: Here, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="flavour"):
        TensorRTRunner("x.engine", "tensorrt-lite")
    with pytest.raises(InputError, match="no GPU 1"), TensorRTRunner(write_engine_bundle(tmp_path / "b"), device=1):
        pass
    with pytest.raises(EngineError, match="no engine at"), TensorRTRunner(tmp_path / "none.engine"):
        pass
