"""The INT8 form for CPUs of a plain ViT, read from its ONNX graph: the constants alone, for kernels.

From `pixel_values` to `logits` a plain ViT is

    x = patches(pixels) + positions, other tokens in front
    for each layer:    x += output(softmax(Q K^T) V),  Q, K, V = qkv(norm(x));    x += fc2(gelu(fc1(norm(x))))
    logits = classifier(norm(x)[0])

with the products of a layer between a quantised activation and a quantised weight (`MatMulIntegerToFloat`), or in
float32 where they were left out of INT8 (`MatMul`); attention's two products in float32, or both between quantised
values. Each node of the graph has to be the one that stands there in this, and none may be left over; the first that is
not is named. The last layer may work on all tokens or on the first one alone: what is read of it is the same.

A graph may come from a stranger. What is read means what ONNX says it means, with its defaults, or the graph is
refused. Its numbers are finite and not so large that sums of them could overflow, its sizes fit C's int, and no sum of
INT8 products leaves 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vitdeploy.core.errors import ModelError, VitdeployError, require
from vitdeploy.core.specs import PIXEL_VALUES

__all__ = ["Factors", "Layer", "Norm", "PlainVit", "Product", "read_plain_vit"]

_Array = npt.NDArray[Any]
_OPSET = 17  # the first with LayerNormalization; what Softmax and Pad take has not changed since 18
_CONTRIBUTED = "com.microsoft"
_MOST_INPUTS = 1 << 16  # of a product: 255 * 128 times as many fits 32 bits
_MOST_VALUES = 1 << 31  # of one buffer of the kernels
_PADDING = 64  # more, at most, that a width gets to be whole tiles
_LEAST, _MOST = 1.2e-38, 1e3  # a scale: its inverse is a normal number, and zero points cancel in float32
_LARGEST = 1e18  # of a constant: the product of two is finite
_VIEWED: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    3: np.dtype(np.int8),
}  # of ONNX's types those that are read where they lie
_DEFAULTS: dict[str, Any] = {
    "alpha": 1.0,
    "beta": 1.0,
    "epsilon": 1e-5,
    "axis": -1,
    "group": 1,
    "approximate": b"none",
    "mode": b"constant",
    "dilations": [1, 1],
    "strides": [1, 1],
    "pads": [0, 0, 0, 0],
    "stash_type": 1,
}


@dataclass(frozen=True)
class Product:
    """(x - zero) scale W weight_scale + bias, x uint8; `weight` int8 (inputs, outputs), the vectors (outputs,).

    One that is `exact` is x W + bias in float32, with a weight of float32 and scales of 1.
    """

    scale: float
    zero: int
    weight: _Array
    weight_scale: _Array
    bias: _Array

    @property
    def exact(self) -> bool:
        return bool(self.weight.dtype == np.float32)


@dataclass(frozen=True)
class Norm:
    """LayerNorm's vectors, (width,)."""

    weight: _Array
    bias: _Array
    epsilon: float


@dataclass(frozen=True)
class Factors:
    """What attention's products multiply in INT8: (byte - zero) scale, keys and values signed and without a zero."""

    query: float
    key: float
    share: float  # of the softmax
    value: float
    query_zero: int
    share_zero: int


@dataclass(frozen=True)
class Layer:
    """One layer of the encoder: LayerNorm before attention and before the MLP, and the products.

    `factors`: of attention's two products; None: they are in float32.
    """

    before: Norm
    after: Norm
    query: Product
    key: Product
    value: Product
    output: Product
    fc1: Product
    fc2: Product
    factors: Factors | None = None


@dataclass(frozen=True)
class PlainVit:
    """The constants of a ViT whose first token is classified.

    `kernel` is (width, channels, side, side), `positions` (tokens, width) with those of the tokens in front of the
    patches' first and the tokens themselves in them, `classifier` (classes, width).
    """

    heads: int
    image: tuple[int, int, int]  # channels, height, width
    kernel: _Array
    kernel_bias: _Array
    positions: _Array
    layers: tuple[Layer, ...]
    norm: Norm
    classifier: _Array
    classifier_bias: _Array


