"""Rules on what a graph's nodes gave on images (`--measure`)."""

from __future__ import annotations

from collections.abc import Iterator

from vitdeploy.compiler.float16.plan import HEADROOM, LARGEST
from vitdeploy.compiler.lint.findings import Place
from vitdeploy.compiler.lint.graph import LintGraph

__all__ = ["LEAST_SQNR_DB", "fp16_overflow", "fp16_range", "low_sqnr"]

LEAST_SQNR_DB = 20.0
"""Below it a tenth of a layer's output is noise."""


def fp16_overflow(graph: LintGraph) -> Iterator[Place]:
    """Values that float16 has no number for."""
    for node in graph.measured.nodes if graph.measured is not None else ():
        if node.beyond_fp16 > 0:
            yield Place(
                node.node, f"{node.node} reaches {node.largest:,.0f}; float16 ends at {LARGEST:,.0f}", node.layer
            )


def fp16_range(graph: LintGraph) -> Iterator[Place]:
    """Values so near to the end of float16 that another image may pass it."""
    for node in graph.measured.nodes if graph.measured is not None else ():
        if node.beyond_fp16 == 0 and node.largest * HEADROOM > LARGEST:
            text = f"{node.node} reaches {node.largest:,.0f}, and float16 ends at {LARGEST:,.0f}"
            yield Place(node.node, text, node.layer)


def low_sqnr(graph: LintGraph) -> Iterator[Place]:
    """Nodes of whose output a tenth and more is noise, the worst first; in front those that gave no number at all."""
    measured = graph.measured.nodes if graph.measured is not None else ()
    for node in measured:
        if node.not_finite > 0:
            yield Place(node.node, f"{node.node} gives infinite values or NaN", node.layer)
    known = [node for node in measured if node.sqnr_db is not None and node.sqnr_db < LEAST_SQNR_DB]
    for node in sorted(known, key=lambda node: node.sqnr_db or 0.0):
        yield Place(node.node, f"{node.node} keeps {node.sqnr_db:.1f} dB", node.layer)
