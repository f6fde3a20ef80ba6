"""An engine looked into: what its graph asks for, by the manifest, what the file of TensorRT-RTX says that it runs, and
what TensorRT itself says, where a GPU is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.backends.registry import find
from vitdeploy.backends.tensorrt.options import FLAVOURS
from vitdeploy.bundle import Artifact
from vitdeploy.core.errors import DependencyError, EngineError, InputError
from vitdeploy.core.machine import gpus, has_module, problem_with_gpu
from vitdeploy.inspection.plan import PlanFacts, read_plan

if TYPE_CHECKING:
    from vitdeploy.backends.tensorrt.layers import EngineLayers, Int8Share

__all__ = ["SUFFIXES", "EngineFacts", "read_engine_file"]

SUFFIXES = (".engine", ".plan")


@dataclass(frozen=True)
class EngineFacts:
    """An engine: `asked` is what its graph asks for by the manifest (None where no bundle describes it).

    `plan` is what its file says (None where that holds no program as text), `layers` and `memory` what TensorRT says
    of it on a GPU. Where those are None, `reason` says why.
    """

    asked: dict[str, Any] | None
    plan: PlanFacts | None = None
    layers: EngineLayers | None = None
    memory: dict[str, Any] | None = None
    reason: str | None = None

    @property
    def int8(self) -> Int8Share | None:
        """Of the products that the graph asks to be INT8, how many run so; None where it can't be told."""
        if self.layers is None or not self.layers.detailed or not self.asked or not self.asked["int8_products"]:
            return None
        return self.layers.int8_share(self.asked["int8_products"], self.asked["precision"])

    def to_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "plan": None if self.plan is None else self.plan.to_json(),
            "found": None if self.layers is None else self.layers.to_json(),
            "int8": None if self.int8 is None else self.int8.to_json(),
            "memory": self.memory,
            "reason": self.reason,
        }


def read_engine_file(path: Path, artifact: Artifact | None) -> EngineFacts:
    """Look into an engine: from the manifest always, and by loading it where there is a GPU and its TensorRT.

    Loading runs the code in the file. Give an artifact only where the file is the one that it describes, and None only
    for a file of which the user said that it can be trusted.
    """
    asked, plan = None if artifact is None else _asked(artifact), read_plan(path)
    here = [flavour for flavour in FLAVOURS if has_module(find(flavour).needs[0].module)]
    flavours = here if artifact is None else [artifact.target]
    if not gpus():
        return EngineFacts(asked, plan, reason=problem_with_gpu() or "there is no NVIDIA GPU here")
    reason = "neither tensorrt nor tensorrt-rtx is installed"
    for flavour in flavours:
        try:
            layers, memory = _load(path, flavour, trusted=artifact is None)
            return EngineFacts(asked, plan, layers, memory)
        except (EngineError, InputError, DependencyError) as error:
            reason = error.message
    return EngineFacts(asked, plan, reason=reason)


def _asked(artifact: Artifact) -> dict[str, Any] | None:
    built = artifact.built_with
    if "products" not in built:  # built by an older version
        return None
    return {
        "precision": "fp8" if artifact.precision == "fp8" else "int8",
        "products": int(built["products"]),
        "int8_products": [str(name) for name in built.get("int8_products") or ()],
        "layers": dict(built.get("layers") or {}),
    }


def _load(path: Path, flavour: str, *, trusted: bool) -> tuple[EngineLayers, dict[str, Any]]:
    from vitdeploy.backends.tensorrt.layers import read_layers
    from vitdeploy.backends.tensorrt.runner import TensorRTRunner

    with TensorRTRunner(path, flavour, trusted=trusted, streams=1, cuda_graphs=False) as runner:
        return read_layers(runner.engine.layers()), runner.engine.memory()
