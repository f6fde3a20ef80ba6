"""What an engine really runs: TensorRT's own account of its layers, read into precisions, fusions and the INT8 share.

TensorRT writes the account as JSON, with `Bindings` (names) up to 10.x and `I/O Tensors` (objects) from 11 on, and
with one line a layer or one object a layer, as the engine was built. One layer of an engine does the work of several
nodes of the graph; `Metadata` names them. A graph asks for INT8 by Q/DQ, and TensorRT may still run a product in a
higher precision, where a Q/DQ pair stands alone or a fusion needs it: `int8_share` counts that.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitdeploy.core.errors import EngineError

__all__ = ["EngineLayers", "Int8Share", "Layer", "read_layers"]

# Words of TensorRT's type and format descriptions, from the narrowest type on; the first that is found counts.
_TYPES = (
    ("int4", r"\bint4\b"),
    ("fp4", r"\bfp4"),
    ("int8", r"\bint8\b"),
    ("fp8", r"\bfp8|\be4m3"),
    ("bf16", r"\bbf16\b|\bbfloat16\b"),
    ("fp16", r"\bhalf\b|\bfp16\b"),
    ("fp32", r"\bfloat\b|\bfp32\b"),
)
_INT8_TACTIC = re.compile(r"i8i8|s8s8|_i8f|_i8_|int8|imma", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|matrixmultiply|matmul|conv|fullyconnected", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_REFORMAT = re.compile(r"^reformat|^nop$", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine. `nodes` are the graph's nodes in it; `precision` is what it computes in ("fp16", "int8",
    ...; "other" for indices, shapes and the like; None where the engine does not say)."""

    name: str
    kind: str
    precision: str | None
    nodes: tuple[str, ...]
    tactic: str | None = None

    @property
    def is_reformat(self) -> bool:
        """Whether it only changes how a tensor lies in memory."""
        return _REFORMAT.search(self.kind) is not None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "nodes": list(self.nodes)}


@dataclass(frozen=True)
class Int8Share:
    """Of the products that the graph asks to be INT8: how many run so, and what becomes of the others.

    `elsewhere` lists (node, layer, precision); `unknown` those that no layer names.
    """

    asked: int
    running: int
    elsewhere: tuple[tuple[str, str, str], ...]
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "running": self.running,
            "elsewhere": [
                {"node": node, "layer": layer, "precision": precision} for node, layer, precision in self.elsewhere
            ],
            "unknown": list(self.unknown),
        }


@dataclass(frozen=True)
class EngineLayers:
    """The layers of an engine in order, and the names of what goes in and out."""

    layers: tuple[Layer, ...]
    tensors: tuple[str, ...]

    @property
    def detailed(self) -> bool:
        """Whether the engine says more than its layers' names."""
        return any(layer.precision is not None for layer in self.layers)

    @property
    def by_precision(self) -> dict[str, int]:
        """Layers by what they compute in, the most frequent first; those that only move data are "reformat"."""
        kinds = ("reformat" if layer.is_reformat else layer.precision or "not said" for layer in self.layers)
        return dict(Counter(kinds).most_common())

    @property
    def fused(self) -> tuple[Layer, ...]:
        """The layers that do the work of several nodes."""
        return tuple(layer for layer in self.layers if len(layer.nodes) > 1)

    def int8_share(self, asked: Sequence[str], precision: str = "int8") -> Int8Share:
        """What became of the products named in `asked`, which the graph wants in that precision."""
        wanted = set(asked)
        places: dict[str, list[Layer]] = {node: [] for node in asked}
        for layer in self.layers:
            for node in wanted.intersection(layer.nodes):
                places[node].append(layer)
        running, elsewhere, unknown = 0, [], []
        for node in places:
            layers = [layer for layer in places[node] if not layer.is_reformat]
            if any(layer.precision == precision for layer in layers):
                running += 1
            elif layers:
                product = next((layer for layer in layers if _PRODUCT.search(layer.kind)), layers[0])
                elsewhere.append((node, product.name, product.precision or "not said"))
            else:
                unknown.append(node)
        return Int8Share(len(places), running, tuple(elsewhere), tuple(unknown))

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [layer.to_json() for layer in self.layers],
            "tensors": list(self.tensors),
            "by_precision": self.by_precision,
            "fused": len(self.fused),
        }


def read_layers(text: str) -> EngineLayers:
    """Read what TensorRT's engine inspector gives in its JSON format.

    Raises:
        EngineError: it is not such JSON.
    """
    try:
        data = json.loads(text, strict=False)  # names of fused layers may hold control characters
        layers = tuple(_layer(entry) for entry in data["Layers"])
        tensors = data.get("Bindings") or [tensor["Name"] for tensor in data.get("I/O Tensors") or ()]
        return EngineLayers(layers, tuple(map(str, tensors)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"TensorRT's account of the engine's layers can't be read: {type(error).__name__} {error}",
            hint="please report it with TensorRT's version",
        ) from error


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):
        return Layer(entry, "", None, _nodes(entry, ""))
    name, kind = str(entry["Name"]), str(entry.get("LayerType", ""))
    tactic = entry.get("TacticName") or None
    nodes = _nodes("" if _REFORMAT.search(kind) else name, str(entry.get("Metadata") or ""))
    return Layer(name, kind, _precision(entry, kind, tactic), nodes, tactic)


def _precision(entry: dict[str, Any], kind: str, tactic: str | None) -> str | None:
    """What a layer computes in: by its kernel where that names INT8, else by the narrowest type that it reads."""
    if tactic and _INT8_TACTIC.search(tactic) and _PRODUCT.search(f"{kind} {tactic}"):
        return "int8"
    said = False
    for side in ("Inputs", "Outputs"):  # a layer that casts pixels to floats computes in what it gives
        words = [_type_words(tensor) for tensor in entry.get(side) or ()]
        said = said or any(words)
        for name, pattern in _TYPES:
            if any(re.search(pattern, word, re.IGNORECASE) for word in words):
                return name
    return "other" if said else None


def _type_words(tensor: Any) -> str:
    if not isinstance(tensor, dict):
        return ""
    for key in ("Format/Datatype", "Datatype", "DataType"):
        if key in tensor:
            return str(tensor[key])
    return ""


def _nodes(name: str, metadata: str) -> tuple[str, ...]:
    """The graph's nodes in a layer: by its metadata, else by its name, which joins them with +."""
    found = _NODE.findall(metadata)
    if not found:
        found = [re.sub(r"_myl\d+_\d+$", "", part.strip()) for part in re.split(r"\s*\+\s*", name)]
    return tuple(dict.fromkeys(part for part in found if part))
