"""The INT8 form for CPUs of a plain ViT, read from its ONNX graph: the constants alone, for kernels.

From `pixel_values` on a plain ViT is

    x = patches(pixels) + positions, other tokens in front; x = norm(x) where there is a LayerNorm (CLIP)
    for each layer:    x += output(softmax(Q K^T) V),  Q, K, V = qkv(norm(x));    x += fc2(act(fc1(norm(x))))
    logits = classifier(norm(x)[0]), or anything that is made of x alone

with the products of a layer between a quantised activation and a quantised weight (`MatMulIntegerToFloat`), or in
float32 where they were left out of INT8 (`MatMul`); attention's two products in float32, or both between quantised
values; and for act(h) GELU by erf, h sigmoid(h (steep + cubic h^2)), which is GELU by tanh or QuickGELU, or with a
gate g of norm(x) the product h g sigmoid(g) (SwiGLU).

Each node of the layers and in front of them has to be the one that stands there in this, and none may be left over; the
first that is not is named. What is behind the layers is read where it is a classifier of the first token. All else (an
embedding, a projection, a mean or an attention pooling) is left to a backend that runs any graph: it may be any nodes
that read x and constants alone, if these are fewer than the layers'. The last layer may work on all tokens or on the
first ones alone: what is read of it is the same.

A graph may come from a stranger: see `graph_reader`. Sums of its numbers do not overflow, its sizes fit C's int, and no
sum of INT8 products leaves 32 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitdeploy.backends.native.graph_reader import LARGEST, Array, GraphReader, refused
from vitdeploy.bundle.onnx_messages import Message
from vitdeploy.core.errors import ModelError, VitdeployError
from vitdeploy.core.specs import PIXEL_VALUES

__all__ = ["Classifier", "Factors", "Layer", "Norm", "PlainVit", "Product", "read_plain_vit"]

_MOST_INPUTS = 1 << 16  # of a product: 255 * 128 times as many fits 32 bits
_MOST_VALUES = 1 << 31  # of one buffer of the kernels
_PADDING = 64  # more, at most, that a width gets to be whole tiles
_LEAST, _MOST = 1.2e-38, 1e3  # a scale: its inverse is a normal number, and zero points cancel in float32
_GELU_BY_TANH = (2 * (2 / np.pi) ** 0.5, 2 * (2 / np.pi) ** 0.5 * 0.044715)
"""With y = (2 / pi)^0.5 (h + 0.044715 h^3) it is h (1 + tanh(y)) / 2, and tanh(y) is 2 sigmoid(2 y) - 1."""


@dataclass(frozen=True)
class Product:
    """(x - zero) scale W weight_scale + bias, x uint8; `weight` int8 (inputs, outputs), the vectors (outputs,).

    One that is `exact` is x W + bias in float32, with a weight of float32 and scales of 1.
    """

    scale: float
    zero: int
    weight: Array
    weight_scale: Array
    bias: Array

    @property
    def exact(self) -> bool:
        return bool(self.weight.dtype == np.float32)


@dataclass(frozen=True)
class Norm:
    """LayerNorm's vectors, (width,)."""

    weight: Array
    bias: Array
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

    Args:
        factors: of attention's two products; None: they are in float32.
        curve: (steep, cubic) of the MLP's activation, or of its gate's; None: GELU by erf.
        gate: the product that fc1's is multiplied with, behind its activation; None: fc1's goes through it.
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
    curve: tuple[float, float] | None = None
    gate: Product | None = None

    @property
    def products(self) -> tuple[Product, ...]:
        every = (self.query, self.key, self.value, self.output, self.fc1, self.fc2, self.gate)
        return tuple(product for product in every if product is not None)


@dataclass(frozen=True)
class Classifier:
    """LayerNorm and the classifier of the first token: `weight` (classes, width), `bias` (classes,)."""

    norm: Norm
    weight: Array
    bias: Array


@dataclass(frozen=True)
class PlainVit:
    """The constants of a ViT up to its layers' end, and those of a classifier of the first token.

    Args:
        kernel: (width, channels, side, side).
        positions: (tokens, width), those of the tokens in front of the patches' first, with these tokens in them.
        norm: the LayerNorm in front of the layers, where there is one.
        classifier: None where something else is behind the layers.
        end: the value that the layers make, (images, read, width).
        read: how many tokens that has, from the first on.
    """

    heads: int
    image: tuple[int, int, int]  # channels, height, width
    kernel: Array
    kernel_bias: Array
    positions: Array
    layers: tuple[Layer, ...]
    norm: Norm | None
    classifier: Classifier | None
    end: str
    read: int


