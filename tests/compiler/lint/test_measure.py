"""`lint --measure`: ranges, overflow and noise of graphs whose numbers are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.tools.any_line import lines_of, raised_at
from tests.tools.lint_graphs import DECOMPOSED, FLOATS, NORM, Example, half, linear, saved, spread, text
from vitdeploy.compiler.lint import measure as measuring
from vitdeploy.compiler.lint import run as running
from vitdeploy.compiler.lint.measured import MeasuredGraph, NodeRange
from vitdeploy.compiler.lint.report import GraphReport
from vitdeploy.compiler.lint.request import ImageRequest
from vitdeploy.compiler.lint.run import lint
from vitdeploy.core.errors import DatasetError, InputError, ModelError


def measured(example: Example, array: np.ndarray, folder: Path) -> tuple[MeasuredGraph, dict[str, NodeRange], set[str]]:
    """What was measured, by the name of what a node makes, and the rules that found something."""
    np.save(folder / "values.npy", array)
    path = saved(example, folder / "graph.onnx")
    (graph,) = lint(path, images=ImageRequest(str(folder / "values.npy"))).graphs
    assert graph.measured is not None
    nodes = {node.node.rpartition("_")[2]: node for node in graph.measured.nodes}
    return graph.measured, nodes, {finding.rule.id for finding in graph.findings}


def test_ranges_are_those_of_the_values(tmp_path: Path) -> None:
    found, nodes, rules = measured(text("y = Mul (x, k)", constants="float k = {3}", **FLOATS), spread(2), tmp_path)
    assert (nodes["y"].low, nodes["y"].high, nodes["y"].beyond_fp16) == (-6, 6, 0)
    assert found.images == 2 and "rounded to FP16 behind each operation" in found.reference
    assert not {"fp16-overflow", "fp16-range", "low-sqnr"} & rules


def test_the_square_of_a_decomposed_layernorm_is_seen_to_overflow(tmp_path: Path) -> None:
    example = text(DECOMPOSED, constants=NORM, opset=13, **FLOATS)
    _, nodes, rules = measured(example, spread(20_000), tmp_path)
    assert {"fp16-overflow", "low-sqnr", "decomposed-layernorm"} <= rules
    assert nodes["d2"].beyond_fp16 == 1 and nodes["v"].not_finite == 1 and nodes["v"].sqnr_db is None
    assert nodes["y"].sqnr_db == 0, "a number divided by infinity is 0: nothing is left"
    fused = text("y = LayerNormalization <epsilon = 1e-6> (x, g)", constants=NORM, opset=17, **FLOATS)
    _, nodes, rules = measured(fused, spread(20_000), tmp_path)
    assert not {"fp16-overflow", "low-sqnr", "decomposed-layernorm"} & rules and nodes["y"].not_finite == 0


def test_values_near_the_end_are_said_to_be(tmp_path: Path) -> None:
    example = text("y = Mul (x, k)", constants="float k = {1}", **FLOATS)
    assert "fp16-range" in measured(example, spread(20_000), tmp_path)[2]
    assert "fp16-range" not in measured(example, spread(16_000), tmp_path)[2]
    _, nodes, rules = measured(example, spread(70_000), tmp_path)
    assert "fp16-overflow" in rules and "fp16-range" not in rules and nodes["y"].beyond_fp16 == 6 / 64


def quantized(scale: float) -> Example:
    return linear("y = Relu (m)", scales=f"float16 s = {{{half(scale)}}}, int8 z = {{0}}")


def test_the_sqnr_is_that_of_the_rounding(tmp_path: Path) -> None:
    """x W with equal weights is a sum: its noise is that of rounding x, computed here by hand."""
    values = np.random.default_rng(0).uniform(-1, 1, (8, 4, 8)).astype(np.float16)
    found, nodes, rules = measured(quantized(0.1), values, tmp_path)
    scale = float(np.float16(0.1))
    wide = values.astype(np.float64)
    exact, rounded = wide.sum(axis=-1), (np.rint(wide / scale) * scale).sum(axis=-1)
    expected = 10 * math.log10(np.square(exact).sum() / np.square(rounded - exact).sum())
    assert nodes["m"].sqnr_db == pytest.approx(expected, abs=0.2)  # and FP16's rounding, 60 dB below
    assert "without the Q/DQ of activations" in found.reference and "low-sqnr" not in rules


def test_a_scale_that_is_too_coarse_is_found(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (8, 4, 8)).astype(np.float16)
    _, nodes, rules = measured(quantized(0.9), values, tmp_path)
    assert "low-sqnr" in rules and nodes["m"].sqnr_db is not None and nodes["m"].sqnr_db < 20


def test_clipping_is_noise_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-100, 100, (8, 4, 8)).astype(np.float16)
    assert "low-sqnr" in measured(quantized(0.1), values, tmp_path)[2]
    assert "low-sqnr" not in measured(quantized(0.8), values, tmp_path)[2]


def test_an_overflow_of_a_half_graph_is_infinite_as_on_a_device(tmp_path: Path) -> None:
    example = text("a = Mul (x, k) y = Sub (a, k)", constants=f"float16 k = {{{half(300)}}}")
    found, nodes, rules = measured(example, spread(400).astype(np.float16), tmp_path)
    assert {"fp16-overflow", "low-sqnr"} <= rules and nodes["a"].high == pytest.approx(120_000, rel=1e-3)
    assert nodes["y"].not_finite > 0 and "against itself in FP32" in found.reference


def test_minus_infinity_of_a_mask_is_no_overflow(tmp_path: Path) -> None:
    mask = ", ".join(["0", str(np.float16(-np.inf).view(np.uint16))] * 4)
    example = text("a = Add (x, k) y = Softmax (a)", constants=f"float16[8] k = {{{mask}}}")
    _, nodes, rules = measured(example, spread(2).astype(np.float16), tmp_path)
    assert not {"fp16-overflow", "low-sqnr"} & rules and nodes["a"].not_finite == 0 and nodes["y"].high <= 1


def bundle_graphs(bundle: Path, images: Path) -> dict[str, GraphReport]:
    report = lint(bundle, images=ImageRequest(str(images), split="all", count=4))
    return {graph.file: graph for graph in report.graphs}


def test_a_bundle_is_measured_on_its_own_images(tiny_bundle: Path, tiny_images: Path) -> None:
    graphs = bundle_graphs(tiny_bundle, tiny_images)
    int8 = graphs["model.int8.onnx"].measured
    assert int8 is not None and int8.images == 4
    ratios = {node.node: node.sqnr_db for node in int8.nodes}
    fc1 = ratios["vit.layers.0.mlp.fc1/MatMul"]
    assert fc1 is not None and 15 < fc1 < 60
    half_form = graphs["model.fp16.onnx"].measured
    assert half_form is not None and min(n.sqnr_db for n in half_form.nodes if n.sqnr_db is not None) > 30
    cpu = graphs["model.int8-cpu.onnx"].measured
    assert cpu is not None and "integer operators" in cpu.reference
    assert all(node.sqnr_db is None for node in cpu.nodes) and cpu.nodes


def test_a_graph_of_floats_needs_to_know_how_images_are_prepared(
    tiny_checkpoint: Path, tiny_images: Path, tmp_path: Path
) -> None:
    path = saved(text("y = Relu (x)", "float[n,3,32,32] x", "float[n,3,32,32] y"), tmp_path / "graph.onnx")
    with pytest.raises(InputError, match="how its images are prepared") as caught:
        lint(path, images=ImageRequest(str(tiny_images), "all"))
    assert "--processor" in str(caught.value.hint)
    (graph,) = lint(path, images=ImageRequest(str(tiny_images), "all", 3, str(tiny_checkpoint))).graphs
    assert graph.measured is not None and graph.measured.images == 3
    (relu,) = graph.measured.nodes
    assert relu.low == 0 and 0.5 < relu.high < 3  # normalised by mean and deviation of ImageNet


def test_images_that_do_not_fit_are_refused(tmp_path: Path, tiny_images: Path) -> None:
    path = saved(
        text("f = Cast <to = 1> (x) y = Relu (f)", "uint8[n,8,8,3] x", "float[n,8,8,3] y"), tmp_path / "g.onnx"
    )
    with pytest.raises(InputError, match="takes 1 x 8 x 8 x 3, and an image gives 1 x 36 x 30 x 3"):
        lint(path, images=ImageRequest(str(tiny_images), "all"))
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="can't be read as arrays"):
        lint(path, images=ImageRequest(str(tmp_path / "bad.npy")))
    with pytest.raises(DatasetError):
        lint(path, images=ImageRequest(str(tmp_path / "none"), "all"))


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    path = saved(text("y = Relu (x)", "float[2,4,8] x", "float[2,4,8] y"), tmp_path / "graph.onnx")
    np.save(tmp_path / "values.npy", np.ones((5, 4, 8), np.float32))
    (graph,) = lint(path, images=ImageRequest(str(tmp_path / "values.npy"))).graphs
    assert graph.measured is not None and graph.measured.images == 4
    np.save(tmp_path / "values.npy", np.ones((1, 4, 8), np.float32))
    with pytest.raises(InputError, match="takes 2 images a call"):
        lint(path, images=ImageRequest(str(tmp_path / "values.npy")))


def test_a_graph_that_can_not_be_run_says_so(tmp_path: Path) -> None:
    path = saved(text("y = com.microsoft.NoSuch (x)", **FLOATS), tmp_path / "graph.onnx")
    np.save(tmp_path / "values.npy", spread(1))
    with pytest.raises(ModelError, match="can't be run"):
        lint(path, images=ImageRequest(str(tmp_path / "values.npy")))


def test_several_inputs_are_refused(tmp_path: Path) -> None:
    path = saved(text("y = Add (x, v)", "float[n,4,8] x, float[n,4,8] v", "float[n,4,8] y"), tmp_path / "graph.onnx")
    with pytest.raises(InputError, match="one for images is needed"):
        lint(path, images=ImageRequest(str(tmp_path / "values.npy")))


def test_the_command(cli: Callable[..., Any], tiny_bundle: Path, tiny_images: Path) -> None:
    words = ("lint", tiny_bundle / "model.int8.onnx", "--measure", tiny_images, "--split", "all", "--count", 2)
    done = cli(*words)
    assert "2 images of" in done.stdout and "SQNR dB" in done.stdout and "the noisiest 8 of" in done.stdout
    assert cli(*words, "--json").stdout.count('"sqnr_db"') > 50
    assert onnx.load(tiny_bundle / "model.int8.onnx").graph.node


@pytest.mark.full
def test_ctrl_c_at_any_line_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    np.save(tmp_path / "values.npy", spread(1))
    path, modules = saved(linear(), tmp_path / "graph.onnx"), [running, measuring]

    def run() -> None:
        lint(path, images=ImageRequest(str(tmp_path / "values.npy")))

    lines = lines_of(run, modules)
    assert len(lines) > 50
    for line in lines:
        raised_at(line, run, modules, KeyboardInterrupt())
        assert list(scratch.iterdir()) == [], line
