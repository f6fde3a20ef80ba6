"""The benchmark of engines on a real GPU: both clocks, memory of both sides, the choice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vitdeploy.bench import BenchReport, bench, render_html, save
from vitdeploy.bench.memory import device_used_bytes
from vitdeploy.bundle import Bundle
from vitdeploy.core.machine import gpus
from vitdeploy.data import load_dataset

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bundle(engine_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `engine_bundle` for these tests."""
    return Path(shutil.copytree(engine_bundle, tmp_path_factory.mktemp("gpu-bench") / "bundle"))


@pytest.fixture(scope="module")
def report(bundle: Path, tiny_checkpoint: Path, tiny_images: Path) -> BenchReport:
    images = load_dataset(tiny_images, "all")
    return bench(bundle, images, baseline=tiny_checkpoint, batch_sizes=(1, 4), rounds=8, callers=(1, 2), rates=(50.0,),
                 load_seconds=1.0, baselines=("tf32", "fp16", "half", "preprocessed", "half-preprocessed"))  # fmt: skip


def test_engines_have_both_clocks(report: BenchReport, runtime_flavour: str) -> None:
    for precision in ("fp16", "int8"):
        row = report.row(f"{precision}/{runtime_flavour}")
        assert row.status == "ok", row.reason
        for latency in row.latencies:
            kept = (latency.on_demand_ms.count if latency.on_demand_ms else 0) + latency.steady_ms.count
            assert latency.device_ms is not None and latency.device_ms.count == kept
            # The GPU's share of a call is part of it; events tick in half microseconds.
            assert 0 < latency.device_ms.p50 <= latency.ms.p50 + 0.001


def test_a_row_says_whether_it_ran_as_cuda_graphs(report: BenchReport, runtime_flavour: str) -> None:
    for precision in ("fp16", "int8"):
        row = report.row(f"{precision}/{runtime_flavour}")
        by = "TensorRT" if runtime_flavour == "tensorrt-rtx" else "vitdeploy"
        assert row.cuda_graphs is not None and row.cuda_graphs.by == by and row.cuda_graphs.why_not is None, row
        # that of the last batch size: when memory grew for it, the graphs of the first were dropped
        assert by == "TensorRT" or row.cuda_graphs.kept >= 1
    assert any(note.startswith("CUDA graphs, ") for note in report.notes)


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


def test_pytorch_runs_where_it_can(report: BenchReport, runtime_flavour: str) -> None:
    import torch

    if not torch.cuda.is_available():  # a PyTorch for CPUs beside a GPU
        assert report.row("fp32/pytorch").device == "cpu"
        return
    for form in ("fp32", "fp32-tf32", "fp16-autocast", "fp16-half", "fp32-preprocessed", "fp16-half-preprocessed"):
        row = report.row(f"{form}/pytorch-cuda")
        assert row.status == "ok" and row.latency is not None and row.latency.device_ms is not None, row.reason
        assert row.tf32 is (form == "fp32-tf32")
    assert "on the GPU" in report.baseline["description"] and any("in TF32" in note for note in report.notes)
    ours = report.row(f"fp16/{runtime_flavour}").latency
    assert ours is not None and (ours.busy or ours.device_speedup is not None)


def test_an_engine_can_be_chosen(report: BenchReport, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    choice = save(report, opened, render_html(report))
    assert choice == opened.reopen().choice
    assert choice is None or choice.machine["gpu"] == [gpu.name for gpu in gpus()]
    assert json.loads((bundle / "bench" / "report.json").read_text())["machine"]["gpu"]