def read_plain_vit(model: Message) -> PlainVit:
    """Read a graph, as `read_model` has it; the weights lie where it lies.

    Raises:
        ModelError: it is not a plain ViT in INT8; the message names the first node that does not fit.
    """
    reader = _Reader(model)
    try:
        return reader.read()
    except VitdeployError:
        raise
    except Exception as error:  # of a broken graph, such as a node without inputs
        raise refused(f"{reader.where}: {type(error).__name__}: {error}") from error


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


class _Reader(GraphReader):
    def __init__(self, model: Message) -> None:
        super().__init__(model)
        self._tokens = 0
        self._rows: int | None = None  # how many tokens the last layer works on, where those are not all
        self._steps: dict[str, list[str]] = {}  # names of scale and zero point by the quantised activation

    def read(self) -> PlainVit:
        self._well_formed()
        image, conv, positions, x = self._embeddings()
        norm = None
        if [node.op_type for node in self._readers.get(x, [])] == ["LayerNormalization"]:
            first = self._next(x, "LayerNormalization")
            norm, x = self._norm(first), str(first.output[0])
        layers, heads = [], set()
        while self._begins_layer(x):
            layer, count, x = self._layer(x)
            layers.append(layer)
            heads.add(count)
        if len(heads) != 1:
            self._refuse(self._graph.node[-1], "it has no layers, or layers of different numbers of heads")
        classifier = self._classifier(x)
        rest = self._nothing_left(PIXEL_VALUES, None if classifier else x)
        left = {name for node in rest for name in node.input if name in self._stored}
        size = sum(product.weight.size for layer in layers for product in layer.products)
        if sum(math.prod(self._stored[name].dims) for name in left) > size:  # it would be no use
            self._refuse(rest[0], "from here on it is no plain ViT, and that is more than half of it")
        read = 1 if classifier else self._rows or self._tokens
        form = PlainVit(heads.pop(), image, *conv, positions, tuple(layers), norm, classifier, x, read)
        _check_shapes(form)
        return form

    def _begins_layer(self, x: str) -> bool:
        """Whether the value is read as a layer reads it, by its LayerNorm and around it."""
        kinds = [node.op_type for node in self._readers.get(x, [])]
        return "LayerNormalization" in kinds and len(kinds) > 1

    def _classifier(self, x: str) -> Classifier | None:
        """What is behind the layers, where that is a classifier of the first token and nothing else."""
        before = set(self._seen)
        try:
            last = self._next(x, "LayerNormalization")
            row = self._next(last.output[0], "Gather", axis=1)
            index = self._constant(row, 1)
            self._expect(row, index.dtype.kind == "i" and index.shape == () and index == 0, "it takes another token")
            product = self._next(row.output[0], "Gemm", transB=1, alpha=1.0, beta=1.0, transA=0)
            self._expect(product, list(product.output) == [self._graph.output[0].name], "it is not the last")
            return Classifier(self._norm(last), *self._with_bias(product))
        except ModelError:
            self._seen = before
            return None

    def _embeddings(self) -> tuple[tuple[int, int, int], tuple[Array, Array], Array, str]:
        conv = self._next(PIXEL_VALUES, "Conv", among=("Shape",), group=1, dilations=[1, 1], pads=[0, 0, 0, 0])
        kernel, bias = self._with_bias(conv)
        shaped = self._attribute(conv, "kernel_shape") in (0, list(kernel.shape[2:]))
        shaped = shaped and self._attribute(conv, "auto_pad") in (0, b"NOTSET", b"VALID")
        self._expect(conv, kernel.ndim == 4 and kernel.size > 0 and shaped, "it is not a convolution of images")
        self._expect(conv, self._attribute(conv, "strides") == list(kernel.shape[2:]), "its patches overlap")
        lines = self._next(conv.output[0], "Reshape")
        rows = self._next(lines.output[0], "Transpose", perm=[0, 2, 1])
        patched, others = self._others_in_front(rows.output[0])
        add = self._next(patched, "Add")
        positions = self._floats(add, 1 - list(add.input).index(patched))
        values = [value for value in (*self._graph.input, *self._graph.value_info) if value.name == PIXEL_VALUES]
        sizes = list(values[0].type.tensor_type.shape.dim) if values else []
        stated = len(sizes) == 4 and all(size.dim_value > 0 for size in sizes[1:])
        self._expect(conv, stated, "the size of its pixel values is not stated")
        fed = any(value.name == PIXEL_VALUES for value in self._graph.input)
        self._expect(conv, not (fed and sizes[0].HasField("dim_value")), "it takes a fixed number of images")
        channels, height, width = (int(size.dim_value) for size in sizes[1:])
        patches = (height // kernel.shape[2]) * (width // kernel.shape[3])
        whole = height % kernel.shape[2] == 0 == width % kernel.shape[3] and channels == kernel.shape[1]
        fits = positions.shape == (1, others + patches, len(kernel)) and whole and patches
        self._expect(add, bool(fits), "its positions are not those of the patches")
        self._reshapes(lines, (len(kernel), patches))
        self._tokens = others + patches
        return (channels, height, width), (kernel, bias), positions[0], add.output[0]

    def _others_in_front(self, rows: str) -> tuple[str, int]:
        """The patches' tokens with room for others in front, and of how many; as they are where there are no others."""
        if not any(node.op_type == "Pad" for node in self._readers.get(rows, [])):
            return rows, 0
        pad = self._next(rows, "Pad", mode=b"constant")
        front = self._sizes(pad, 1)
        empty = not self._given(pad, 3) and not (self._given(pad, 2) and self._floats(pad, 2).any())
        room = len(front) == 6 and front == [0, front[1], 0, 0, 0, 0] and front[1] > 0
        self._expect(pad, empty and room, "it makes no room for tokens")
        return str(pad.output[0]), front[1]

    def _layer(self, x: str) -> tuple[Layer, int, str]:
        """A layer, its number of heads, and the name of its output."""
        before = self._next(x, "LayerNormalization", among=("Add", "Slice"))
        self._expect(before, self._rows is None, "a layer follows one that works on the first tokens alone")
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
        fc1, gate, curve, made = self._raised(self._rounded(after.output[0]))
        fc2, made = self._product(self._rounded(made))
        last = self._residual(made, added.output[0])
        products = (query.product, key.product, value.product, output, fc1, fc2)
        layer = Layer(self._norm(before), self._norm(after), *products, factors, curve, gate)
        return layer, query.heads, str(last.output[0])

    def _raised(self, value: str) -> tuple[Product, Product | None, tuple[float, float] | None, str]:
        """The first half of an MLP: its product and its gate's, the curve, and the name of what it makes."""
        readers = self._readers.get(value, [])
        if len(readers) != 2:
            fc1, made = self._product(value)
            return fc1, None, *self._bent(made)
        (one, first), (other, second) = map(self._product_at, readers)
        gated = any(node.op_type == "Sigmoid" for node in self._readers.get(first, []))
        if not gated:
            (one, first), (other, second) = (other, second), (one, first)
        curve, bent = self._bent(first)
        self._expect(readers[0], curve is not None, "its gate has another activation than SiLU")
        both = self._next(bent, "Mul")
        alone = len(self._readers[second]) == 1
        self._expect(both, alone and sorted(both.input) == sorted([bent, second]), "it does not multiply with the gate")
        return other, one, curve, str(both.output[0])

    def _bent(self, value: str) -> tuple[tuple[float, float] | None, str]:
        """The curve that a value goes through, None for GELU by erf, and the name of what comes out."""
        readers = self._readers.get(value, [])
        if len(readers) != 2:
            gelu = self._next(value, "Gelu")
            kind = self._attribute(gelu, "approximate")
            self._expect(gelu, kind in (b"none", b"tanh"), f"its approximate is {kind!r}")
            return (_GELU_BY_TANH if kind == b"tanh" else None), str(gelu.output[0])
        steep, turned = 1.0, value
        if not any(node.op_type == "Sigmoid" for node in readers):  # QuickGELU
            inner = [node for node in readers if any(name in self._stored for name in node.input)]
            self._expect(readers[0], len(inner) == 1, "it is not an activation that the kernels know")
            self._take(inner[0], "Mul")
            factor = self._one(inner[0], 1 - list(inner[0].input).index(value))
            self._expect(inner[0], factor.dtype == np.float32 and 1e-3 <= factor <= 1e3, f"its factor is {factor}")
            steep, turned = float(factor), str(inner[0].output[0])
        share = self._next(turned, "Sigmoid", among=("Mul",))
        product = self._next(share.output[0], "Mul")
        self._expect(product, sorted(product.input) == sorted([value, share.output[0]]), "it is no x sigmoid(a x)")
        return (steep, 0.0), str(product.output[0])

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
            product, made = self._product(self._first_rows(node))
            rows = self._rows or rows
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
        self._expect(node, weight.ndim == 2, "it is not a product with a weight")
        made, bias = str(node.output[0]), np.zeros(weight.shape[1], np.float32)
        readers = self._readers.get(made, [])
        if any(node.op_type == "Add" and not self._stored.keys().isdisjoint(node.input) for node in readers):
            add = self._next(made, "Add")
            bias = self._floats(add, 1 - list(add.input).index(made))
            self._expect(add, bias.shape == weight.shape[1:], "it adds no bias")
            made = str(add.output[0])
        return Product(1.0, 0, weight, np.ones(weight.shape[1], np.float32), bias), made

    def _residual(self, made: str, x: str) -> Any:
        """The addition of a product's output to `x`, or to the first rows of `x`."""
        add = self._next(made, "Add")
        (other,) = [name for name in add.input if name != made] or [""]
        if other != x:
            rows = [node for node in self._readers[x] if node.op_type == "Slice" and node.output[0] == other]
            self._expect(add, len(rows) == 1, "it does not add what came in")
            self._first_rows(rows[0])
        return add

    def _first_rows(self, node: Any) -> str:
        self._take(node, "Slice")
        begin, end, axes = (self._sizes(node, place) for place in (1, 2, 3))
        plain = begin == [0] and axes == [1] and (not self._given(node, 4) or self._sizes(node, 4) == [1])
        fits = plain and len(end) == 1 and 0 < end[0] <= self._tokens and self._rows in (None, end[0])
        self._expect(node, fits, "it takes more than the first tokens, or not as many as another")
        self._rows = end[0]
        self._steps[node.output[0]] = self._steps.get(node.input[0], [])
        return str(node.output[0])

    def _norm(self, node: Any) -> Norm:
        self._expect(node, self._attribute(node, "axis") == -1, "it is not over the channels")
        self._expect(node, self._attribute(node, "stash_type") == 1, "it is not computed in float32")
        epsilon = float(self._attribute(node, "epsilon"))
        self._expect(node, 0 <= epsilon < LARGEST, f"its epsilon is {epsilon}")
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
        self._expect(node, bool((largest < LARGEST).all()), "its scales are too large")
        alike = self._steps.get(node.input[0]) == [node.input[2], node.input[4]]
        self._expect(node, alike, "it has another scale or zero point than its activation")
        return Product(float(scale), int(zero), weight, weight_scale, bias)


def _check_shapes(form: PlainVit) -> None:
    """Every size that the kernels rely on: they read memory without asking again."""
    width, first, last = len(form.kernel), form.layers[0], form.classifier
    inner, hidden, classes = first.query.weight.shape[-1], first.fc1.weight.shape[-1], len(last.weight) if last else 1
    if inner % form.heads:
        raise refused(f"{inner} is not a multiple of its {form.heads} heads")
    wrong = ["kernel"] * (form.kernel.ndim != 4) + ["kernel_bias"] * (form.kernel_bias.shape != (width,))
    if last is not None:
        wrong += ["classifier"] * (last.weight.shape != (classes, width) or last.bias.shape != (classes,))
    norms = [norm for layer in form.layers for norm in (layer.before, layer.after)]
    norms += [norm for norm in (form.norm, last.norm if last else None) if norm is not None]
    wrong += ["LayerNorm"] * any({norm.weight.shape, norm.bias.shape} != {(width,)} for norm in norms)
    sizes = dict.fromkeys(("query", "key", "value"), (width, inner))
    sizes |= {"output": (inner, width), "fc1": (width, hidden), "fc2": (hidden, width), "gate": (width, hidden)}
    for number, layer in enumerate(form.layers):
        for name, size in sizes.items():
            product: Product | None = getattr(layer, name)
            if product is None:
                continue
            if product.weight.shape != size or {product.weight_scale.shape, product.bias.shape} != {size[1:]}:
                wrong.append(f"{name} of layer {number}")
        for together in ((layer.query, layer.key, layer.value), (layer.fc1, layer.gate or layer.fc1)):
            if len({(each.scale, each.zero, each.exact) for each in together}) > 1:
                wrong.append(f"scales of layer {number}")
    if wrong:
        raise refused(f"{', '.join(wrong)} do not fit the rest")
    tokens, patch, head = len(form.positions), form.kernel[0].size, inner // form.heads
    buffers = [(tokens, max(width, hidden, 4 * form.heads * (head + _PADDING))), (tokens, patch), (width, patch)]
    buffers += [(classes, width), (tokens, tokens), (width, max(3 * inner, hidden))]
    if min(width, inner, hidden, classes) < 1 or any(
        (rows + _PADDING) * (columns + _PADDING) >= _MOST_VALUES for rows, columns in buffers
    ):
        raise refused("it has a size of 0, or buffers of 2^31 values")
