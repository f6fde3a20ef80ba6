"""What `vitdeploy lint` says of a file or a bundle, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.compiler.lint.findings import SEVERITIES, Severity
from vitdeploy.compiler.lint.measured import MeasuredGraph
from vitdeploy.compiler.lint.rule import Finding

__all__ = ["GraphReport", "LintReport"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class GraphReport:
    """One graph.

    Args:
        file: its path, in a bundle that in the bundle.
        targets: what it was looked at for.
        precision: what it is in, for people: "INT8 and FP16".
        opset: of ONNX's own operators.
        producer: the program that wrote it, "" where it does not say.
        products: matrix products and convolutions.
        unknown_products: those whose sizes are not known, as where the image's size is free: they are left out of the
            next two.
        macs: multiply-accumulates of a call with one image; None where no size is known.
        share: the part of them in INT8 or FP8, 0..1; None as before.
        findings: in the order of the table of rules.
        measured: what its nodes gave on images; None: it was not run.
    """

    file: str
    targets: tuple[str, ...]
    precision: str
    opset: int | None
    producer: str
    products: int
    unknown_products: int
    macs: int | None
    share: float | None
    findings: tuple[Finding, ...]
    measured: MeasuredGraph | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "targets": list(self.targets),
            "precision": self.precision,
            "opset": self.opset,
            "producer": self.producer,
            "products": self.products,
            "unknown_products": self.unknown_products,
            "macs": self.macs,
            "share_quantized": None if self.share is None else round(self.share, 4),
            "findings": [finding.to_json() for finding in self.findings],
            "measured": None if self.measured is None else self.measured.to_json(),
        }


@dataclass(frozen=True)
class LintReport:
    """A file, or all graphs of a bundle."""

    path: Path
    graphs: tuple[GraphReport, ...]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {severity}" for severity, count in self.counts.items())
        return f"<LintReport of {self.path}: {counts}>"

    @property
    def counts(self) -> dict[Severity, int]:
        """How many rules found something, by severity."""
        return {
            severity: sum(found.rule.severity == severity for graph in self.graphs for found in graph.findings)
            for severity in SEVERITIES
        }

    @property
    def worst(self) -> Severity | None:
        """The worst severity of all findings; None without one."""
        return next((severity for severity in SEVERITIES if self.counts[severity]), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "type": "lint",
            "name": self.path.resolve().name,
            "graphs": [graph.to_json() for graph in self.graphs],
            "counts": dict(self.counts),
            "worst": self.worst,
        }
