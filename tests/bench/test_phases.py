"""The parts of a call: what is cut out is the preprocessing, and its share is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.forms import Clock, KnownRunner, form
from vitdeploy.bench import bench
from vitdeploy.bench.phases import PhasesRun, cut_preprocessing, time_decoding
from vitdeploy.data import load_dataset
from vitdeploy.report.settings import BenchSettings

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 24, 40, 3), dtype=np.uint8)  # wide: as each Pillow does


class Split(KnownRunner):
    """Takes 10 ms, 3 of them for its image processor."""

    def preprocess(self, images: Any) -> object:
        self.clock.seconds += 0.003
        return np.ones(3)  # no truth value of its own, like a tensor


def test_the_share_of_the_preprocessing_is_found() -> None:
    clock = Clock()
    runners = {"fp32/pytorch": Split(clock, 4), "int8/tensorrt": KnownRunner(clock, 4)}
    forms = [form("fp32", "pytorch", runners["fp32/pytorch"]), form("int8", "tensorrt", runners["int8/tensorrt"])]
    batch = np.zeros((2, 4, 4, 3), np.uint8)
    for runner in runners.values():
        runner.open = 1
    run = PhasesRun(forms, runners, batch, 0.5, BenchSettings(rounds=8), clock)
    run.run()
    assert set(run.found) == {"fp32/pytorch"}  # the other is one piece
    found = run.found["fp32/pytorch"]
    assert (found.decode_ms, found.preprocess_ms, found.model_ms) == pytest.approx((1.0, 3.0, 7.0))
    assert found.preprocess_share == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx"])
def test_what_is_cut_out_is_the_preprocessing(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    import onnxruntime

    from vitdeploy.backends.pytorch.runner import PyTorchRunner

    part = tmp_path / "part.onnx"
    assert cut_preprocessing(tiny_bundle / name, part)
    assert part.stat().st_size < (tiny_bundle / name).stat().st_size / 2
    session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": PIXELS})
    with PyTorchRunner(tiny_checkpoint, threads=1) as runner:
        expected = runner.preprocess(PIXELS).numpy()
    # One level of 255, in units of the smallest standard deviation.
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1.01 / 255 / 0.224


def test_a_graph_without_preprocessing_is_not_cut(tiny_bundle: Path, tmp_path: Path) -> None:
    from tests.tools.small_bundle import write_small_bundle

    small = write_small_bundle(tmp_path / "small", engine=False)
    assert not cut_preprocessing(small / "model.onnx", tmp_path / "part.onnx")
    assert not (tmp_path / "part.onnx").exists()


def test_every_form_of_a_real_bundle_has_its_phases(
    tiny_bundle: Path, tiny_checkpoint: Path, tiny_images: Path
) -> None:
    images = load_dataset(tiny_images, "all")
    report = bench(tiny_bundle, images, baseline=tiny_checkpoint, rounds=2, threads=1, memory=False, accuracy=False)
    ran = [row for row in report.rows if row.status == "ok"]
    assert len(ran) >= 7
    for row in ran:
        phases = row.phases
        assert phases is not None, row.key
        assert phases.decode_ms is not None and min(phases.decode_ms, phases.preprocess_ms, phases.post_ms) > 0
        assert 0 < phases.preprocess_share <= 1 and phases.preprocess_ms + phases.model_ms > 0


def test_images_that_are_no_files_have_no_decoding() -> None:
    assert time_decoding(load_dataset("digits", "test", limit=5), Clock()) is None
