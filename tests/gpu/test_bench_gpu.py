"""The benchmark of engines on a real GPU: both clocks, memory of both sides, the choice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vitdeploy.bench import BenchReport, bench, render_html, save
from vitdeploy.bench.memory import device_used_bytes
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.engine import EngineOptions, Profile
from vitdeploy.datasets import load_dataset
from vitdeploy.machine import gpus
from vitdeploy.specs import ShapeRange

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, runtime_flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny bundle with FP16 and INT8 engines."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("gpu-bench") / "bundle"))
    side = ShapeRange(16, 32, 128)
    options = EngineOptions(flavour=runtime_flavour, profiles=(Profile(ShapeRange(1, 1, 4), side, side),))
    build(path, ["fp16", "int8"], target=runtime_flavour, engine_options=options)
    return path


@pytest.fixture(scope="module")
def report(bundle: Path, tiny_checkpoint: Path, tiny_images: Path) -> BenchReport:
    images = load_dataset(tiny_images, "all")
    return bench(bundle, images, baseline=tiny_checkpoint, batch_sizes=(1, 4), rounds=8, callers=(1, 2), rates=(50.0,),
                 load_seconds=1.0)  # fmt: skip


def test_engines_have_both_clocks(report: BenchReport, runtime_flavour: str) -> None:
    for precision in ("fp16", "int8"):
        row = report.row(f"{precision}/{runtime_flavour}")
        assert row.status == "ok", row.reason
        for latency in row.latencies:
            assert latency.device is not None and latency.device.count == len(latency.samples)
            # The GPU's share of a call is part of it; events tick in half microseconds.
            assert 0 < latency.device.p50 <= latency.p50 + 0.001


def test_memory_of_the_gpu_is_measured_apart(report: BenchReport, runtime_flavour: str) -> None:
    memory = report.row(f"fp16/{runtime_flavour}").memory
    assert memory is not None and memory.host_peak_bytes is not None and memory.host_peak_bytes > 2e7
    assert memory.device_peak_bytes is not None
    assert memory.device_peak_bytes < gpus()[0].memory_bytes
    used = device_used_bytes()
    assert used is not None and 0 < used <= gpus()[0].memory_bytes


def test_the_gpu_s_sensors_are_read(report: BenchReport) -> None:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no nvidia-smi here to read sensors with")
    assert report.readings and len(report.readings[0]["gpu"]) >= 1


def test_pytorch_runs_where_it_can(report: BenchReport) -> None:
    import torch

    if not torch.cuda.is_available():  # a PyTorch for CPUs beside a GPU
        assert report.row("fp32/pytorch").device == "cpu"
        return
    row = report.row("fp32/pytorch-cuda")
    assert row.status == "ok" and row.latency is not None and row.latency.device is not None
    assert "on the GPU" in report.baseline["description"]


def test_an_engine_can_be_chosen(report: BenchReport, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    choice = save(report, opened, render_html(report))
    assert choice == opened.reopen().choice
    assert choice is None or choice.machine["gpu"] == [gpu.name for gpu in gpus()]
    assert json.loads((bundle / "bench" / "report.json").read_text())["machine"]["gpu"]
