"""The INT8 form for CPUs of a plain ViT, read from its ONNX graph: the constants alone, for kernels.

From `pixel_values` to `logits` a plain ViT is

    x = patches(pixels) + positions, other tokens in front
    for each layer:    x += output(softmax(Q K^T) V),  Q, K, V = qkv(norm(x));    x += fc2(gelu(fc1(norm(x))))
    logits = classifier(norm(x)[0])

with the products of a layer between a quantised activation and a quantised weight (`MatMulIntegerToFloat`), or in
float32 where they were left out of INT8 (`MatMul`). Each node of the graph has to be the one that stands there in this,
and none may be left over; the first that is not is named. The last layer may work on all tokens or on the first one
alone: what is read of it is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import ModelError, require
from vitdeploy.specs import PIXEL_VALUES

__all__ = ["WIDTH_UNIT", "Layer", "Norm", "PlainVit", "Product", "read_plain_vit"]

WIDTH_UNIT = 16  # the kernels' vectors
_Array = npt.NDArray[Any]


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
class Layer:
    """One layer of the encoder: LayerNorm before attention and before the MLP, and the products."""

    before: Norm
    after: Norm
    query: Product
    key: Product
    value: Product
    output: Product
    fc1: Product
    fc2: Product


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


def read_plain_vit(model: Any) -> PlainVit:
    """Read an `onnx.ModelProto`.

    Raises:
        ModelError: it is none in INT8; the message names the first node that does not fit.
    """
    return _Reader(model).read()


@dataclass(frozen=True)
class _Branch:
    """One of queries, keys and values: its product, its factor of attention by name, and whether that is transposed."""

    product: Product
    factor: str
    turned: bool
    heads: int


class _Reader:
    def __init__(self, model: Any) -> None:
        helper = require("onnx.numpy_helper", extra="native")
        self._number = helper.to_array
        graph = model.graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        self._graph = graph
        self._seen: set[str] = set()  # outputs of the nodes that were read
        self._cut = False  # whether a layer worked on the first token alone
        self._steps: dict[str, list[str]] = {}  # names of scale and zero point by the quantised activation

    def read(self) -> PlainVit:
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
        self._expect(row, self._constant(row, 1).tolist() in (0, [0]), "it takes another token than the first")
        classifier = self._next(row.output[0], "Gemm", transB=1, alpha=1.0, beta=1.0, transA=0)
        self._expect(classifier, list(classifier.output) == [self._graph.output[0].name], "it is not the last")
        self._nothing_left()
        form = PlainVit(
            heads.pop(), image, *conv, positions, tuple(layers), self._norm(last), *self._with_bias(classifier)
        )
        _check_shapes(form)
        return form

    def _embeddings(self) -> tuple[tuple[int, int, int], tuple[_Array, _Array], _Array, str]:
        conv = self._next(PIXEL_VALUES, "Conv", group=1, dilations=[1, 1], pads=[0, 0, 0, 0])
        kernel, bias = self._with_bias(conv)
        self._expect(conv, self._attribute(conv, "strides") == list(kernel.shape[2:]), "its patches overlap")
        rows = self._next(self._next(conv.output[0], "Reshape").output[0], "Transpose", perm=[0, 2, 1])
        pad = self._next(rows.output[0], "Pad", mode=b"constant")
        front = [int(size) for size in self._constant(pad, 1)]
        empty = len(pad.input) < 3 or not self._constant(pad, 2).any()
        self._expect(pad, empty and front == [0, front[1], 0, 0, 0, 0] and front[1] > 0, "it makes no room for tokens")
        add = self._next(pad.output[0], "Add")
        positions = self._constant(add, 1 - list(add.input).index(pad.output[0]))
        values = [value for value in (*self._graph.input, *self._graph.value_info) if value.name == PIXEL_VALUES]
        sizes = values[0].type.tensor_type.shape.dim if values else ()
        _, channels, height, width = [int(size.dim_value) for size in sizes] or [0] * 4
        patches = (height // kernel.shape[2]) * (width // kernel.shape[3])
        whole = height % kernel.shape[2] == 0 == width % kernel.shape[3] and channels == kernel.shape[1]
        fits = positions.shape == (1, front[1] + patches, len(kernel)) and whole and patches
        self._expect(add, bool(fits), "its positions are not those of the patches")
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
        shares = self._next(scores.output[0], "Softmax", axis=-1)
        context = self._next(shares.output[0], "MatMul")
        self._expect(context, list(context.input) == [shares.output[0], value.factor], "it does not weigh the values")
        rows = self._next(self._next(context.output[0], "Transpose", perm=[0, 2, 1, 3]).output[0], "Reshape")
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
        return Layer(self._norm(before), self._norm(after), *products), query.heads, str(last.output[0])

    def _branch(self, node: Any) -> _Branch:
        """From what reads the activation to a factor of attention."""
        if node.op_type == "Slice":  # of the last layer's queries
            product, made = self._product(self._first_row(node))
        else:
            product, made = self._product_at(node)
        parted = self._next(made, "Reshape")
        shape = [int(size) for size in self._constant(parted, 1)]
        self._expect(parted, len(shape) == 4 and shape[2] > 0, "it does not part the heads")
        factor = self._next(parted.output[0], "Transpose")
        order = self._attribute(factor, "perm")
        self._expect(factor, order in ([0, 2, 1, 3], [0, 2, 3, 1]), "it is no factor of attention")
        return _Branch(product, factor.output[0], order == [0, 2, 3, 1], shape[2])

    def _rounded(self, value: str) -> str:
        """A value behind its quantisation, or the value where it has none."""
        readers = self._readers.get(value, [])
        if not any(node.op_type == "QuantizeLinear" for node in readers):
            return value
        node = self._next(value, "QuantizeLinear")
        self._steps[node.output[0]] = list(node.input[1:])
        return str(node.output[0])

    def _product(self, value: str) -> tuple[Product, str]:
        """The only product that reads a value, and its output."""
        readers = self._readers.get(value, [])
        if len(readers) != 1:
            raise _refused(f"{value} is not read by one product")
        return self._product_at(readers[0])

    def _product_at(self, node: Any) -> tuple[Product, str]:
        if node.op_type != "MatMul":
            self._take(node, "MatMulIntegerToFloat")
            return self._numbers(node), str(node.output[0])
        self._take(node, "MatMul")
        weight = self._constant(node, 1)
        add = self._next(node.output[0], "Add")
        bias = self._constant(add, 1 - list(add.input).index(node.output[0]))
        self._expect(node, weight.ndim == 2 and weight.dtype == np.float32, "it is no product with a weight of float32")
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
        bounds = [self._constant(node, place).tolist() for place in (1, 2, 3)]
        self._expect(node, bounds == [[0], [1], [1]], "it takes more than the first token")
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
                raise _refused(f"{value} is not read by one {operation}")
            self._refuse(wrong, f"{operation} was expected behind {value}")
        self._take(found[0], operation)
        for name, wanted in attributes.items():
            self._expect(found[0], self._attribute(found[0], name) == wanted, f"its {name} is not {wanted!r}")
        return found[0]

    def _take(self, node: Any, operation: str) -> None:
        self._expect(node, node.op_type == operation and len(node.output) == 1, f"{operation} was expected")
        self._seen.add(node.output[0])

    def _expect(self, node: Any, holds: bool, otherwise: str) -> None:
        if not holds:
            self._refuse(node, otherwise)

    def _refuse(self, node: Any, why: str) -> NoReturn:
        raise _refused(f"node {node.name or node.output[0]!r} ({node.op_type}): {why}")

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
        return {"axis": -1, "alpha": 1.0, "beta": 1.0, "approximate": b"none", "mode": b"constant"}.get(name, 0)

    def _constant(self, node: Any, place: int) -> _Array:
        name = node.input[place] if place < len(node.input) else ""
        if name not in self._stored:
            self._refuse(node, f"its input {place} is no constant")
        return np.asarray(self._number(self._stored[name]))

    def _with_bias(self, node: Any) -> tuple[_Array, _Array]:
        """Weights (outputs, ...) of a Conv or Gemm, and their biases, zeros where it has none."""
        weight = self._constant(node, 1)
        return weight, self._constant(node, 2) if len(node.input) > 2 else np.zeros(len(weight), np.float32)

    def _norm(self, node: Any) -> Norm:
        self._expect(node, self._attribute(node, "axis") == -1, "it is not over the channels")
        return Norm(self._constant(node, 1), self._constant(node, 2), float(self._attribute(node, "epsilon")))

    def _numbers(self, node: Any) -> Product:
        """The constants of a product; a weight's zero point has to be zero."""
        weight, scale, weight_scale, zero = (self._constant(node, place) for place in (1, 2, 3, 4))
        inputs = [*node.input, "", ""]
        symmetric = not inputs[5] or not self._constant(node, 5).any()
        bias = self._constant(node, 6) if inputs[6] else np.zeros(weight.shape[1], np.float32)
        fits = weight.dtype == np.int8 and zero.dtype == np.uint8 and scale.size == 1 and weight_scale.ndim == 1
        self._expect(node, fits and symmetric, "it is not of a uint8 activation and a symmetric int8 weight")
        alike = self._steps.get(node.input[0]) == [node.input[2], node.input[4]]
        self._expect(node, alike, "it has another scale or zero point than its activation")
        return Product(float(scale), int(zero), weight, weight_scale, bias)


def _check_shapes(form: PlainVit) -> None:
    """Every size that the kernels rely on: they read memory without asking again."""
    width, first = len(form.kernel), form.layers[0]
    inner, hidden, classes = first.query.weight.shape[-1], first.fc1.weight.shape[-1], len(form.classifier)
    if width % WIDTH_UNIT or inner % form.heads:
        raise _refused(
            f"its width of {width} is no multiple of {WIDTH_UNIT}, or {inner} none of its {form.heads} heads"
        )
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


def _refused(why: str) -> ModelError:
    return ModelError(
        f"the kernels compute INT8 of plain ViTs alone, and this is none: {why}",
        hint="backend='onnxruntime' and 'openvino' run every form",
    )
