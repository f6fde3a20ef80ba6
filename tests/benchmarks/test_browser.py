"""The benchmark of the browser: its arithmetic, and that it runs; what it measures is no matter of tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.browser import find_chromium
from tests.tools.running import load_benchmark
from tests.tools.web import onnxruntime_web

ROOT = Path(__file__).parents[2]


def test_the_table_has_medians_and_the_ratio_of_each_round() -> None:
    browser = load_benchmark("browser")
    sides = {f"{form} 1 {side}": [1.0] * 9 for form in browser.PRECISIONS for side in ("wasm", "native")}
    sides["fp32 1 wasm"], sides["fp32 1 native"] = [30.0, 20, 10] * 3, [10.0, 10, 10] * 3
    lines = browser.table(sides, [1]).splitlines()
    assert lines[2] == "| FP32 | 1 | 20.0 | 10.0 | 2.00 [1.00, 3.00] |"
    assert lines[3] == "| INT8 | 1 | 1.0 | 1.0 | 1.00 [1.00, 1.00] |"


def test_every_side_is_asked_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    browser = load_benchmark("browser")
    monkeypatch.setattr(browser, "REST_S", 0)
    asked: list[str] = []
    sides = {name: (lambda name=name: asked.append(name) or float(len(asked))) for name in "abc"}
    times = browser.measured(sides, rounds=4)
    rounds = [asked[start : start + 3] for start in range(0, len(asked), 3)]
    assert len(rounds) == browser.WARM_ROUNDS + 4 and all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1  # in changing orders
    assert min(value for values in times.values() for value in values) > 3 * browser.WARM_ROUNDS


@pytest.mark.full
@pytest.mark.skipif(onnxruntime_web() is None, reason="no onnxruntime-web of npm: make test-web")
@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium or Chrome on this machine")
def test_it_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "browser.json"
    command = [sys.executable, "-m", "benchmarks.browser", tiny_bundle, "--onnxruntime-web", onnxruntime_web()]
    command += ["--rounds", "2", "--threads", "1", "--size", "32", "32", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found["samples_ms"]) == {f"{form} 1 {side}" for form in ("fp32", "int8") for side in ("wasm", "native")}
    assert all(len(values) == 2 and min(values) > 0 for values in found["samples_ms"].values())
