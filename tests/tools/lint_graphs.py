"""For each rule of lint a graph that has what it names, and one that has not: ONNX text.

python -m tests.tools.lint_graphs    writes what lint says of the first into the pages of docs/lint
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from vitdeploy.compiler.lint.findings import TARGETS, TENSORRT
from vitdeploy.compiler.lint.request import ImageRequest
from vitdeploy.compiler.lint.rules import RULES
from vitdeploy.compiler.lint.run import lint

__all__ = [
    "DOCS",
    "MEASURED",
    "PAIRS",
    "SCALE",
    "Example",
    "attention",
    "example_of",
    "half",
    "heading",
    "int8_attention",
    "linear",
    "overview",
    "projections",
    "saved",
    "spread",
    "text",
]

DOCS = Path(__file__).parents[2] / "docs" / "lint"
Example = str


def half(value: float) -> int:
    """A float16 as ONNX text has it: its bits."""
    return int(np.float16(value).view(np.uint16))


WEIGHTS = f"int8[8,8] w8 = {{{', '.join(['1'] * 64)}}}, float16[8] ws = {{{', '.join([str(half(0.01))] * 8)}}}"
WEIGHTS += f", int8[8] wz = {{{', '.join(['0'] * 8)}}}"
WIDE = f"float16[8,8] wf = {{{', '.join([str(half(0.1))] * 64)}}}"
BIAS = f"float16[8] bias = {{{', '.join([str(half(0.5))] * 8)}}}"
SCALE = f"float16 s = {{{half(0.1)}}}"
SCALES = f"{SCALE}, int8 z = {{0}}"


def text(
    body: str, inputs: str = "float16[n,4,8] x", outputs: str = "float16[n,4,8] y", constants: str = "", opset: int = 20
) -> Example:
    """A graph of those lines."""
    domains = ', "com.microsoft" : 1' if "com.microsoft" in body else ""
    held = f"<{constants}>" if constants else ""
    return f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> g ({inputs}) => ({outputs}) {held} {{ {body} }}'


def linear(
    rest: str = "y = Add (m, bias)",
    *,
    factors: str = "a, b",
    axis: int = 1,
    scales: str = SCALES,
    more: str = "",
    attributes: str = "",
    opset: int = 20,
) -> Example:
    """A Linear in INT8, the rest in FP16, as it should be unless something is said."""
    body = f"""
      q = QuantizeLinear {attributes} (x, s, z)
      a = DequantizeLinear {attributes} (q, s, z)
      b = DequantizeLinear <axis = {axis}> (w8, ws, wz)
      m = MatMul ({factors})
      {rest}"""
    return text(body, constants=", ".join(filter(None, [scales, WEIGHTS, BIAS, more])), opset=opset)


def attention(
    middle: str,
    queries: str = "u = Mul (q, c)",
    constants: str = f"float16 c = {{{half(0.25)}}}",
    size: int = 16,
    kind: str = "float16",
) -> Example:
    """softmax(Q K^T) V with heads of `size` channels; `middle` leads from the scores t to the probabilities p."""
    inputs = f"{kind}[n,2,4,{size}] q, {kind}[n,2,{size},4] k, {kind}[n,2,4,{size}] v"
    return text(f"{queries} t = MatMul (u, k) {middle} y = MatMul (p, v)", inputs, f"{kind}[n,2,4,{size}] y", constants)


def int8_attention(probabilities: str) -> Example:
    """Q and K quantised; `probabilities` makes pd of p."""
    body = f"""
      q8 = QuantizeLinear (q, s, z) qd = DequantizeLinear (q8, s, z)
      k8 = QuantizeLinear (k, s, z) kd = DequantizeLinear (k8, s, z)
      v8 = QuantizeLinear (v, s, z) vd = DequantizeLinear (v8, s, z)
      t = MatMul (qd, kd) p = Softmax (t) {probabilities}"""
    inputs = "float16[n,2,4,16] q, float16[n,2,16,4] k, float16[n,2,4,16] v"
    return text(body, inputs, "float16[n,2,4,16] y", SCALES)


def projections(names: str, rest: str = "", wide: int = 3, size: int = 8, tokens: int = 4) -> Example:
    """Attention with one head, whose `names` are the `wide` parts of one INT8 product; `rest` makes q, k or v."""
    width = wide * size
    constants = [
        SCALES,
        f"int8[{size},{width}] w8 = {{{', '.join(['1'] * size * width)}}}",
        f"float16[{width}] ws = {{{', '.join([str(half(0.01))] * width)}}}",
        f"int8[{width}] wz = {{{', '.join(['0'] * width)}}}",
        f"float16[{width}] bias = {{{', '.join([str(half(0.5))] * width)}}}",
        f"int64[4] parts = {{0, 0, 1, {size}}}, int64[3] whole = {{0, 0, {size}}}",
    ]
    body = f"""
      x8 = QuantizeLinear (x, s, z) xd = DequantizeLinear (x8, s, z)
      wd = DequantizeLinear <axis = 1> (w8, ws, wz)
      m = MatMul (xd, wd) a = Add (m, bias) {names} = Split <axis = -1, num_outputs = {wide}> (a) {rest}
      q4 = Reshape (q, parts) k4 = Reshape (k, parts) v4 = Reshape (v, parts)
      qt = Transpose <perm = [0, 2, 1, 3]> (q4) kt = Transpose <perm = [0, 2, 3, 1]> (k4)
      vt = Transpose <perm = [0, 2, 1, 3]> (v4)
      t = MatMul (qt, kt) p = Softmax (t) o = MatMul (p, vt)
      ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (ot, whole)"""
    kind = f"float16[n,{tokens},{size}]"
    return text(body, f"{kind} x", f"{kind} y", ", ".join(constants))


NORM = "float e = {1e-6}, float two = {2}, float[8] g = {1, 1, 1, 1, 1, 1, 1, 1}"
DECOMPOSED = """
      a = ReduceMean <axes = [-1]> (x) d = Sub (x, a) d2 = Pow (d, two) v = ReduceMean <axes = [-1]> (d2)
      ve = Add (v, e) r = Sqrt (ve) h = Div (d, r) y = Mul (h, g)"""
BRANCHES = """
      y = If (c) <then_branch = t () => (float16[n,4,8] a) { a = Relu (x) },
                  else_branch = f () => (float16[n,4,8] b) { b = Neg (x) }>"""
FLOATS = {"inputs": "float[n,4,8] x", "outputs": "float[n,4,8] y"}

PAIRS: dict[str, tuple[Example, Example]] = {
    "control-flow": (
        text(BRANCHES, "float16[n,4,8] x, bool c"),
        text("a = Relu (x) b = Neg (x) y = Where (c, a, b)", "float16[n,4,8] x, bool c"),
    ),
    "fp32-remainder": (
        linear("f = Cast <to = 1> (m) r = Relu (f) h = Cast <to = 10> (r) y = Add (h, bias)"),
        linear("r = Relu (m) y = Add (r, bias)"),
    ),
    "one-sided-residual": (linear("y = Add (a, m)"), linear("y = Add (x, m)")),
    "quantized-residual": (
        linear("m8 = QuantizeLinear (m, s, z) md = DequantizeLinear (m8, s, z) y = Add (a, md)"),
        linear("y = Add (x, m)"),
    ),
    "one-sided-product": (linear(factors="x, b"), linear()),
    "asymmetric-qdq": (linear(scales=f"{SCALE}, int8 z = {{3}}"), linear()),
    "quantized-bias": (
        linear(
            "c = DequantizeLinear (b32, bs) y = Add (m, c)",
            more=f"int32[8] b32 = {{1, 1, 1, 1, 1, 1, 1, 1}}, float16 bs = {{{half(0.001)}}}",
        ),
        linear(),
    ),
    "scale-type": (linear(scales="float s = {0.1}, int8 z = {0}", opset=23), linear(opset=23)),
    "per-channel-activation": (
        linear(
            attributes="<axis = 2>",
            scales=f"float16[8] s = {{{', '.join([str(half(0.1))] * 8)}}}, int8[8] z = {{{', '.join(['0'] * 8)}}}",
        ),
        linear(),
    ),
    "weight-axis": (linear(axis=0), linear()),
    "qdq-without-product": (
        linear("m8 = QuantizeLinear (m, s, z) md = DequantizeLinear (m8, s, z) y = Softmax (md)"),
        linear("y = Softmax (m)"),
    ),
    "int8-attention": (
        int8_attention("y = MatMul (p, vd)"),
        int8_attention("p8 = QuantizeLinear (p, s, z) pd = DequantizeLinear (p8, s, z) y = MatMul (pd, vd)"),
    ),
    "too-little-int8": (
        linear(
            "\n".join(f"f{i + 1} = MatMul (f{i}, wf)" for i in range(10)).replace("(f0", "(m") + " y = Add (f10, bias)",
            more=WIDE,
        ),
        linear(),
    ),
    "integer-operators": (
        text(
            "a, s, z = DynamicQuantizeLinear (x) m = MatMulInteger (a, w8, z) f = Cast <to = 1> (m) y = Mul (f, s)",
            constants=f"int8[8,8] w8 = {{{', '.join(['1'] * 64)}}}",
            **FLOATS,
        ),
        linear(),
    ),
    "decomposed-layernorm": (
        text(DECOMPOSED, constants=NORM, opset=13, **FLOATS),
        text("y = LayerNormalization <epsilon = 1e-6> (x, g)", constants=NORM, opset=17, **FLOATS),
    ),
    "fp16-weight": (
        text("y = Sub (x, far)", constants="float far = {1e9}", **FLOATS),
        text("y = Sub (x, far)", constants="float far = {10000}", **FLOATS),
    ),
    "unfused-attention": (
        attention("d = Div (t, c) p = Softmax (d)", queries="u = Identity (q)"),
        attention("p = Softmax (t)"),
    ),
    "merged-qkv": (projections("q, k, v"), projections("u, k, v", "q = Mul (u, s)")),
    "antialiased-resize": (
        text(
            'y = Resize <antialias = 1, mode = "linear"> (x, , , sizes)',
            "float[1,3,16,16] x",
            "float[1,3,8,8] y",
            "int64[4] sizes = {1, 3, 8, 8}",
        ),
        text(
            'y = Resize <mode = "linear"> (x, , , sizes)',
            "float[1,3,16,16] x",
            "float[1,3,8,8] y",
            "int64[4] sizes = {1, 3, 8, 8}",
        ),
    ),
    "data-dependent-shape": (
        text(
            "m = ReduceMax (x) k = Cast <to = 7> (m) o = Reshape (k, one) y = Expand (x, o)",
            constants="int64[1] one = {1}",
        ),
        text("k = Shape (x) y = Reshape (x, k)"),
    ),
    "opset": (text("y = Identity (x)", opset=21), text("y = Identity (x)", opset=20)),
    "unknown-operator": (
        text("y = com.microsoft.QuickGelu (x)"),
        text("y = Gelu (x)"),
    ),
    "unknown-type": (
        text("t = Transpose <perm = [0, 3, 1, 2]> (x) y = Cast <to = 1> (t)", "uint8[n,8,8,3] x", "float[n,3,8,8] y"),
        text("f = Cast <to = 1> (x) y = Transpose <perm = [0, 3, 1, 2]> (f)", "uint8[n,8,8,3] x", "float[n,3,8,8] y"),
    ),
    "float64": (
        text("d = Cast <to = 11> (x) m = Mul (d, k) y = Cast <to = 1> (m)", constants="double k = {0.5}", **FLOATS),
        text("y = Mul (x, k)", constants="float k = {0.5}", **FLOATS),
    ),
    "fp32-only": (
        text("y = MatMul (x, w)", constants=f"float[8,8] w = {{{', '.join(['0.1'] * 64)}}}", **FLOATS),
        text("y = MatMul (x, wf)", constants=WIDE),
    ),
    "products-left-out": (linear("f = MatMul (m, wf) y = Add (f, bias)", more=WIDE), linear()),
    "no-preprocessing": (
        text("y = Relu (x)", "float[n,3,8,8] x", "float[n,3,8,8] y"),
        text("f = Cast <to = 1> (x) y = Relu (f)", "uint8[n,8,8,3] x", "float[n,8,8,3] y"),
    ),
}


def saved(example: Example, path: Path) -> Path:
    """The file of a graph; nodes without a name are named after what they make."""
    model = onnx.parser.parse_model(example)
    for node in model.graph.node:
        node.name = node.name or f"layer/{node.op_type}_{node.output[0]}"
    onnx.save(model, path)
    return path


MEASURED: dict[str, tuple[Example, float]] = {
    "fp16-overflow": (text(DECOMPOSED, constants=NORM, opset=13, **FLOATS), 20_000),
    "fp16-range": (text("y = Mul (x, k)", constants="float k = {1}", **FLOATS), 20_000),
    "low-sqnr": (linear("y = Relu (m)", scales=f"float16 s = {{{half(0.9)}}}, int8 z = {{0}}"), 1),
}
"""Of the rules on what a graph gave: a graph, and the size of the values that show it."""


def spread(largest: float) -> np.ndarray:
    """Two images (4, 8) between -largest and +largest, which both are there."""
    return np.linspace(-largest, largest, 64, dtype=np.float32).reshape(2, 4, 8)


def heading(rule: str) -> str:
    """The line under the title of a rule's page."""
    row = RULES[rule]
    targets = ", ".join(TARGETS[name].title for name in row.targets)
    return f"`{rule}` · {row.severity} · {targets}" + (" · refused by `build-engine`" if row.refused else "")


def example_of(rule: str, folder: Path) -> str:
    """What lint says of the first graph, by that rule alone."""
    images = None
    if rule in MEASURED:
        example, largest = MEASURED[rule]
        np.save(folder / "values.npy", spread(largest))
        images = ImageRequest(str(folder / "values.npy"))
    else:
        example = PAIRS[rule][0]
    report = lint(saved(example, folder / "example.onnx"), targets=TENSORRT, images=images)
    (finding,) = (found for found in report.graphs[0].findings if found.rule.id == rule)
    lines = [f"{finding.rule.severity} {finding.rule.title} ({rule})", *(f"  {each.text}" for each in finding.places)]
    return "\n".join(lines)


def overview() -> str:
    """The table of all rules."""
    rows = [
        f"| [{row.id}]({row.id}.md) | {row.severity} | {row.title} | {'yes' if row.refused else ''} |"
        for row in RULES.values()
    ]
    head = ["| rule | severity | what is wrong | refused by `build-engine` |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def main() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for rule in RULES:
            page = DOCS / f"{rule}.md"
            before, _, rest = page.read_text(encoding="utf-8").partition("```text\n")
            said = example_of(rule, Path(folder))
            page.write_text(f"{before}```text\n{said}\n```{rest.partition('```')[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
