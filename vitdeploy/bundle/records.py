"""What manifest.json holds, as typed records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypedDict

from vitdeploy.core.specs import Choice, EmbeddingSpec, PreprocessSpec, TaskName, TensorSpec

__all__ = ["CALIBRATIONS", "MANIFEST", "SCHEMA_VERSION", "Artifact", "Manifest", "inside"]

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
CALIBRATIONS = {"int8": "calibration", "fp8": "fp8-calibration"}
"""The kind of the artifact that holds how a precision is calibrated."""


class ModelFacts(TypedDict, total=False):
    """What is relied on of `Manifest.model`, which may say more."""

    name: str | None
    source: str | None
    architecture: str | None
    parameters: int | None
    image_size: tuple[int, int] | None


class Check(TypedDict, total=False):
    """A comparison that was made when a graph was."""

    name: str
    value: float
    tolerance: float
    unit: str
    inputs: int | str
    passed: bool


class KeptNode(TypedDict):
    """A node that stays in FP32."""

    node: str
    why: str


class EngineRequest(TypedDict, total=False):
    """What an engine was asked to be."""

    profiles: tuple[dict[str, tuple[int, int, int] | None], ...] | None
    compute_capabilities: tuple[str, ...] | None


class BuiltWith(TypedDict, total=False):
    """What is relied on of `Artifact.built_with`, which may say more."""

    vitdeploy: str
    created: str
    versions: dict[str, str] | None
    check: Check | None
    recipe: dict[str, Any] | None
    images: dict[str, Any] | None
    calibration_sha256: str
    kept_fp32: tuple[KeptNode, ...] | None
    mean_logit_difference: float
    tensorrt: dict[str, str] | None
    request: EngineRequest | None
    flags: dict[str, Any] | None
    profiles: tuple[dict[str, dict[str, tuple[int, ...]]], ...] | None
    products: int
    int8_products: tuple[str, ...] | None
    layers: dict[str, int] | None
    compute_capabilities: tuple[str, ...] | None
    compute_capability: str | None
    gpu: str | None
    driver: str | None
    build_seconds: float


class ZeroShot(TypedDict):
    """What a classifier of words was made by."""

    templates: tuple[str, ...]


class Provenance(TypedDict, total=False):
    """What is relied on of `Manifest.provenance`, which may say more."""

    zero_shot: ZeroShot
    checks: tuple[Check, ...] | None
    passes: tuple[dict[str, Any], ...] | None


class ChoiceMachine(TypedDict, total=False):
    """What is relied on of `Choice.machine`, which may say more."""

    cpu: str | None
    gpu: tuple[str, ...]


@dataclass(frozen=True)
class Artifact:
    """One file of a bundle.

    `kind` is onnx, engine, calibration, selftest, bench ... `precision` is fp32, fp16, int8 ... or None. `target` says
    what the file is made for: "any", "cpu", "tensorrt", "tensorrt-rtx" ... `built_from` is the sha256 of the file it
    was made from, `built_with` what made it: versions, flags, GPU, measured checks.
    """

    path: str
    kind: str
    sha256: str
    size_bytes: int
    precision: str | None = None
    target: str = "any"
    built_from: str | None = None
    built_with: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds, apart from the schema version. `task` says what the graphs' answer means.

    `labels` names the classes, in the order of the logits; an embedding has none, and says in `embedding` what its
    vectors are. `threshold` is the score from which one of several labels counts, 0..1, where the checkpoint has one.
    """

    model: dict[str, Any]
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: tuple[Artifact, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    choice: Choice | None = None
    task: TaskName = "single_label"
    embedding: EmbeddingSpec | None = None
    threshold: float | None = None

    @property
    def width(self) -> int:
        """How many numbers an answer has: one a class, or the embedding's dimensions."""
        return len(self.labels) if self.embedding is None else self.embedding.dimensions

    def __repr__(self) -> str:
        what = f"{self.width} {'classes' if self.embedding is None else 'dimensions'}"
        return f"<Manifest: {what}, {len(self.artifacts)} artifacts>"

    def to_json(self) -> dict[str, Any]:
        chosen = {} if self.choice is None else {"choice": self.choice.to_json()}
        embedding = {} if self.embedding is None else {"embedding": self.embedding.to_json()}
        threshold = {} if self.threshold is None else {"threshold": self.threshold}
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "task": self.task,
            **embedding,
            **threshold,
            "labels": list(self.labels),
            "preprocess": self.preprocess.to_json(),
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "artifacts": [artifact.to_json() for artifact in self.artifacts],
            "provenance": self.provenance,
            **chosen,
        }


def inside(name: str) -> str:
    """Refuse paths that leave the bundle: a manifest comes from somewhere else.

    Raises:
        ValueError: `name` is absolute, goes up, or is empty.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise ValueError(f"artifact path {name!r} leaves the bundle")
    return str(path)
