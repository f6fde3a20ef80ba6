"""What lint says against what TensorRT-RTX does: its parser and its plans need no GPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.tools.lint_graphs import PAIRS, attention, int8_attention, projections, saved
from vitdeploy.compiler.lint.rules import RULES
from vitdeploy.compiler.lint.run import lint
from vitdeploy.inspection.plan import read_plan

NAN = "e = Softmax (t) i = IsNaN (e) p = Where (i, c, e)"
QUANTIZED = "p8 = QuantizeLinear (p, s, z) pd = DequantizeLinear (p8, s, z) y = MatMul (pd, vd)"
ERRORS = [rule for rule in PAIRS if RULES[rule].severity == "error"]


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    trt: ModuleType = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    return trt


def is_read(rtx: ModuleType, path: Path) -> bool:
    logger = rtx.Logger(rtx.Logger.INTERNAL_ERROR)
    network = rtx.Builder(logger).create_network(0)
    return bool(rtx.OnnxParser(network, logger).parse_from_file(str(path)))


def built(rtx: ModuleType, path: Path) -> bytes:
    """An engine for compute capability 8.9."""
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    parser = rtx.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path))
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.SM89, 0)
    return bytes(builder.build_serialized_network(network, config))


def test_there_are_errors() -> None:
    assert len(ERRORS) >= 7


@pytest.mark.parametrize("rule", ERRORS)
def test_an_error_is_what_the_parser_refuses(rule: str, rtx: ModuleType, tmp_path: Path) -> None:
    bad, good = (saved(graph.replace("[n,", "[1,"), tmp_path / "graph.onnx") for graph in PAIRS[rule])
    saved(PAIRS[rule][0].replace("[n,", "[1,"), bad)
    assert not is_read(rtx, bad)
    saved(PAIRS[rule][1].replace("[n,", "[1,"), good)
    assert is_read(rtx, good)


@pytest.mark.parametrize(
    ("example", "is_fused"),
    [
        (attention("p = Softmax (t)"), True),
        (attention(NAN, size=64), True),
        (attention("f = Cast <to = 1> (t) e = Softmax (f) p = Cast <to = 10> (e)"), True),
        (attention(NAN, size=48), False),
        (attention("d = Tanh (t) p = Softmax (d)"), False),
        (attention("p = Softmax <axis = 1> (t)"), False),
        (int8_attention(QUANTIZED), False),
        (int8_attention(QUANTIZED).replace("int8 z", "float8e4m3fn z"), True),
        (attention("p = Softmax (t)", size=8), False),
        (attention("p = Softmax (t)", size=264), False),
    ],
    ids=["plain", "NaN", "cast", "NaN of 48", "tanh", "axis", "INT8", "FP8", "small heads", "large heads"],
)
def test_attention_is_fused_as_lint_says(example: str, is_fused: bool, rtx: ModuleType, tmp_path: Path) -> None:
    graph = saved(example.replace("[n,", "[1,").replace(",4,", ",64,").replace(",4]", ",64]"), tmp_path / "graph.onnx")
    (report,) = lint(graph, targets=["tensorrt-rtx"]).graphs
    assert ("unfused-attention" in {finding.rule.id for finding in report.findings}) is not is_fused
    plan = read_plan(built(rtx, graph))
    assert plan is not None and bool(plan.attention) is is_fused


SPLIT = "q, k, v = Split <axis = -1, num_outputs = 3> (a)"
SLICES = "q = Slice (a, at0, at1, last) k = Slice (a, at1, at2, last) v = Slice (a, at2, at3, last)"
ENDS = ", ".join(f"int64[1] at{place} = {{{64 * place}}}" for place in range(4)) + ", int64[1] last = {-1}, "
MERGED = projections("q, k, v", size=64, tokens=64)


@pytest.mark.parametrize(
    ("example", "is_quantised"),
    [
        (MERGED, False),
        (MERGED.replace(SPLIT, SLICES).replace("<float16 s", f"<{ENDS}float16 s"), False),
        (MERGED.replace("a = Add (m, bias)", "").replace("(a)", "(m)"), False),
        (MERGED.replace("int8", "float8e4m3fn"), False),
        (projections("u, k, v", "q = Mul (u, s)", size=64, tokens=64), True),
        (projections("k, v", "q = Neg (x)", wide=2, size=64, tokens=64), True),
        (projections("u, g, h", "q = Relu (u) k = Relu (g) v = Relu (h)", size=64, tokens=64), True),
    ],
    ids=["split", "slices", "no bias", "FP8", "scaled Q", "K and V", "Relu"],
)
def test_a_merged_projection_is_taken_apart_as_lint_says(
    example: str, is_quantised: bool, rtx: ModuleType, tmp_path: Path
) -> None:
    graph = saved(example.replace("[n,", "[1,"), tmp_path / "graph.onnx")
    (report,) = lint(graph, targets=["tensorrt-rtx"]).graphs
    assert ("merged-qkv" in {finding.rule.id for finding in report.findings}) is not is_quantised
    plan = read_plan(built(rtx, graph))
    assert plan is not None and bool({"int8", "fp8"} & set(plan.by_precision)) is is_quantised
