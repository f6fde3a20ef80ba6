"""What a fine-tuning run is asked to do, and what it gives back."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError
from vitdeploy.training.distill import KINDS

__all__ = ["AUGMENTATIONS", "Curve", "FinetuneConfig", "FinetuneResult", "SamplePrediction"]

AUGMENTATIONS = ("none", "shift", "flip-shift")


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run. The defaults suit a pre-trained ViT and AdamW on images such as CIFAR-10's.

    Attributes:
        model: Hub id or local folder: a classifier, or a backbone without a head.
        dataset: as `vitdeploy.datasets.load_dataset` takes it; it must have `train` and `test`.
        output: folder to write.
        overwrite: replace an `output` that an earlier run wrote.
        epochs: passes over the training images; may be a fraction.
        max_steps: stop after this many optimizer steps; wins over `epochs`.
        batch_size: images per step.
        learning_rate: AdamW's peak; it rises over `warmup_ratio` of the steps and falls to 0 along a cosine.
        weight_decay: AdamW's, not applied to biases and norms.
        warmup_ratio: 0..1.
        label_smoothing: 0..1, how much of the target is spread over the other classes.
        augment: none; shift (up to an eighth of the side, edges repeated); flip-shift (and mirrored half the time,
            for images that mean the same when mirrored: not for digits or text).
        image_size: pixels a side, other than the checkpoint's; its position embeddings are resized.
        limit_train: use a stratified sample of this many training images (validation included).
        limit_test: the same for the test images.
        validation: images carved out of train to choose the best weights by; None: a tenth, at most 1,000.
            0: none, and the last weights are kept.
        image_column, label_column: where they can't be found.
        revision: branch, tag or commit of a Hub model.
        distill: a teacher to learn from as well, Hub id or local folder of a classifier that knows the classes.
        distill_kind: soft (its probabilities), hard (its decisions), or auto: hard for a student with DeiT's
            distillation token, else soft. See `vitdeploy.training.distill` for the algebra.
        distill_temperature: of soft labels; 3 is DeiT's.
        distill_weight: 0..1, the teacher's part of the loss; 0.5 is DeiT's for hard labels.
        seed: of everything random.
        threads: CPU threads of PyTorch; None: one a core. A model whose steps take a few milliseconds is faster with
            1, above all beside other programs: threads that wait for each other at every operation cost more than
            they give.
    """

    model: str | os.PathLike[str]
    dataset: str | os.PathLike[str]
    output: str | os.PathLike[str]
    overwrite: bool = False
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    label_smoothing: float = 0.0
    augment: str = "none"
    image_size: int | None = None
    limit_train: int | None = None
    limit_test: int | None = None
    validation: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    revision: str | None = None
    distill: str | os.PathLike[str] | None = None
    distill_kind: str = "auto"
    distill_temperature: float = 3.0
    distill_weight: float = 0.5
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        _positive("epochs", self.epochs)
        _positive("batch_size", self.batch_size)
        _positive("learning_rate", self.learning_rate)
        for name in ("max_steps", "image_size", "limit_train", "limit_test", "threads"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        for name in ("warmup_ratio", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay must be 0 or more, not {self.weight_decay}")
        if self.validation is not None and self.validation < 0:
            raise InputError(f"validation must be 0 or more images, not {self.validation}")
        _positive("distill_temperature", self.distill_temperature)
        if not 0 <= self.distill_weight <= 1:
            raise InputError(f"distill_weight must be from 0 to 1, not {self.distill_weight}")
        if self.distill_kind not in KINDS:
            raise InputError(
                f"there is no distillation {self.distill_kind!r}", hint=f"choose one of {', '.join(KINDS)}"
            )
        if self.augment not in AUGMENTATIONS:
            raise InputError(
                f"there is no augmentation {self.augment!r}", hint=f"choose one of {', '.join(AUGMENTATIONS)}"
            )

    def to_json(self) -> dict[str, Any]:
        """All settings; of paths only the last part, since a checkpoint travels."""
        data = dataclasses.asdict(self)
        for name in ("model", "dataset", "output", "distill"):
            if data[name] is None:
                continue
            path = Path(data[name])
            data[name] = path.name if path.is_absolute() or path.exists() else str(data[name])
        del data["overwrite"]
        return data


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be more than 0, not {value}")


@dataclass(frozen=True)
class Curve:
    """How training went. Points have `step`, `epoch` and: `loss`, `learning_rate` (train; the loss is the mean since
    the point before), or `loss`, `accuracy` (validation). `best_step` is the step whose weights were kept.
    """

    train: tuple[dict[str, float], ...]
    validation: tuple[dict[str, float], ...]
    best_step: int | None

    def to_json(self) -> dict[str, Any]:
        return {"train": list(self.train), "validation": list(self.validation), "best_step": self.best_step}


@dataclass(frozen=True)
class SamplePrediction:
    """What the model says of one test image. `score` is the softmax probability, 0..1."""

    index: int
    label: str
    predicted: str
    score: float


@dataclass(frozen=True)
class FinetuneResult:
    """A finished run. `metrics` are those of all_results.json; accuracies go from 0 to 1.

    `test_accuracy` comes from one pass over the test split after everything was decided.
    """

    output: Path
    labels: tuple[str, ...]
    test_accuracy: float
    validation_accuracy: float | None
    steps: int
    seconds: float
    sample: SamplePrediction
    curve: Curve
    metrics: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "labels": list(self.labels),
            "test_accuracy": self.test_accuracy,
            "validation_accuracy": self.validation_accuracy,
            "steps": self.steps,
            "seconds": self.seconds,
            "sample": dataclasses.asdict(self.sample),
            "metrics": self.metrics,
            "data": self.data,
            "notes": list(self.notes),
            "curve": self.curve.to_json(),
        }
