"""The table of rules: `vitdeploy lint` asks them all, `build-engine` those that it refuses, of the same graph.

A new rule is a row here, a check beside its siblings, a pair of graphs in tests/tools/lint_graphs.py and a page in
docs/lint.
"""

from __future__ import annotations

from collections.abc import Iterable

from vitdeploy.compiler.lint import attention, limits, precision, qdq, values
from vitdeploy.compiler.lint.findings import CPU, RTX, TENSORRT, Place
from vitdeploy.compiler.lint.graph import LintGraph
from vitdeploy.compiler.lint.rule import Finding, Rule

__all__ = ["RULES", "apply"]

_EVERYWHERE = (*TENSORRT, CPU)

_ROWS = (
    Rule(
        "control-flow",
        "warning",
        "If, Loop or Scan in the graph",
        "Export for one branch, or compute both and choose with Where; vitdeploy export writes graphs without.",
        TENSORRT,
        limits.control_flow,
        refused=True,
    ),
    Rule(
        "fp32-remainder",
        "warning",
        "Part of the model is left in FP32",
        "Convert the rest to FP16, with the scales of its Q/DQ, and keep FP32 only where a value needs it.",
        TENSORRT,
        precision.fp32_remainder,
        refused=True,
    ),
    Rule(
        "one-sided-residual",
        "warning",
        "Q/DQ on one branch of a residual addition",
        "Take the Q/DQ away from the addition: quantise what the products read, not the residual stream.",
        TENSORRT,
        qdq.one_sided_residual,
        refused=True,
    ),
    Rule(
        "quantized-residual",
        "warning",
        "The residual stream is quantised",
        "Leave the additions out of quantisation, and quantise only the inputs and weights of the Linears.",
        _EVERYWHERE,
        qdq.quantized_residual,
        refused=True,
    ),
    Rule(
        "one-sided-product",
        "warning",
        "A product with one factor quantised",
        "Quantise both factors, or neither.",
        TENSORRT,
        qdq.one_sided_product,
        refused=True,
    ),
    Rule(
        "asymmetric-qdq",
        "error",
        "Q/DQ with a zero point, or of uint8",
        "Calibrate symmetrically: int8 for activations and weights, all zero points 0.",
        TENSORRT,
        qdq.asymmetric,
        refused=True,
    ),
    Rule(
        "quantized-bias",
        "error",
        "Biases in int32 behind a DequantizeLinear",
        "Leave biases in float (onnxruntime.quantization: extra_options QuantizeBias=False).",
        TENSORRT,
        qdq.quantized_bias,
        refused=True,
    ),
    Rule(
        "scale-type",
        "error",
        "A scale of another type than its data",
        "Give scales the type of the graph around them: FP16 scales in an FP16 graph, which takes opset 19.",
        TENSORRT,
        qdq.scale_type,
        refused=True,
    ),
    Rule(
        "per-channel-activation",
        "warning",
        "An activation with a scale a channel",
        "Calibrate activations per tensor; channels that differ much are for SmoothQuant to level.",
        TENSORRT,
        qdq.per_channel_activation,
        refused=True,
    ),
    Rule(
        "weight-axis",
        "warning",
        "A weight's scales along the wrong axis",
        "One scale an output channel: axis 1 of a MatMul's weight, axis 0 of a convolution's.",
        TENSORRT,
        qdq.weight_axis,
        refused=True,
    ),
    Rule(
        "qdq-without-product",
        "warning",
        "Q/DQ that no product reads",
        "Take it away: Q/DQ belongs in front of MatMul, Gemm and Conv, on the activation and on the weight.",
        TENSORRT,
        qdq.without_product,
        refused=True,
    ),
    Rule(
        "int8-attention",
        "warning",
        "Attention that is quantised in part, or too long",
        "Quantise Q, K, V and the softmax's output together, or leave both products in FP16.",
        TENSORRT,
        attention.int8_attention,
        refused=True,
    ),
    Rule(
        "too-little-int8",
        "warning",
        "Hardly any of the model is quantised",
        "Quantise the Linears of every block, or stay with FP16.",
        TENSORRT,
        qdq.too_little,
        refused=True,
    ),
    Rule(
        "integer-operators",
        "error",
        "INT8 by integer operators in place of Q/DQ",
        "Quantise statically and in QDQ format (onnxruntime.quantization: quantize_static, QuantFormat.QDQ).",
        TENSORRT,
        qdq.integer_operators,
    ),
    Rule(
        "decomposed-layernorm",
        "warning",
        "LayerNorm in pieces, whose square overflows in FP16",
        "Export with opset 17 or later, so that it is one LayerNormalization node, or keep these nodes in FP32.",
        TENSORRT,
        precision.decomposed_layernorm,
    ),
    Rule(
        "fp16-weight",
        "warning",
        "A constant that FP16 has no number for",
        "Keep its readers in FP32; of a mask, write -inf, or a number within FP16 such as -10000.",
        TENSORRT,
        precision.fp16_weight,
    ),
    Rule(
        "unfused-attention",
        "warning",
        "Attention that TensorRT can't fuse",
        "Scale Q in front of Q K^T, and leave MatMul, Softmax and MatMul in half precision, with no more than a mask.",
        TENSORRT,
        attention.unfused,
    ),
    Rule(
        "merged-qkv",
        "warning",
        "Q, K and V by one quantised product",
        "Leave Q, K and V as three products (vitdeploy export without --merge-qkv): it joins those of INT8 by itself.",
        (RTX,),
        attention.merged_qkv,
    ),
    Rule(
        "antialiased-resize",
        "error",
        "A Resize with antialiasing",
        "Write the filter as two matrix products, as vitdeploy export does, or resize in front of the graph.",
        TENSORRT,
        limits.antialiased_resize,
    ),
    Rule(
        "data-dependent-shape",
        "warning",
        "Shapes that depend on data",
        "Fix the sizes: export for one input size, and fill up or mask where rows are chosen.",
        TENSORRT,
        limits.data_dependent,
    ),
    Rule(
        "opset",
        "warning",
        "An opset that the target is not documented to read",
        "Export with one that it reads: 19 and 20 suit every TensorRT from 10.3 on.",
        TENSORRT,
        limits.opset,
    ),
    Rule(
        "unknown-operator",
        "error",
        "An operator that TensorRT does not know",
        "Export with a lower opset, which writes it in pieces, or without the optimisation that fused it.",
        TENSORRT,
        limits.operators,
    ),
    Rule(
        "unknown-type",
        "error",
        "A type that TensorRT does not have",
        "Cast to float32, float16, int32 or int64; of pixels in uint8, right behind the input.",
        TENSORRT,
        limits.types,
    ),
    Rule(
        "float64",
        "warning",
        "FP64 in the graph",
        "Cast constants and buffers to float32 before the export; TensorRT computes FP64 as FP32.",
        TENSORRT,
        limits.float64,
    ),
    Rule(
        "fp32-only",
        "info",
        "Everything computes in FP32",
        "Make FP16 in the graph (vitdeploy build-engine --fp16): TensorRT 11 and RTX have no flag for it.",
        TENSORRT,
        precision.fp32_only,
    ),
    Rule(
        "products-left-out",
        "info",
        "Products that are not quantised",
        "Quantise them too where the accuracy allows it; attention's and the first and last are often left.",
        _EVERYWHERE,
        qdq.left_out,
    ),
    Rule(
        "no-preprocessing",
        "info",
        "Preprocessing is not in the graph",
        "Put resizing and normalisation in the graph (vitdeploy export), or repeat them exactly on each device.",
        _EVERYWHERE,
        limits.no_preprocessing,
    ),
    Rule(
        "fp16-overflow",
        "error",
        "Values beyond FP16",
        "Keep these nodes in FP32 (vitdeploy build-engine --fp16 does), or use BF16.",
        TENSORRT,
        values.fp16_overflow,
    ),
    Rule(
        "fp16-range",
        "warning",
        "Values near the end of FP16",
        "Measure on more images; keep these nodes in FP32 where one passes 65,504.",
        TENSORRT,
        values.fp16_range,
    ),
    Rule(
        "low-sqnr",
        "warning",
        "Layers whose output is a tenth noise or more",
        "Leave the first of them in higher precision (build-engine --max-drop), or calibrate on images of the task.",
        _EVERYWHERE,
        values.low_sqnr,
    ),
)
RULES = {rule.id: rule for rule in _ROWS}
"""By id, in the order in which findings are told: what `build-engine` refuses first."""


def apply(graph: LintGraph, targets: Iterable[str] = TENSORRT, *, refused: bool = False) -> tuple[Finding, ...]:
    """What the rules find in a graph.

    Args:
        targets: names in `TARGETS` that the graph is meant for.
        refused: only what `build-engine` refuses.
    """
    wanted = tuple(dict.fromkeys(targets))
    found = []
    for rule in RULES.values():
        meant = tuple(name for name in wanted if name in rule.targets)
        if not meant or (refused and not rule.refused):
            continue
        places = tuple(dict.fromkeys(each for each in rule.check(graph) if _concerns(each, meant)))
        if places:
            found.append(Finding(rule, places, meant))
    return tuple(found)


def _concerns(place: Place, targets: tuple[str, ...]) -> bool:
    return not place.targets or not set(place.targets).isdisjoint(targets)
