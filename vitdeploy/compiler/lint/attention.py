"""Rules on attention, softmax(Q K^T) V: what keeps TensorRT from computing it in one kernel."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitdeploy.compiler.lint.findings import RTX, Place
from vitdeploy.compiler.lint.graph import PRODUCTS, QDQ, LintGraph, is_weight, label, place, scalar
from vitdeploy.compiler.passes.values import producer
from vitdeploy.compiler.quantization.arithmetic import INT8
from vitdeploy.compiler.quantization.attention import LONGEST
from vitdeploy.core.operators import MOVES, REORDERS

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["int8_attention", "merged_qkv", "unfused"]

_BETWEEN = ("Add", "Sub", "Mul", "Div", "Cast", "Where", "IsNaN", "Dropout", *QDQ, *REORDERS)
_DEEPEST = 6
_DOCUMENTED = ("tensorrt-10.3", "tensorrt-11")
_SEEN = (RTX,)
_HEADS = (9, 256)  # channels of a head that TensorRT-RTX 1.7 has fused kernels for, in FP16
_HEADS_WITH_WHERE = (32, 64)  # and where a Where is inside
_TOKENS_WITH_WHERE = 512


def int8_attention(graph: LintGraph) -> Iterator[Place]:
    """Attention in INT8 takes both of its products, and no more tokens than the fused kernel does."""
    inside, title = set(graph.inside), graph.numbers.title
    for node in graph.inside:
        for use in node.outputs[0].uses():
            if use.node.op_type != "Softmax":
                continue
            tokens = (node.outputs[0].shape or [0])[-1]
            if graph.numbers is INT8 and isinstance(tokens, int) and tokens > LONGEST:
                yield place(node, f"{{}}: there is no fused INT8 attention for {tokens} tokens (at most {LONGEST})")
            mixing = _products_behind(use.node)
            if not mixing or not mixing <= inside:
                yield place(node, f"{{}} is in {title} and the product behind its softmax is not")
        scores = _scores_before(node)
        if scores is not None and scores not in inside:
            yield place(node, f"{{}} is in {title} and the product before its softmax is not")


def _scores_before(mixing: ir.Node) -> ir.Node | None:
    """The product whose softmax a product reads through Q/DQ."""
    value = mixing.inputs[0]
    for op_type in ("DequantizeLinear", "QuantizeLinear", "Softmax", "MatMul"):
        node = producer(value, op_type)
        if node is None:
            return None
        value = node.inputs[0]
    return node


def _products_behind(softmax: ir.Node) -> set[ir.Node]:
    pending, found = [use.node for use in softmax.outputs[0].uses()], set()
    while pending:
        node = pending.pop()
        if node.op_type in PRODUCTS:
            found.add(node)
        elif node.op_type in QDQ:
            pending += [use.node for use in node.outputs[0].uses()]
    return found


@dataclass(frozen=True)
class _Attention:
    """Two products of activations around a softmax, and what stands between: `before` it and `behind` it."""

    scores: ir.Node
    before: tuple[ir.Node, ...]
    softmax: ir.Node
    behind: tuple[ir.Node, ...]
    mixing: ir.Node


def unfused(graph: LintGraph) -> Iterator[Place]:
    """Attention with something in it that a fused kernel has no place for.

    NVIDIA documents that Q or K has to be scaled in front of the product ("Fused Attention", TensorRT 10 and 11); the
    rest is what the plans of TensorRT-RTX 1.7 for compute capability 8.9 show. That fuses scores also where they are
    scaled or cast behind the product.
    """
    for softmax in graph.softmaxes:
        found = _attention(softmax)
        for reason, targets in () if found is None else _reasons(found, graph):
            yield place(softmax, f"{{}}: {reason}", targets)


def _reasons(found: _Attention, graph: LintGraph) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Why it is not fused, and by whom; () for all."""
    for node in (*found.before, *found.behind):
        if node.op_type not in _BETWEEN:
            yield f"{label(node)} stands between the products and the softmax", ()
    scaling = next((node for node in found.before if _scales(node)), None)
    if scaling is not None:
        yield f"{label(scaling)} scales the scores behind Q K^T, not Q in front of it", _DOCUMENTED
    kind = found.scores.outputs[0].dtype
    if kind is not None and kind.name == "FLOAT" and (graph.has_half or graph.is_quantized):
        yield "its products compute in FP32", ()
    value, axis = found.softmax.inputs[0], found.softmax.attributes.get("axis")
    rank = None if value is None or value.shape is None else len(value.shape)
    if axis is not None and axis.as_int() not in (-1, None if rank is None else rank - 1):
        yield f"the softmax runs along axis {axis.as_int()}", ()
    if found.softmax.outputs[0].is_graph_output() or len(_readers(found.softmax)) > 1:
        yield "the probabilities are read elsewhere too, so they have to be stored", ()
    if graph.numbers is INT8 and {found.scores, found.mixing} <= set(graph.inside):
        yield "it is in INT8, and kernels are for FP16, BF16 and FP8", _SEEN
    yield from ((reason, _SEEN) for reason in _sizes(found))


