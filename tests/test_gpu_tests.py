"""The tests that need a GPU, as far as they can be tried without: tolerances, what takes part, the report."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.tools import on_gpu
from tests.tools.on_gpu import REFERENCES, SIZES, TOLERANCES, pixels, providers, seconds_by_test
from tests.tools.simulated_gpu import GPU
from vitdeploy.backends import registry
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_a_tolerance_lies_well_under_what_swapped_colours_change(
    tiny_bundle: Path, precision: str, size: tuple[int, int, int]
) -> None:
    """An engine that is off by half of its tolerance still passes, and is told from one with its colours swapped."""
    image = pixels(*size)
    with OnnxRuntimeRunner(tiny_bundle / REFERENCES[precision]) as runner:
        expected = runner.infer({"image": image})["logits"]
        swapped = runner.infer({"image": np.ascontiguousarray(image[..., ::-1])})["logits"]
    change = float(np.abs(swapped - expected).max()) / float(np.ptp(expected))
    assert change > 1.5 * TOLERANCES[precision]


def test_a_provider_that_can_not_be_loaded_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu names its TensorRT provider beside a TensorRT of another major version as well."""
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    monkeypatch.setattr(on_gpu, "gpus", lambda: (GPU,))
    spec = registry.find("onnxruntime-tensorrt")
    for obstacle, expected in (
        (None, ("onnxruntime-cuda", "onnxruntime-tensorrt")),
        (("needs TensorRT 10, and 11.4 is installed", "install the other"), ("onnxruntime-cuda",)),
    ):
        changed = replace(spec, obstacle=lambda obstacle=obstacle: obstacle)  # type: ignore[misc]
        monkeypatch.setitem(registry._specs, spec.name, changed)
        assert providers() == expected


def test_the_report_counts_the_fixtures_of_a_test_and_takes_files_that_were_not_imported() -> None:
    stats = {
        "": [SimpleNamespace(nodeid="a", duration=30.0), SimpleNamespace(nodeid="a", duration=1.0)],
        "passed": [SimpleNamespace(nodeid="a", duration=2.0), SimpleNamespace(nodeid="b", duration=0.5)],
        "error": [SimpleNamespace(nodeid="no_such.py")],
    }
    assert seconds_by_test(stats) == {"a": 33.0, "b": 0.5}
    assert seconds_by_test(stats)["no_such.py"] == 0.0


@pytest.mark.full
def test_the_tests_on_a_gpu_hold_on_a_simulated_one() -> None:
    """All but what takes PyTorch on a GPU, a process of its own, or an output that simulated engines do not have."""
    pytest.importorskip("tensorrt_rtx", reason="it builds in the place of TensorRT")
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    files = [f"tests/gpu/test_{name}_gpu.py" for name in ("engine", "runtime", "cuda")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.tools.simulated_h200",
        "-p",
        "no:cacheprovider",
        "-q",
        "-n0",
    ]
    command += ["-m", "gpu", "-k", "not whose_size_only and not ctrl_c", *files]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=900)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed is not None and int(passed[1]) >= 40, done.stdout[-4000:]
