"""Threads that call one TensorRT runner side by side, on a simulated GPU, and callers that are interrupted."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.any_line import lines_of, raised_at
from tests.tools.simulated_cuda import SimulatedCuda
from tests.tools.simulated_gpu import GPU, Here, images, logits, model, write_engine_bundle
from vitdeploy.backends import base
from vitdeploy.backends.tensorrt import cuda, execution, runner
from vitdeploy.backends.tensorrt.runner import TensorRTRunner
from vitdeploy.core import admission
from vitdeploy.core.errors import EngineError, OutOfMemoryError, RunnerClosedError


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


def test_it_closes_after_ctrl_c_at_any_line_of_close(
    here: Here, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Closed again, or by being forgotten."""
    modules, path = (base, runner, execution, cuda, admission), write_engine_bundle(tmp_path / "b")

    def opened() -> TensorRTRunner:
        made = TensorRTRunner(path).__enter__()
        logits(made, images(2))
        return made

    lines = lines_of(opened().close, modules)
    assert len(lines) > 10
    gc.freeze()  # what all tests load takes long to look through, again for each line
    request.addfinalizer(gc.unfreeze)
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