def read_plain_vit(model: Any, large: Mapping[str, memoryview] | None = None) -> PlainVit:
    """Read an `onnx.ModelProto`.

    Args:
        model: the graph.
        large: the raw data of those initializers that it was parsed without, by name.

    Raises:
        ModelError: it is not a plain ViT in INT8; the message names the first node that does not fit.
    """
    reader = _Reader(model, large or {})
    try:
        return reader.read()
    except VitdeployError:
        raise
    except Exception as error:  # of a broken graph, such as a node without inputs
        raise _refused(f"{reader.where}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class _Step:
    """How a factor of attention is quantised: (byte - zero) scale."""

    scale: float
    zero: int
    signed: bool


@dataclass(frozen=True)
class _Branch:
    """One of queries, keys and values: its product, its factor of attention by name, and whether that is transposed."""

    product: Product
    factor: str
    step: _Step | None
    turned: bool
    heads: int
    rows: int  # tokens that it has


class _Reader:
    def __init__(self, model: Any, large: Mapping[str, memoryview]) -> None:
        self._large = large
        helper = require("onnx.numpy_helper", extra="native")
        self._number = helper.to_array
        self._schema = require("onnx.defs", extra="native").get_schema
        graph = model.graph
        self.where = "the graph"  # the node that is looked at
        self._opsets = {entry.domain.replace("ai.onnx", ""): entry.version for entry in model.opset_import}
        self._functions = {function.name for function in model.functions}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._readers: dict[str, list[Any]] = {}
        self._makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        self._graph = graph
        self._seen: set[str] = set()  # outputs of the nodes that were read
        self._tokens = 0
        self._cut = False  # whether a layer worked on the first token alone
        self._steps: dict[str, list[str]] = {}  # names of scale and zero point by the quantised activation

    def read(self) -> PlainVit:
        self._well_formed()
        image, conv, positions, x = self._embeddings()
        layers, heads = [], set()
        while len(self._readers.get(x, [])) > 1:
            layer, count, x = self._layer(x)
            layers.append(layer)
            heads.add(count)
        if len(heads) != 1:
            self._refuse(self._graph.node[-1], "it has no layers, or layers of different numbers of heads")
        last = self._next(x, "LayerNormalization")
        row = self._next(last.output[0], "Gather", axis=1)
        index = self._constant(row, 1)
        self._expect(row, index.dtype.kind == "i" and index.shape == () and index == 0, "it takes another token")
        classifier = self._next(row.output[0], "Gemm", transB=1, alpha=1.0, beta=1.0, transA=0)
        self._expect(classifier, list(classifier.output) == [self._graph.output[0].name], "it is not the last")
        self._nothing_left()
        form = PlainVit(
            heads.pop(), image, *conv, positions, tuple(layers), self._norm(last), *self._with_bias(classifier)
        )
        _check_shapes(form)
        return form

    def _well_formed(self) -> None:
        """Every name is made once, before it is read: what follows relies on it."""
        if not self._graph.node or len(self._graph.output) != 1:
            raise _refused("it has no nodes, or another number of outputs than one")
        if self._opsets.get("", 0) < _OPSET:
            raise _refused(f"its operators are of opset {self._opsets.get('', 0)}, before {_OPSET}")
        made = {*self._stored, *(value.name for value in self._graph.input), ""}
        if len(self._stored) != len(self._graph.initializer):
            raise _refused("two constants have the same name")
        for node in self._graph.node:
            self.where = _name(node)
            outputs = [name for name in node.output if name]
            fits = outputs and made.isdisjoint(outputs) and len({*outputs}) == len(outputs)
            self._expect(node, bool(fits), "it makes nothing, or what another node makes")
            self._expect(node, made.issuperset(node.input), "it reads what no node before it makes")
            made.update(outputs)

    def _embeddings(self) -> tuple[tuple[int, int, int], tuple[_Array, _Array], _Array, str]:
        conv = self._next(PIXEL_VALUES, "Conv", group=1, dilations=[1, 1], pads=[0, 0, 0, 0])
        kernel, bias = self._with_bias(conv)
        shaped = self._attribute(conv, "kernel_shape") in (0, list(kernel.shape[2:]))
        shaped = shaped and self._attribute(conv, "auto_pad") in (0, b"NOTSET", b"VALID")
        self._expect(conv, kernel.ndim == 4 and kernel.size > 0 and shaped, "it is not a convolution of images")
        self._expect(conv, self._attribute(conv, "strides") == list(kernel.shape[2:]), "its patches overlap")
        lines = self._next(conv.output[0], "Reshape")
        rows = self._next(lines.output[0], "Transpose", perm=[0, 2, 1])
        pad = self._next(rows.output[0], "Pad", mode=b"constant")
        front = self._sizes(pad, 1)
        empty = not self._given(pad, 3) and not (self._given(pad, 2) and self._floats(pad, 2).any())
        room = len(front) == 6 and front == [0, front[1], 0, 0, 0, 0] and front[1] > 0
        self._expect(pad, empty and room, "it makes no room for tokens")
        add = self._next(pad.output[0], "Add")
        positions = self._floats(add, 1 - list(add.input).index(pad.output[0]))
        values = [value for value in (*self._graph.input, *self._graph.value_info) if value.name == PIXEL_VALUES]
        sizes = list(values[0].type.tensor_type.shape.dim) if values else []
        stated = len(sizes) == 4 and all(size.dim_value > 0 for size in sizes[1:])
        self._expect(conv, stated, "the size of its pixel values is not stated")
        fed = any(value.name == PIXEL_VALUES for value in self._graph.input)
        self._expect(conv, not (fed and sizes[0].HasField("dim_value")), "it takes a fixed number of images")
        channels, height, width = (int(size.dim_value) for size in sizes[1:])
        patches = (height // kernel.shape[2]) * (width // kernel.shape[3])
        whole = height % kernel.shape[2] == 0 == width % kernel.shape[3] and channels == kernel.shape[1]
        fits = positions.shape == (1, front[1] + patches, len(kernel)) and whole and patches
        self._expect(add, bool(fits), "its positions are not those of the patches")
        self._reshapes(lines, (len(kernel), patches))
        self._tokens = front[1] + patches
        return (channels, height, width), (kernel, bias), positions[0], add.output[0]

    def _layer(self, x: str) -> tuple[Layer, int, str]:
        """A layer, its number of heads, and the name of its output."""
        before = self._next(x, "LayerNormalization", among=("Add", "Slice"))
        self._expect(before, not self._cut, "a layer follows one that works on the first token alone")
        branches = [self._branch(node) for node in self._readers[self._rounded(before.output[0])]]
        key = next((branch for branch in branches if branch.turned), None)
        if key is None or len(branches) != 3:
            self._refuse(before, "it does not feed queries, keys and values")
        scores = self._next(key.factor, "MatMul")
        others = [branch for branch in branches if branch is not key]
        query, value = others if others[0].factor == scores.input[0] else others[::-1]
        self._expect(scores, list(scores.input) == [query.factor, key.factor], "it does not multiply queries with keys")
        widths = {branch.product.weight.shape[-1] for branch in branches}
        alike = len(widths) == 1 and key.rows == value.rows == self._tokens
        self._expect(scores, alike, "its queries, keys and values do not fit each other")
        shares = self._next(scores.output[0], "Softmax", axis=-1)
        share, share_step = self._stepped(shares.output[0])
        context = self._next(share, "MatMul")
        self._expect(context, list(context.input) == [share, value.factor], "it does not weigh the values")
        factors = self._factors(scores, query.step, key.step, share_step, value.step)
        rows = self._next(self._next(context.output[0], "Transpose", perm=[0, 2, 1, 3]).output[0], "Reshape")
        self._reshapes(rows, (query.rows, *widths))
        output, made = self._product(self._rounded(rows.output[0]))
        added = self._residual(made, x)
        alike = len({(branch.heads, branch.product.exact) for branch in branches}) == 1
        self._expect(added, alike, "its queries, keys and values are not alike")
        after = self._next(added.output[0], "LayerNormalization", among=("Add",))
        fc1, made = self._product(self._rounded(after.output[0]))
        gelu = self._next(made, "Gelu", approximate=b"none")
        fc2, made = self._product(self._rounded(gelu.output[0]))
        last = self._residual(made, added.output[0])
        products = (query.product, key.product, value.product, output, fc1, fc2)
        return Layer(self._norm(before), self._norm(after), *products, factors), query.heads, str(last.output[0])

    def _stepped(self, value: str) -> tuple[str, _Step | None]:
        """A factor of attention behind its quantisation and back, and how it is quantised; or as it is, and None."""
        if not any(node.op_type == "QuantizeLinear" for node in self._readers.get(value, [])):
            return value, None
        there = self._next(value, "QuantizeLinear")
        back = self._next(there.output[0], "DequantizeLinear")
        plain = not there.attribute and not back.attribute and len(there.input) == 3
        self._expect(there, plain and list(back.input[1:]) == list(there.input[1:]), "it is not undone as it is done")
        self._floats(there, 1)
        scale, zero = self._one(there, 1), self._one(there, 2)
        self._expect(there, _LEAST <= scale <= _MOST, f"its scale is {scale}")
        self._expect(there, zero.dtype in (np.uint8, np.int8), f"its zero point is {zero.dtype}")
        return str(back.output[0]), _Step(float(scale), int(zero), bool(zero.dtype == np.int8))

    def _factors(self, scores: Any, *steps: _Step | None) -> Factors | None:
        """Of queries, keys, the softmax and values, all or none."""
        query, key, share, value = steps
        if query is None or key is None or share is None or value is None:
            self._expect(scores, not any(steps), "a part of attention is in INT8")
            return None
        signs = [step.signed for step in (query, key, share, value)]
        fits = signs == [False, True, False, True] and key.zero == 0 == value.zero
        self._expect(scores, fits, "its factors are not of unsigned bytes by signed ones without a zero")
        return Factors(query.scale, key.scale, share.scale, value.scale, query.zero, share.zero)

    def _branch(self, node: Any) -> _Branch:
        """From what reads the activation to a factor of attention."""
        rows = self._tokens
        if node.op_type == "Slice":  # of the last layer's queries
            rows = 1
            product, made = self._product(self._first_row(node))
        else:
            product, made = self._product_at(node)
        parted = self._next(made, "Reshape")
        shape = self._sizes(parted, 1)
        heads = shape[2] if len(shape) == 4 else 0
        width = product.weight.shape[-1]
        self._expect(parted, heads > 0 and width > 0 and width % heads == 0, "it does not part the heads")
        self._reshapes(parted, (rows, heads, width // heads))
        factor = self._next(parted.output[0], "Transpose")
        order = self._attribute(factor, "perm")
        self._expect(factor, order in ([0, 2, 1, 3], [0, 2, 3, 1]), "it is not a factor of attention")
        turned = order == [0, 2, 3, 1]
        return _Branch(product, *self._stepped(factor.output[0]), turned, heads, rows)

    def _rounded(self, value: str) -> str:
        """A value behind its quantisation, or the value where it has none."""
        readers = self._readers.get(value, [])
        if not any(node.op_type == "QuantizeLinear" for node in readers):
            return value
        node = self._next(value, "QuantizeLinear")
        self._expect(node, not node.attribute or self._attribute(node, "block_size") == 0, "it has blocks")
        self._steps[node.output[0]] = list(node.input[1:])
        return str(node.output[0])

    def _product(self, value: str) -> tuple[Product, str]:
        """The only product that reads a value, and its output."""
        readers = self._readers.get(value, [])
        if len(readers) != 1:
            self._unread(value, "product")
        return self._product_at(readers[0])

    def _product_at(self, node: Any) -> tuple[Product, str]:
        if node.op_type != "MatMul":
            self._take(node, "MatMulIntegerToFloat")
            return self._numbers(node), str(node.output[0])
        self._take(node, "MatMul")
        weight = self._floats(node, 1)
        add = self._next(node.output[0], "Add")
        bias = self._floats(add, 1 - list(add.input).index(node.output[0]))
        self._expect(node, weight.ndim == 2, "it is not a product with a weight")
        self._expect(add, bias.shape == weight.shape[1:], "it adds no bias")
        return Product(1.0, 0, weight, np.ones(weight.shape[1], np.float32), bias), str(add.output[0])

    def _residual(self, made: str, x: str) -> Any:
        """The addition of a product's output to `x`, or to the first row of `x`."""
        add = self._next(made, "Add")
        (other,) = [name for name in add.input if name != made] or [""]
        if other != x:
            rows = [node for node in self._readers[x] if node.op_type == "Slice" and node.output[0] == other]
            self._expect(add, len(rows) == 1, "it does not add what came in")
            self._first_row(rows[0])
        return add

    def _first_row(self, node: Any) -> str:
        self._take(node, "Slice")
        bounds = [self._sizes(node, place) for place in (1, 2, 3)]
        plain = not self._given(node, 4) or self._sizes(node, 4) == [1]
        self._expect(node, bounds == [[0], [1], [1]] and plain, "it takes more than the first token")
        self._cut = True
        self._steps[node.output[0]] = self._steps.get(node.input[0], [])
        return str(node.output[0])

    def _next(self, value: str, operation: str, *, among: tuple[str, ...] = (), **attributes: Any) -> Any:
        """The only node that reads a value (beside nodes of the operations `among`), which has to be that operation."""
        readers = self._readers.get(value, [])
        found = [node for node in readers if node.op_type == operation]
        if len(found) != 1 or any(node.op_type not in among for node in readers if node is not found[0]):
            wrong = next((node for node in readers if node.op_type not in (operation, *among)), None)
            if wrong is None:
                self._unread(value, operation)
            self._refuse(wrong, f"{operation} was expected behind {value}")
        self._expect(found[0], found[0].output[0] not in self._seen, "it is there twice")
        self._take(found[0], operation)
        for name, wanted in attributes.items():
            self._expect(found[0], self._attribute(found[0], name) == wanted, f"its {name} is not {wanted!r}")
        return found[0]

    def _take(self, node: Any, operation: str) -> None:
        self.where = _name(node)
        self._expect(node, node.op_type == operation and len(node.output) == 1, f"{operation} was expected")
        home = _CONTRIBUTED if operation == "MatMulIntegerToFloat" else ""
        own = operation not in self._functions and node.domain.replace("ai.onnx", "") == home and home in self._opsets
        self._expect(node, own, f"it is not the {operation} of {home or 'ONNX'}")
        known = () if home else self._schema(operation, self._opsets[""]).attributes
        names = [attribute.name for attribute in node.attribute]
        fits = len({*names}) == len(names) and {*names} <= {*known}
        self._expect(node, fits, "it has an attribute twice, or one that ONNX does not know")
        self._seen.add(node.output[0])

    def _expect(self, node: Any, holds: bool, otherwise: str) -> None:
        if not holds:
            self._refuse(node, otherwise)

    def _refuse(self, node: Any, why: str) -> NoReturn:
        raise _refused(f"{_name(node)}: {why}")

    def _unread(self, value: str, operation: str) -> NoReturn:
        why = f"{value} is not read by one {operation}"
        raise _refused(f"{_name(self._makers[value])}: {why}" if value in self._makers else why)

    def _nothing_left(self) -> None:
        """Every node that depends on the pixel values has to be one that was read."""
        behind = {PIXEL_VALUES}
        for node in self._graph.node:  # in the order of computation
            if not behind.isdisjoint(node.input):
                self._expect(node, node.output[0] in self._seen, "it has no place in a plain ViT")
                behind.update(node.output)

    def _attribute(self, node: Any, name: str) -> Any:
        for attribute in node.attribute:
            if attribute.name == name:
                value = {1: attribute.f, 2: attribute.i, 3: attribute.s}.get(attribute.type)
                return list(attribute.ints) if value is None else value
        return _DEFAULTS.get(name, 0)

    def _given(self, node: Any, place: int) -> bool:
        return place < len(node.input) and bool(node.input[place])

    def _reshapes(self, node: Any, shape: tuple[int, ...]) -> None:
        """Whether a Reshape makes (images, *shape), where one size may be -1 and, as ONNX has it, 0 what was there."""
        asked = self._sizes(node, 1)
        self._expect(node, len(asked) == 1 + len(shape), f"it makes {len(asked)} dimensions")
        zero = self._attribute(node, "allowzero")
        self._expect(node, zero in (0, 1), f"its allowzero is {zero}")
        kept = zero == 0 and asked[0] == 0
        # the images, or all but them, may be what is left
        named = asked[1:] == list(shape) and (asked[0] == -1 or kept)
        left = kept and asked.count(-1) == 1 and all(a in (b, -1) for a, b in zip(asked[1:], shape, strict=True))
        self._expect(node, named or left, f"it does not make (images, {', '.join(map(str, shape))})")

    def _constant(self, node: Any, place: int) -> _Array:
        name = node.input[place] if place < len(node.input) else ""
        if name not in self._stored:
            self._refuse(node, f"its input {place} is not a constant")
        self.where = f"{_name(node)}, its input {place}"
        tensor = self._stored[name]
        outside = tensor.external_data or tensor.data_location
        self._expect(node, not outside, f"its input {place} is in another file")
        self._expect(node, min(tensor.dims, default=0) >= 0, f"its input {place} has a negative size")
        array = self._array(tensor)
        finite = array.dtype.kind != "f" or bool((np.abs(array) <= _LARGEST).all())  # not where it is not a number
        self._expect(node, finite, f"its input {place} is not finite, or too large to compute with")
        return array

    def _array(self, tensor: Any) -> _Array:
        raw, kind = self._large.get(tensor.name), _VIEWED.get(tensor.data_type)
        if raw is None:
            return np.asarray(self._number(tensor))
        if kind is None:
            whole = type(tensor)()
            whole.CopyFrom(tensor)
            whole.raw_data = bytes(raw)
            return np.asarray(self._number(whole))
        return np.frombuffer(raw, kind).reshape(tuple(tensor.dims))

    def _sizes(self, node: Any, place: int) -> list[int]:
        array = self._constant(node, place)
        self._expect(node, array.dtype == np.int64 and array.ndim == 1, f"its input {place} is not a list of sizes")
        return [int(size) for size in array]

    def _floats(self, node: Any, place: int) -> _Array:
        array = self._constant(node, place)
        self._expect(node, array.dtype == np.float32, f"its input {place} is {array.dtype}, not float32")
        return array

    def _one(self, node: Any, place: int) -> Any:
        """A number, which ONNX Runtime takes as a vector of one too."""
        array = self._constant(node, place)
        self._expect(node, array.size == 1 and array.ndim < 2, f"its input {place} is not one number")
        return array.reshape(())[()]

    def _with_bias(self, node: Any) -> tuple[_Array, _Array]:
        """Weights (outputs, ...) of a Conv or Gemm, and their biases, zeros where it has none."""
        weight = self._floats(node, 1)
        return weight, self._floats(node, 2) if self._given(node, 2) else np.zeros(len(weight), np.float32)

    def _norm(self, node: Any) -> Norm:
        self._expect(node, self._attribute(node, "axis") == -1, "it is not over the channels")
        self._expect(node, self._attribute(node, "stash_type") == 1, "it is not computed in float32")
        epsilon = float(self._attribute(node, "epsilon"))
        self._expect(node, 0 <= epsilon < _LARGEST, f"its epsilon is {epsilon}")
        return Norm(self._floats(node, 1), self._floats(node, 2), epsilon)

    def _numbers(self, node: Any) -> Product:
        """The constants of a product; a weight's zero point has to be zero."""
        weight, weight_scale, scale, zero = (
            self._constant(node, 1),
            self._floats(node, 3),
            self._one(node, 2),
            self._one(node, 4),
        )
        middle = self._constant(node, 5) if self._given(node, 5) else np.zeros(1, np.int8)
        symmetric = not middle.any() and middle.dtype == np.int8 and middle.size in (1, weight.shape[-1])
        fits = weight.dtype == np.int8 and weight.ndim == 2 and zero.dtype == np.uint8 and scale.dtype == np.float32
        self._expect(node, fits and symmetric, "it is not of a uint8 activation and a symmetric int8 weight")
        bias = self._floats(node, 6) if self._given(node, 6) else np.zeros(weight.shape[1], np.float32)
        self._expect(node, _LEAST <= scale <= _MOST, f"its scale is {scale}")
        self._expect(node, 0 < len(weight) <= _MOST_INPUTS, f"it has {len(weight)} inputs")
        largest = np.abs(weight_scale.astype(np.float64)) * scale * (255 * 128 * len(weight))
        self._expect(node, bool((largest < _LARGEST).all()), "its scales are too large")
        alike = self._steps.get(node.input[0]) == [node.input[2], node.input[4]]
        self._expect(node, alike, "it has another scale or zero point than its activation")
        return Product(float(scale), int(zero), weight, weight_scale, bias)


def _check_shapes(form: PlainVit) -> None:
    """Every size that the kernels rely on: they read memory without asking again."""
    width, first = len(form.kernel), form.layers[0]
    inner, hidden, classes = first.query.weight.shape[-1], first.fc1.weight.shape[-1], len(form.classifier)
    if inner % form.heads:
        raise _refused(f"{inner} is not a multiple of its {form.heads} heads")
    vectors = {"kernel_bias": width, "classifier_bias": classes}
    wrong = [name for name, size in vectors.items() if getattr(form, name).shape != (size,)]
    wrong += ["classifier"] * (form.classifier.shape != (classes, width)) + ["kernel"] * (form.kernel.ndim != 4)
    norms = [form.norm, *(norm for layer in form.layers for norm in (layer.before, layer.after))]
    wrong += ["LayerNorm"] * any({norm.weight.shape, norm.bias.shape} != {(width,)} for norm in norms)
    sizes = dict.fromkeys(("query", "key", "value"), (width, inner))
    sizes |= {"output": (inner, width), "fc1": (width, hidden), "fc2": (hidden, width)}
    for number, layer in enumerate(form.layers):
        for name, size in sizes.items():
            product: Product = getattr(layer, name)
            if product.weight.shape != size or {product.weight_scale.shape, product.bias.shape} != {size[1:]}:
                wrong.append(f"{name} of layer {number}")
        if len({(each.scale, each.zero) for each in (layer.query, layer.key, layer.value)}) > 1:
            wrong.append(f"scales of layer {number}")
    if wrong:
        raise _refused(f"{', '.join(wrong)} do not fit the rest")
    tokens, patch, head = len(form.positions), form.kernel[0].size, inner // form.heads
    buffers = [(tokens, max(width, hidden, 4 * form.heads * (head + _PADDING))), (tokens, patch), (width, patch)]
    buffers += [(classes, width), (tokens, tokens), (width, max(3 * inner, hidden))]
    if min(width, inner, hidden, classes) < 1 or any(
        (rows + _PADDING) * (columns + _PADDING) >= _MOST_VALUES for rows, columns in buffers
    ):
        raise _refused("it has a size of 0, or buffers of 2^31 values")


def _name(node: Any) -> str:
    return f"node {node.name or (*node.output, '?')[0]!r} ({node.op_type})"


def _refused(why: str) -> ModelError:
    return ModelError(
        f"the kernels run plain ViTs in INT8 only, and this is not one: {why}",
        hint="backend='onnxruntime' and 'openvino' run every form",
    )
