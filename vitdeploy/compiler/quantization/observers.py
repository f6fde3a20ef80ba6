"""What calibration sees of the activations, in memory that does not grow with the number of images.

Of each group: the extent of every channel over all rows of all images, and a fixed number of rows. The rows are
a fixed number a picture: the first token, which is the class token of a ViT and makes the logits, and a seeded choice
of the others. Where weights are rounded adaptively also X^T X over all rows. Of attention: the same extents, the mean
of V, and of a fixed number of heads K, V and rows of Q.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.quantization.attention import AttentionProducts
from vitdeploy.compiler.quantization.groups import QuantGroup
from vitdeploy.evaluation.batches import check_size, open_session

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["HEADS", "ROWS", "AttentionSample", "GroupSample", "activations"]

ROWS = 768  # rows of each activation on which errors are measured
_LEAST_ROWS = 4  # of a picture that gives any: the class token is one of them, and must not outweigh the others
HEADS = 96  # heads of each attention layer on which errors are measured, all heads in turn
QUERIES = 64  # rows of Q of each, the class token's among them


def activations(model: ir.Model, values: list[ir.Value], images: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """`values` of the FP32 graph, without their batch axis, picture by picture; where it holds the windows of a picture
    it stays.

    The model's weights are not needed any more when the first picture is run: the session has its own.
    """
    outputs = list(model.graph.outputs)
    model.graph.outputs.extend(dict.fromkeys(value for value in values if value not in outputs))
    names = [value.name for value in values]
    try:
        session = open_session(model)
    finally:
        del model.graph.outputs[len(outputs) :]
    for image in images:
        check_size(session, image)
        found = session.run(names, {"image": image[np.newaxis]})
        yield [array[0] if len(array) == 1 else array for array in found]


class Extent:
    """The lowest and the highest value per channel, over all rows of all pictures."""

    def __init__(self) -> None:
        self.low = np.float32(np.inf)
        self.high = np.float32(-np.inf)

    def add(self, rows: np.ndarray, axis: int = 0) -> None:
        self.low = np.minimum(self.low, rows.min(axis=axis))
        self.high = np.maximum(self.high, rows.max(axis=axis))

    def largest(self, centre: np.ndarray | float = 0.0) -> np.ndarray:
        """The largest distance per channel from a centre."""
        distance: np.ndarray = np.maximum(self.high - centre, centre - self.low)
        return distance


class GroupSample:
    """Rows (rows, channels) of one group's activation, and the extremes of all that was seen.

    Args:
        group: whose activation.
        count: how many pictures will come.
        generator: chooses tokens; each sample has its own, so that a group's rows do not depend on other groups.
        with_moments: keep what `moments` needs, a matrix of channels by channels.
    """

    def __init__(
        self, group: QuantGroup, count: int, generator: np.random.Generator, *, with_moments: bool = False
    ) -> None:
        self.images = 0
        self.extent = Extent()
        self.group, self._generator = group, generator
        self._with_moments = with_moments
        self._products: np.ndarray = np.zeros(())
        self._sum: np.ndarray = np.zeros(())
        self._seen = 0
        self._rows: list[np.ndarray] = []
        self._per_image = max(_LEAST_ROWS, -(-ROWS // max(count, 1)))
        self._keep_every = max(1, -(-count * self._per_image // ROWS))

    def add(self, activation: np.ndarray) -> None:
        """One picture's activation, without its batch axis."""
        rows = self.group.rows(activation)
        self.extent.add(rows)
        if self._with_moments:
            products = rows.T @ rows
            self._products = np.add(self._products, products, out=products)
            self._sum = self._sum + rows.sum(axis=0, dtype=np.float64)
            self._seen += len(rows)
        if self.images % self._keep_every == 0:
            others = self._generator.choice(len(rows) - 1, min(self._per_image, len(rows)) - 1, replace=False) + 1
            self._rows.append(rows[np.concatenate([[0], others])])
        self.images += 1

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate(self._rows)

    def moments(self, centre: np.ndarray | None, smoothing: np.ndarray | None) -> np.ndarray:
        """The mean over all rows of X^T X with X = (rows - centre) / smoothing: (channels, channels), float64."""
        found: np.ndarray = self._products / np.float64(self._seen)
        if centre is not None:
            mean = self._sum / self._seen
            found = found - np.outer(centre, mean) - np.outer(mean, centre) + np.outer(centre, centre)
        by = np.ones(len(found)) if smoothing is None else smoothing.astype(np.float64)
        return found / np.outer(by, by)


class AttentionSample:
    """Some rows of Q, K and V (heads kept, tokens, head_dim) of one layer, `head` (heads kept,) which head each is of.

    `extents` holds, for Q, K and V, what was seen per channel (heads, head_dim) over all pictures.
    """

    def __init__(self, products: AttentionProducts, count: int, generator: np.random.Generator) -> None:
        self.products = products
        self.images = 0
        self.extents = (Extent(), Extent(), Extent())
        self._generator, self._count = generator, count
        self._value_sum = np.float64(0)
        self._kept: list[tuple[np.ndarray, ...]] = []
        self._heads: list[np.ndarray] = []

    def add(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> None:
        """One picture's Q (heads, tokens, head_dim), K^T (heads, head_dim, tokens) and V, without their batch axis."""
        arrays = (query, key.transpose(0, 2, 1), value)
        for extent, array in zip(self.extents, arrays, strict=True):
            extent.add(array, axis=1)
        self._value_sum = self._value_sum + value.mean(axis=1, dtype=np.float64)
        heads = len(query)
        per_image = min(heads, max(1, -(-HEADS // max(self._count, 1))))
        if self.images % max(1, -(-self._count * per_image // HEADS)) == 0:
            chosen = (len(self._kept) * per_image + np.arange(per_image)) % heads
            others = self._generator.choice(query.shape[1] - 1, min(QUERIES, query.shape[1]) - 1, replace=False) + 1
            rows = np.concatenate([[0], np.sort(others)])
            self._heads.append(chosen)
            self._kept.append((query[chosen][:, rows], *(array[chosen] for array in arrays[1:])))
        self.images += 1

    @property
    def value_mean(self) -> np.ndarray:
        """The mean of V over tokens and pictures, (heads * head_dim,)."""
        mean: np.ndarray = (self._value_sum / self.images).astype(np.float32).reshape(-1)
        return mean

    @property
    def head(self) -> np.ndarray:
        return np.concatenate(self._heads)

    @property
    def tensors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Q, K and V."""
        query, key, value = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        return query, key, value