def merged_qkv(graph: LintGraph) -> Iterator[Place]:
    """Q, K and V out of one quantised product, with no more than its bias and moves of numbers in between.

    TensorRT-RTX 1.7 takes such a product apart and computes the three in FP16, as its plans for compute capability 8.9
    show. Two of the three by one product, or one that is computed with behind it, stay as they are.
    """
    inside = set(graph.inside)
    for softmax in graph.softmaxes:
        found = _attention(softmax)
        if found is None:
            continue
        shares = (found.behind or (softmax,))[-1].outputs
        values = [value for value in found.mixing.inputs if value not in shares]
        made = {_projection(value) for value in (*found.scores.inputs, *values)}
        product = next(iter(made))
        if product is not None and len(made) == 1 and product in inside:
            title = graph.numbers.title
            yield place(
                product, f"{{}} in {title} gives Q, K and V at once: they are computed by three products in FP16"
            )


def _projection(value: ir.Value | None) -> ir.Node | None:
    """The product with a weight that a factor of attention comes from, by way of a bias, Q/DQ and moves."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in PRODUCTS:
            return node if is_weight(node.inputs[1]) else None
        if node.op_type in (*MOVES, *QDQ):
            value = node.inputs[0]
        elif node.op_type == "Add" and any(is_weight(each) for each in node.inputs):
            value = next(each for each in node.inputs if not is_weight(each))
        else:
            return None
    return None


def _sizes(found: _Attention) -> Iterator[str]:
    """What the kernels of TensorRT-RTX don't take."""
    size, tokens = _last(found.scores.inputs[0]), _last(found.scores.outputs[0])
    if size is not None and not _HEADS[0] <= size <= _HEADS[1]:
        yield f"a head has {size} channels, and kernels take {_HEADS[0]} to {_HEADS[1]}"
    chosen = next((node for node in (*found.before, *found.behind) if node.op_type == "Where"), None)
    if chosen is None or size is None or tokens is None:
        return
    if size not in _HEADS_WITH_WHERE or tokens > _TOKENS_WITH_WHERE:
        heads = " or ".join(map(str, _HEADS_WITH_WHERE))
        yield (
            f"{label(chosen)} is a Where, which kernels take for heads of {heads} channels and {_TOKENS_WITH_WHERE}"
            f" tokens at most; here are {size} and {tokens}"
        )


def _last(value: ir.Value | None) -> int | None:
    """The size of a value's last axis, where it is known."""
    size = None if value is None or not value.shape else value.shape[-1]
    return size if isinstance(size, int) else None


def _scales(node: ir.Node) -> bool:
    return node.op_type in ("Mul", "Div") and any(scalar(value) is not None for value in node.inputs)


def _readers(softmax: ir.Node) -> set[ir.Node]:
    """Who reads the probabilities; a test for NaN and what it chooses are one."""
    found = {use.node for use in softmax.outputs[0].uses()}
    return {node for node in found if node.op_type != "IsNaN"}


def _attention(softmax: ir.Node) -> _Attention | None:
    before, behind = _path(softmax), _path_behind(softmax)
    if before is None or behind is None:
        return None
    return _Attention(before[0], tuple(before[1:-1]), softmax, tuple(behind[:-1]), behind[-1])


def _path(softmax: ir.Node) -> list[ir.Node] | None:
    """From the nearest product of two activations to a softmax, both included; None where there is none."""
    pending = deque([[softmax]])
    while pending:
        path = pending.popleft()
        for value in path[0].inputs:
            node = None if value is None else value.producer()
            if node is None or node.op_type in ("Softmax", "LayerNormalization", "Conv"):
                continue
            if node.op_type == "MatMul" and not any(is_weight(each) for each in node.inputs):
                return [node, *path]
            if len(path) < _DEEPEST:
                pending.append([node, *path])
    return None


def _path_behind(softmax: ir.Node) -> list[ir.Node] | None:
    """From a softmax to the product of activations that reads it: the nodes between, then the product."""
    pending = deque([use.node] for use in softmax.outputs[0].uses())
    while pending:
        path = pending.popleft()
        node = path[-1]
        if node.op_type == "MatMul" and not any(is_weight(value) for value in node.inputs):
            return path
        if len(path) < _DEEPEST:
            pending.extend([*path, use.node] for value in node.outputs for use in value.uses())
    return None
