"""CUDA graphs of the TensorRT runner, on a simulated GPU: when one is captured, launched, dropped, and done without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.simulated_cuda import Status
from tests.tools.simulated_gpu import Here, images, logits, model, plan, write_engine_bundle
from vitdeploy.backends.tensorrt import execution
from vitdeploy.backends.tensorrt.runner import TensorRTRunner


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
