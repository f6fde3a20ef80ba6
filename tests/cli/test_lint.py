"""`vitdeploy lint` as users see it: what it prints, its exit codes, its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.lint_graphs import PAIRS, linear, saved
from vitdeploy.compiler.lint.rules import RULES


def test_a_sound_graph(cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("lint", saved(linear(), tmp_path / "graph.onnx"))
    assert done.exit_code == 0 and "Nothing found" in done.stdout and not done.stderr
    assert "INT8 and FP16, opset 20" in done.stdout and "100.0% of them quantised" in done.stdout


@pytest.mark.parametrize(("rule", "code"), [("asymmetric-qdq", 3), ("one-sided-residual", 4), ("fp32-only", 0)])
def test_the_exit_code_is_the_worst_severity(rule: str, code: int, cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("lint", saved(PAIRS[rule][0], tmp_path / "graph.onnx"))
    assert done.exit_code == code
    text = " ".join(done.stdout.split())
    assert f"{RULES[rule].severity} {RULES[rule].title} ({rule})" in text and f"Remedy: {RULES[rule].remedy}" in text


def test_a_finding_says_where(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = saved(PAIRS["too-little-int8"][0], tmp_path / "graph.onnx")
    short, full = cli("lint", path).stdout, cli("lint", path, "--all").stdout
    assert "and 7 more (--all)" in short and "layer/MatMul_f9" in full and "--all" not in full


def test_json(cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("lint", saved(PAIRS["asymmetric-qdq"][0], tmp_path / "graph.onnx"), "--json")
    data = json.loads(done.stdout)  # compared with the schema
    (graph,) = data["graphs"]
    assert done.exit_code == 3 and data["worst"] == "error" and data["counts"] == {"error": 1, "warning": 0, "info": 0}
    (finding,) = graph["findings"]
    assert finding["rule"] == "asymmetric-qdq" and finding["page"] == "docs/lint/asymmetric-qdq.md"
    assert finding["places"][0]["node"] == "layer/QuantizeLinear_q" and finding["places"][0]["layer"] == "layer"


def test_what_is_measured_is_shown_the_noisiest_first(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = saved(PAIRS["too-little-int8"][0], tmp_path / "graph.onnx")
    np.save(tmp_path / "input.npy", np.random.default_rng(0).normal(size=(4, 4, 8)).astype(np.float16))
    measured = ("--measure", tmp_path / "input.npy")
    data = json.loads(cli("lint", path, *measured, "--json").stdout)["graphs"][0]["measured"]
    ratios = [node["sqnr_db"] for node in data["nodes"] if node["sqnr_db"] is not None]
    short, full = cli("lint", path, *measured).stdout, cli("lint", path, *measured, "--all").stdout
    lines = [line.split() for line in short.splitlines()]
    head = lines.index(["node", "lowest", "highest", "SQNR", "dB"])
    rows = lines[head + 1 : head + 9]
    assert [float(row[-1]) for row in rows] == pytest.approx(sorted(ratios)[:8], abs=0.06)
    said = f"4 images of {tmp_path / 'input.npy'}: {data['reference']}."  # a long path breaks anywhere
    assert "".join(said.split()) in "".join(short.split())
    assert f"the noisiest 8 of {len(data['nodes'])} (--all)" in short and "noisiest" not in full
    assert all(node["node"] in full for node in data["nodes"])


def test_targets(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = saved(PAIRS["opset"][0], tmp_path / "graph.onnx")
    assert cli("lint", path, "--target", "tensorrt-10.3").exit_code == 4
    assert cli("lint", path, "--target", "tensorrt-11", "--target", "tensorrt-rtx").exit_code == 0
    assert cli("lint", path, "--target", "tensorrt-9").exit_code == 2


def test_a_bundle(cli: Callable[..., Any], tiny_bundle: Path) -> None:
    done = cli("lint", tiny_bundle, "--json")
    assert done.exit_code == 0, done.stdout
    found = {graph["file"]: graph for graph in json.loads(done.stdout)["graphs"]}
    # The products of the last layer that give the class token alone are smaller for CPUs, and all are counted.
    assert found["model.int8-cpu.onnx"]["products"] == found["model.int8.onnx"]["products"]
    assert 0.6 < found["model.int8-cpu.onnx"]["macs"] / found["model.int8.onnx"]["macs"] < 1
    assert found["model.int8-cpu.onnx"]["share_quantized"] > 0.6
    graphs = {name: graph["targets"] for name, graph in found.items()}
    assert graphs["model.int8-cpu.onnx"] == ["cpu"] and "cpu" not in graphs["model.int8.onnx"]
    only = cli("lint", tiny_bundle, "--target", "cpu", "--json")
    assert [graph["file"] for graph in json.loads(only.stdout)["graphs"]] == ["model.int8-cpu.onnx"]


def test_no_onnx_file(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    done = cli("lint", tmp_path / "graph.onnx")
    assert done.exit_code == 1 and done.stderr.startswith("Error: ") and "Hint: " in done.stderr and not done.stdout
