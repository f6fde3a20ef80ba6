"""What tests of engine builds share: small graphs, options, and a reporter that keeps what it is told."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.compiler.engine import EngineOptions, Profile, why_not
from vitdeploy.core.specs import ShapeRange

needs_rtx = pytest.mark.skipif(
    why_not("tensorrt-rtx") is not None, reason="tensorrt-rtx can't build here: " + str(why_not("tensorrt-rtx"))
)
FORMS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx", "int8": "model.int8.onnx"}
IDENTITY = "y = Cast<to=1>(image)"


class Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.completed: list[float] = []
        self.details: list[str] = []

    def task(self, description: str, total: float | None, unit: str) -> AbstractContextManager[Any]:
        return nullcontext(self)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, amount: float = 1) -> None:
        raise AssertionError("the builder sets what is done")

    def update(self, *, completed: float | None = None, total: float | None = None, detail: str | None = None) -> None:
        if completed is not None:
            self.completed.append(completed)
        if detail:
            self.details.append(detail)


def graph(text: str, path: Path, *, name: str = "vit.layers.3.mlp/Weird") -> Path:
    """An ONNX file from nodes in ONNX's text form: `image` uint8 -> `y` float32; the last node is called `name`."""
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["":20]>\n'
        f"g (uint8[batch,height,width,3] image) => (float[batch,height,width,3] y) {{ {text} }}"
    )
    model.graph.node[-1].name = name
    onnx.save(model, path)
    return path


def fixed(*sizes: int) -> ShapeRange:
    """A range of one size, or (minimum, optimum, maximum)."""
    return ShapeRange(*(sizes * 3 if len(sizes) == 1 else sizes))


def square(size: int, **more: Any) -> EngineOptions:
    """Options of an engine for square images of one size."""
    return EngineOptions(profiles=(Profile(height=fixed(size), width=fixed(size)),), **more)
