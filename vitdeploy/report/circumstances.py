"""On what, with what and of what a benchmark was made: the parts of a report that are facts and no measurement."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

__all__ = ["Baseline", "Data", "LayerAnalysis", "Machine", "MeasuredBundle", "Picture", "Reading", "Recommendation"]

Sha256 = Annotated[str, "sha256"]


class Machine(TypedDict, total=False):
    """What ran it: `cores` that may be used, what the driver says of each GPU, `load_average` of the last minute."""

    cpu: str
    cores: int
    cpu_flags: list[str]
    memory_bytes: int | None
    gpu: list[dict[str, Any]]
    jetson: str | None
    system: str
    load_average: float | None


class Data(TypedDict, total=False):
    """The images; `fingerprint` is the SHA-256 over them and their labels, `matching` says which of the model's classes
    each of theirs is (`LabelMatch.to_json`; null where that was not asked). `carved_from` is how many images the data
    has of which the split is a fixed part, where it has no splits; `left_out` counts files by class and suffix."""

    name: str
    kind: str
    split: str
    count: int
    classes: int
    class_counts: dict[str, int]
    fingerprint: Sha256
    matching: dict[str, Any] | None
    carved_from: int
    left_out: dict[str, dict[str, int]]


class MeasuredBundle(TypedDict, total=False):
    """The bundle; its manifest's SHA-256 leaves out benchmarks and what they led to, keys sorted."""

    name: str
    model: dict[str, Any]
    manifest_sha256: Sha256


class Baseline(TypedDict, total=False):
    """What the others are compared with: its row, and in words."""

    key: str | None
    name: str | None
    description: str


class GpuReading(TypedDict):
    """One GPU at one moment."""

    clock_mhz: float | None
    celsius: float | None
    watt: float | None


class Reading(TypedDict):
    """What the sensors said, `seconds` after the first; `cpu_mhz` is a mean over cores."""

    seconds: float
    cpu_mhz: float | None
    cpu_celsius: float | None
    gpu: list[GpuReading]


class AnalysedLayer(TypedDict, total=False):
    """One layer in INT8 or FP8, the rest in FP32: `drop` in points, `agreement` in percent; of an embedding also the
    mean `cosine` to FP32's vectors and `recall` of its neighbours, 0..1."""

    layer: str
    kind: str | None
    macs_share: float | None
    sqnr_db: float | None
    logits_db: float | None
    drop: float | None
    agreement: float | None
    cosine: float | None
    recall: float | None


class _Analysed(TypedDict, total=False):
    precision: str | None  # none: int8


class LayerAnalysis(_Analysed):
    """What `vitdeploy analyze` kept in the bundle: of which precision and images, and each layer."""

    data: Any
    rows: list[AnalysedLayer]


class Picture(TypedDict):
    """A picture of `vitdeploy explain` in the bundle: its name, and the PNG in base64."""

    name: str
    png: str


class Recommendation(TypedDict, total=False):
    """The row to ship, None where none may be, and the sentence that says so."""

    key: str | None
    sentence: str
