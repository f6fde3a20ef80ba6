"""Where a rule found something, how bad that is, and the targets that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["CPU", "RTX", "SEVERITIES", "TARGETS", "TENSORRT", "Place", "Severity", "Target"]

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""error: it won't build, or computes wrongly; warning: slower or less accurate than it could be; info: to know."""


@dataclass(frozen=True)
class Target:
    """What a graph may be made for. `opsets` are the first and the last that its ONNX parser is documented to read,
    `parser` the version of onnx-tensorrt that it is like; None where nothing is said, or there is no parser."""

    name: str
    title: str
    opsets: tuple[int, int] | None = None
    parser: tuple[int, int] | None = None


TARGETS = {
    target.name: target
    for target in (
        # docs/operators.md of onnx-tensorrt 10.0, which 10.3 has too; NVIDIA's ONNX Opset Guide for 11.x. Nothing is
        # documented of RTX; 1.7 knows the operators of 10.15, and reads graphs of opset 27.
        Target("tensorrt-10.3", "TensorRT 10.3", (9, 20), (10, 3)),
        Target("tensorrt-11", "TensorRT 11", (9, 25), (11, 0)),
        Target("tensorrt-rtx", "TensorRT-RTX", None, (11, 0)),
        Target("cpu", "a CPU"),
    )
}
CPU, RTX = "cpu", "tensorrt-rtx"
TENSORRT = tuple(name for name in TARGETS if name != CPU)


@dataclass(frozen=True)
class Place:
    """Where a rule found something: the node ("" for the whole graph), the module that it comes from ("" where the
    graph does not say), and the sentence. `targets` are those that it is about, where not all of the rule's."""

    node: str
    text: str
    layer: str = ""
    targets: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"node": self.node, "layer": self.layer, "text": self.text, "targets": list(self.targets)}
