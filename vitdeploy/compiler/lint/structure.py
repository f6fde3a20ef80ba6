"""The structural check of a build: whether an INT8 or FP8 graph can run faster than FP16 on TensorRT, by lint's rules.

TensorRT builds what a strongly typed graph says, so that no GPU is needed to see that it can't.
`vitdeploy.inspection.plan` reads from an engine of TensorRT-RTX whether it became so.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.compiler.lint.graph import LintGraph, label
from vitdeploy.compiler.lint.rule import Finding
from vitdeploy.compiler.lint.rules import apply
from vitdeploy.compiler.quantization.arithmetic import INT8, Numbers
from vitdeploy.core.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Structure", "check_structure"]

_SHOWN = 4
_NAMED = ("control-flow", "fp32-remainder", "one-sided-residual", "too-little-int8")  # with a place of their own


@dataclass(frozen=True)
class Structure:
    """What the graph is made of. MACs are those of one picture; `int8_products` are names of nodes, `attentions` counts
    the softmaxes, each to be fused with the products around it; `findings` are what is wrong."""

    macs: int
    macs_int8: int
    int8_products: tuple[str, ...]
    attentions: int
    findings: tuple[Finding, ...]
    title: str = "INT8"

    @property
    def share(self) -> float:
        """The part of the MACs in INT8 or FP8, 0..1."""
        return self.macs_int8 / self.macs if self.macs else 0.0

    @property
    def control_flow(self) -> tuple[str, ...]:
        """Nodes with branches or loops."""
        return self._nodes("control-flow")

    @property
    def fp32_islands(self) -> tuple[str, ...]:
        """The first node of each region in FP32."""
        return self._nodes("fp32-remainder")

    @property
    def one_sided_residuals(self) -> tuple[str, ...]:
        """Additions with Q/DQ on one side."""
        return self._nodes("one-sided-residual")

    @property
    def unfusable(self) -> tuple[str, ...]:
        """What else is wrong with the Q/DQ, in words."""
        return tuple(p.text for found in self.findings if found.rule.id not in _NAMED for p in found.places)

    def problems(self) -> list[str]:
        """Why this graph would not run faster than FP16; empty if it can."""
        return [place.text for finding in self.findings for place in finding.places]

    def require_sound(self) -> None:
        """
        Raises:
            ModelError: the graph would be slower than FP16 by its structure.
        """
        problems = self.problems()
        if problems:
            more = f" ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise ModelError(
                f"this {self.title} graph would be no faster than FP16: {'; '.join(problems[:_SHOWN])}{more}",
                hint="use --fp16 for this model, or quantise other parts of it (see docs/int8.md)",
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "macs": self.macs,
            "macs_int8": self.macs_int8,
            "share_int8": round(self.share, 4),
            "control_flow": list(self.control_flow),
            "fp32_islands": list(self.fp32_islands),
            "one_sided_residuals": list(self.one_sided_residuals),
            "unfusable": list(self.unfusable),
        }

    def __str__(self) -> str:
        return (
            f"{self.share:.1%} of {self.macs / 1e9:.3g} GMACs in {self.title}, {len(self.fp32_islands)} FP32 islands,"
            f" {len(self.one_sided_residuals)} one-sided residuals, {len(self.unfusable)} Q/DQ that can't be fused"
        )

    def _nodes(self, rule: str) -> tuple[str, ...]:
        return tuple(place.node for found in self.findings if found.rule.id == rule for place in found.places)


def check_structure(model: ir.Model, intended: Collection[str] = (), numbers: Numbers = INT8) -> Structure:
    """Look at an INT8 or FP8 graph for TensorRT, whose values have shapes; `intended` nodes must be in FP32."""
    graph = LintGraph(model, intended, numbers)
    return Structure(
        macs=sum(graph.macs.values()),
        macs_int8=sum(graph.macs[node] for node in graph.inside),
        int8_products=tuple(label(node) for node in graph.inside),
        attentions=len(graph.softmaxes),
        findings=apply(graph, refused=True),
        title=numbers.title,
    )
