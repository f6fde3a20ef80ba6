"""What the nodes of a graph gave on images: ranges, and how much of the signal is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["MeasuredGraph", "NodeRange"]


@dataclass(frozen=True)
class NodeRange:
    """One node over all images.

    Args:
        low, high: its lowest and highest value in the reference.
        beyond_fp16: the part of these values that is beyond float16, 0..1.
        not_finite: the part of its values that is infinite or NaN in the graph as it is, 0..1.
        sqnr_db: the signal-to-noise ratio of these against the reference's, in dB; None where there is nothing to
            compare with, no difference, or a value that is not finite.
    """

    node: str
    layer: str
    op_type: str
    low: float
    high: float
    beyond_fp16: float
    not_finite: float
    sqnr_db: float | None

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high))

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "sqnr_db": None if self.sqnr_db is None else round(self.sqnr_db, 2)}


@dataclass(frozen=True)
class MeasuredGraph:
    """What `images` images of `source` gave; `reference` says in words what is compared with what."""

    images: int
    source: str
    reference: str
    nodes: tuple[NodeRange, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "source": self.source,
            "reference": self.reference,
            "nodes": [node.to_json() for node in self.nodes],
        }
