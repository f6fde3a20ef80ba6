"""The benchmark of the runtime runs, and its answers are right; what it measures is no matter of tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "runtime.json"
    command = [sys.executable, ROOT / "benchmarks" / "runtime.py", tiny_bundle, "--size", "32", "--pairs", "4"]
    command += ["--requests", "8", "--rounds", "2", "--precision", "int8", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("at most 0.1 ms") == 2  # both backends
    results = json.loads(out.read_text())["results"]
    assert [result["form"] for result in results] == ["int8 on openvino", "int8 on onnxruntime"]
    for result in results:
        assert result["overhead"]["pairs"] == 4
        rates = result["throughput"]["images_per_s"]
        assert set(rates) == {"one caller", "batches", "callers together", "one caller, micro-batching"}
        assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
