"""Each rule sees a graph that has what it names, and is silent on one that has not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.lint_graphs import MEASURED, PAIRS, SCALE, attention, half, linear, saved, text
from vitdeploy.compiler.lint.findings import CPU, TENSORRT
from vitdeploy.compiler.lint.rule import Finding
from vitdeploy.compiler.lint.rules import RULES
from vitdeploy.compiler.lint.run import lint


def findings(example: str, folder: Path, targets: tuple[str, ...] = TENSORRT) -> dict[str, Finding]:
    (graph,) = lint(saved(example, folder / "graph.onnx"), targets=targets).graphs
    return {finding.rule.id: finding for finding in graph.findings}


def test_every_rule_has_its_graphs() -> None:
    assert set(PAIRS) | set(MEASURED) == set(RULES)


@pytest.mark.parametrize("rule", PAIRS)
def test_a_rule_sees_what_it_names(rule: str, tmp_path: Path) -> None:
    found = findings(PAIRS[rule][0], tmp_path)
    assert rule in found, sorted(found)
    assert all(place.text and not place.text.startswith("{") for place in found[rule].places)


@pytest.mark.parametrize("rule", PAIRS)
def test_a_rule_is_silent_where_there_is_nothing(rule: str, tmp_path: Path) -> None:
    assert rule not in findings(PAIRS[rule][1], tmp_path)


def test_a_linear_as_it_should_be_has_no_finding(tmp_path: Path) -> None:
    assert not findings(linear(), tmp_path) and not findings(attention("p = Softmax (t)"), tmp_path)


@pytest.mark.parametrize("scales", [f"{SCALE}, uint8 z = {{128}}", f"{SCALE}, uint8 z = {{0}}"])
def test_unsigned_q_dq_is_seen(scales: str, tmp_path: Path) -> None:
    (finding,) = (
        found for rule, found in findings(linear(scales=scales), tmp_path).items() if rule == "asymmetric-qdq"
    )
    assert "of type uint8" in finding.places[0].text


@pytest.mark.parametrize(
    ("middle", "reason", "targets"),
    [
        ("d = Div (t, c) p = Softmax (d)", "behind Q K^T", ("tensorrt-10.3", "tensorrt-11")),
        ("d = Tanh (t) p = Softmax (d)", "Tanh_d stands between", ()),
        ("p = Softmax <axis = 1> (t)", "runs along axis 1", ()),
        ("p = Softmax (t) more = Relu (p)", "the probabilities are read elsewhere too", ()),
        ("e = Softmax (t) i = IsNaN (e) p = Where (i, c, e)", "here are 16 and 4", ("tensorrt-rtx",)),
        ("b = Greater (t, c) d = Where (b, c, t) p = Softmax (d)", "Where_d is a Where", ("tensorrt-rtx",)),
    ],
)
def test_the_reason_why_attention_is_not_fused_is_named(
    middle: str, reason: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    places = findings(attention(middle, size=16), tmp_path)["unfused-attention"].places
    (found,) = (place for place in places if reason in place.text)
    assert "Softmax" in found.node and found.targets == targets and len(places) == 1


@pytest.mark.parametrize(("size", "count"), [(8, 1), (9, 0), (256, 0), (257, 1)])
def test_heads_that_have_no_kernel_are_named(size: int, count: int, tmp_path: Path) -> None:
    finding = findings(attention("p = Softmax (t)", size=size), tmp_path).get("unfused-attention")
    places = () if finding is None else finding.places
    assert len(places) == count and all(place.targets == ("tensorrt-rtx",) for place in places)


@pytest.mark.parametrize(
    ("middle", "size"),
    [
        ("f = Cast <to = 1> (t) e = Softmax (f) p = Cast <to = 10> (e)", 16),
        ("e = Softmax (t) i = IsNaN (e) p = Where (i, c, e)", 32),
    ],
)
def test_what_is_fused_all_the_same_is_no_reason(middle: str, size: int, tmp_path: Path) -> None:
    assert "unfused-attention" not in findings(attention(middle, size=size), tmp_path)


def test_an_additive_mask_is_no_reason(tmp_path: Path) -> None:
    constants = f"float16 c = {{{half(0.25)}}}, float16[1,1,4,4] mask = {{{', '.join(['0'] * 16)}}}"
    assert "unfused-attention" not in findings(
        attention("d = Add (t, mask) p = Softmax (d)", constants=constants, size=16), tmp_path
    )


def test_an_operator_of_a_later_version_is_said_of_the_targets_that_lack_it(tmp_path: Path) -> None:
    inputs = "float16[n,2,4,8] q, float16[n,2,4,8] k, float16[n,2,4,8] v"
    found = findings(text("y = Attention (q, k, v)", inputs, "float16[n,2,4,8] y", opset=23), tmp_path)
    (place,) = found["unknown-operator"].places
    assert place.targets == ("tensorrt-10.3",) and "TensorRT 10.3 does not know" in place.text
    assert found["opset"].places[0].targets == ("tensorrt-10.3",)


def test_a_target_is_asked_alone(tmp_path: Path) -> None:
    example = text("y = Identity (x)", opset=21)
    assert "opset" in findings(example, tmp_path, ("tensorrt-10.3",))
    assert "opset" not in findings(example, tmp_path, ("tensorrt-11", "tensorrt-rtx"))
    assert "opset" not in findings(text("y = Identity (x)", opset=9), tmp_path)
    assert [place.targets for place in findings(text("y = Identity (x)", opset=8), tmp_path)["opset"].places] == [
        ("tensorrt-10.3",),
        ("tensorrt-11",),
    ]


def test_rules_of_tensorrt_are_not_asked_of_a_graph_for_cpus(tmp_path: Path) -> None:
    example = linear(scales=f"{SCALE}, uint8 z = {{128}}")
    assert not findings(example, tmp_path, (CPU,))


def test_a_shape_that_is_asked_of_a_quantised_value_is_no_use_of_it(tmp_path: Path) -> None:
    assert "qdq-without-product" not in findings(linear("k = Shape (a) y = Reshape (m, k)"), tmp_path)
    assert "qdq-without-product" in findings(linear("k = Relu (a) y = Mul (m, k)"), tmp_path)


def test_branches_are_looked_into(tmp_path: Path) -> None:
    branches = """
      y = If (c) <then_branch = t () => (float16[n,4,8] a) { i = NonZero (x) j = Cast <to = 10> (i) s = ReduceSum (j)
                                                              a = Add (x, s) },
                  else_branch = f () => (float16[n,4,8] b) { b = Neg (x) }>"""
    found = findings(text(branches, "float16[n,4,8] x, bool c"), tmp_path)
    assert {"control-flow", "data-dependent-shape"} <= set(found)


def test_rows_as_the_data_say_are_seen(tmp_path: Path) -> None:
    found = findings(text("y = NonZero (x)", outputs="int64[3,m] y"), tmp_path)
    assert "as many rows as its data say" in found["data-dependent-shape"].places[0].text


def test_a_shape_that_is_given_as_one_is_no_data(tmp_path: Path) -> None:
    given = text("y = Reshape (x, k)", "float16[n,4,8] x, int64[3] k")
    assert "data-dependent-shape" not in findings(given, tmp_path)
