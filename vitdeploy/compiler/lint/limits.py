"""Rules on what TensorRT's parser reads, and on what makes a call wait for the host.

Operators and types are those of docs/operators.md in onnx-tensorrt, of parsers 10.0 to 10.3 and 10.15.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitdeploy.compiler.lint.findings import TARGETS, TENSORRT, Place
from vitdeploy.compiler.lint.graph import QDQ, LintGraph, place
from vitdeploy.compiler.lint.qdq import INTEGER

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "antialiased_resize",
    "control_flow",
    "data_dependent",
    "float64",
    "no_preprocessing",
    "operators",
    "opset",
    "types",
]

_ONNX = ("", "ai.onnx")
_UNKNOWN = frozenset(
    (
        *("AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Col2Im"),
        *("CenterCropPad", "Compress", "ConcatFromSequence", "DFT", "Det", "ImageDecoder", "MaxRoiPool", "MaxUnpool"),
        *("MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement"),
        *("OptionalHasElement", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
        *("SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence"),
        *("StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Unique"),
    )
)
_SINCE = {  # the first parser that knows an operator
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
    "BlackmanWindow": (10, 15),
    "HammingWindow": (10, 15),
    "HannWindow": (10, 15),
    "STFT": (10, 15),
}
_PLUGINS = ("trt", "trt.plugins")
_TYPES = frozenset(
    (
        *("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT4E2M1"),
        *("INT64", "INT32", "INT8", "INT4", "UINT8", "BOOL", "UNDEFINED"),
    )
)
_ROWS_BY_DATA = ("NonZero", "NonMaxSuppression", "Unique", "Compress")
_SHAPES = {  # operators whose result has a shape that these inputs hold
    "Reshape": (1,),
    "Expand": (1,),
    "ConstantOfShape": (0,),
    "Tile": (1,),
    "Range": (0, 1, 2),
    "Slice": (1, 2),
    "Resize": (2, 3),
    "Pad": (1,),
    "TopK": (1,),
    "OneHot": (1,),
}


def control_flow(graph: LintGraph) -> Iterator[Place]:
    """An If, Loop or Scan: a copy to the host and a jump in the middle of each call, no CUDA graph."""
    for node in graph.every:
        if node.domain in _ONNX and node.op_type in ("If", "Loop", "Scan"):
            yield place(node, f"control flow at {{}} ({node.op_type})")


def antialiased_resize(graph: LintGraph) -> Iterator[Place]:
    """A Resize with antialias=1."""
    for node in graph.every:
        attribute = node.attributes.get("antialias")
        if node.op_type == "Resize" and attribute is not None and attribute.as_int():
            yield place(node, "{} resizes with antialias=1")


def opset(graph: LintGraph) -> Iterator[Place]:
    """An opset that a target's parser is not documented to read."""
    version = next((graph.model.opset_imports[name] for name in _ONNX if name in graph.model.opset_imports), None)
    for name in TENSORRT:
        target = TARGETS[name]
        first, last = target.opsets or (0, version or 0)
        if version is not None and not first <= version <= last:
            yield Place("", f"opset {version}; {target.title} is documented to read {first} to {last}", targets=(name,))


def operators(graph: LintGraph) -> Iterator[Place]:
    """Operators that a target's parser does not know."""
    for node in graph.every:
        if node.domain not in _ONNX:
            if node.domain not in _PLUGINS and node.op_type not in INTEGER.get(node.domain, ()):
                yield place(node, f"{{}} is a {node.op_type} of {node.domain}, for which TensorRT needs a plugin")
        elif node.op_type in _UNKNOWN:
            yield place(node, f"{{}} is a {node.op_type}, which no TensorRT knows")
        elif node.op_type in _SINCE:
            since = _SINCE[node.op_type]
            lacking = tuple(name for name in TENSORRT if (TARGETS[name].parser or since) < since)
            if lacking:
                titles = ", ".join(TARGETS[name].title for name in lacking)
                yield place(node, f"{{}} is a {node.op_type}, which {titles} does not know", lacking)


def types(graph: LintGraph) -> Iterator[Place]:
    """Types that TensorRT does not have, and uint8 where it takes none: on inputs and outputs, and behind a Cast."""
    for node in graph.every:
        kinds = {value.dtype.name for value in node.outputs if value.dtype is not None} - _TYPES
        if kinds:
            yield place(node, f"{{}} gives {', '.join(sorted(kinds)).lower()}, which TensorRT has not")
        elif node.op_type not in ("Cast", "Shape", "Size", *QDQ) and any(
            _is_uint8(value) for value in (*node.inputs, *node.outputs)
        ):
            yield place(node, "{} computes on uint8; TensorRT's first step on such an input has to be a Cast")


def float64(graph: LintGraph) -> Iterator[Place]:
    """Nodes that compute in FP64, which TensorRT takes for FP32."""
    for node in graph.every:
        if any(value.dtype is not None and value.dtype.name == "DOUBLE" for value in node.outputs):
            yield place(node, "{} computes in FP64")


def _is_uint8(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.name == "UINT8"


def data_dependent(graph: LintGraph) -> Iterator[Place]:
    """Shapes that are known only when the values are: the host has to wait for them."""
    known: dict[ir.Value, bool] = {}
    for node in graph.every:
        if node.domain not in _ONNX:
            continue
        if node.op_type in _ROWS_BY_DATA:
            yield place(node, f"{{}} is a {node.op_type}: it gives as many rows as its data say")
            continue
        places = _SHAPES.get(node.op_type, ())
        if any(_from_data(node.inputs[index], known) for index in places if index < len(node.inputs)):
            yield place(node, f"{{}} ({node.op_type}) takes its shape from computed values")


def _from_data(value: ir.Value | None, known: dict[ir.Value, bool]) -> bool:
    """Whether a shape follows from what a graph is given, not from its shapes or from numbers given as a shape."""
    if value is None or value.const_value is not None:
        return False
    pending, seen = [value], {value}
    while pending:
        each = pending.pop()
        node = each.producer()
        if known.get(each):
            known[value] = True
            return True
        if each.const_value is not None or known.get(each) is False or (node is not None and _is_shape(node)):
            continue
        if node is None:
            kind = "" if each.dtype is None else each.dtype.name
            if each.is_graph_input() and not (kind in ("INT64", "INT32") and len(each.shape or ()) <= 1):
                known[value] = True
                return True
            continue
        for before in node.inputs:
            if before is not None and before not in seen:
                seen.add(before)
                pending.append(before)
    known[value] = False
    return False


def _is_shape(node: ir.Node) -> bool:
    return node.domain in _ONNX and node.op_type in ("Shape", "Size", "Constant")


def no_preprocessing(graph: LintGraph) -> Iterator[Place]:
    """An input that looks like an image and holds floats: resizing and normalisation are left to each application."""
    for value in graph.model.graph.inputs:
        shape, kind = value.shape, value.dtype
        if shape is None or kind is None or len(shape) != 4 or value.is_initializer():
            continue
        channels = [size for size in (shape[1], shape[3]) if isinstance(size, int)]
        is_image = bool({1, 3} & {*channels}) or not channels  # all sizes are left open, as Optimum does
        if kind.name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE") and is_image:
            sizes = " x ".join(str(size) for size in shape)
            yield Place("", f"the input {value.name} takes {kind.name.lower()} ({sizes}), not the pixels of an image")
