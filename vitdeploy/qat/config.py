"""What a quantisation-aware tune is asked to do, and what it gives back."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError
from vitdeploy.training.config import check_seed

__all__ = ["QatConfig", "QatResult"]


@dataclass(frozen=True)
class QatConfig:
    """A short tune with INT8's rounding inside.

    Attributes:
        model: the checkpoint that the bundle was exported from, Hub id or folder.
        bundle: a bundle with INT8 in it; its calibration says what is rounded and how. It is replaced by one of the
            tuned weights, once that is whole.
        dataset: as `vitdeploy.datasets.load_dataset` takes it, with `train` and `test`.
        output: folder to write the tuned checkpoint to.
        overwrite: replace an `output` that an earlier tune wrote.
        epochs, max_steps: how long; `max_steps` wins.
        batch_size: images a step.
        learning_rate: AdamW's peak for the weights; less than fine-tuning's, since the weights are good already.
        scale_learning_rate: the same for the logarithms of activations' scales; at 0.02 a step changes them by 2 %.
        weight_decay: AdamW's, not applied to biases and norms.
        warmup_ratio: 0..1, the part of the steps in which the learning rates rise; they fall to 0 along a cosine.
        distill: the teacher; None: the checkpoint itself as it was, without rounding.
        distill_temperature, distill_weight: as in fine-tuning; most of the loss comes from the teacher here.
        limit_train, limit_test: use stratified samples of so many images.
        validation: images of train to choose the best step by; None: a tenth, at most 1,000.
        image_column, label_column: where they can't be found.
        revision: branch, tag or commit of a Hub model.
        seed: of everything random.
        threads: CPU threads of PyTorch; None: one a core.
    """

    model: str | os.PathLike[str]
    bundle: str | os.PathLike[str]
    dataset: str | os.PathLike[str]
    output: str | os.PathLike[str]
    overwrite: bool = False
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 2e-5
    scale_learning_rate: float = 2e-2
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    distill: str | os.PathLike[str] | None = None
    distill_temperature: float = 1.0
    distill_weight: float = 0.9
    limit_train: int | None = None
    limit_test: int | None = None
    validation: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    revision: str | None = None
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "learning_rate", "scale_learning_rate", "distill_temperature")
        for name in (*positive, "max_steps", "limit_train", "limit_test", "validation", "threads"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be more than 0, not {value}")
        check_seed(self.seed)
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(f"warmup_ratio must be at least 0 and below 1, not {self.warmup_ratio}")
        if not 0 <= self.distill_weight <= 1:
            raise InputError(f"distill_weight must be from 0 to 1, not {self.distill_weight}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay must be 0 or more, not {self.weight_decay}")

    def to_json(self) -> dict[str, Any]:
        """All settings; of paths only the last part, since results travel."""
        data = dict(vars(self))
        for name in ("model", "bundle", "dataset", "output", "distill"):
            if data[name] is not None:
                path = Path(data[name])
                data[name] = path.name if path.is_absolute() or path.exists() else str(data[name])
        del data["overwrite"]
        return data


@dataclass(frozen=True)
class QatResult:
    """A finished tune. Accuracies are top-1, 0..1, of the bundle's graphs in ONNX Runtime on the same test images.

    `validation` has a point for each look at the validation images: `step`, `loss`, `accuracy` with rounding; step 0 is
    before the tune. `checks` are what was compared before the bundle was replaced.
    """

    output: Path
    bundle: Path
    fp32_before: float
    int8_before: float
    fp32_after: float
    int8_after: float
    test_images: int
    steps: int
    best_step: int
    seconds: float
    validation: tuple[dict[str, float], ...]
    checks: tuple[dict[str, Any], ...]
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """What INT8 lost before the tune, against FP32 before it."""
        return self.fp32_before - self.int8_before

    @property
    def recovered(self) -> float | None:
        """The share of that loss that came back; None where nothing was lost."""
        return (self.int8_after - self.int8_before) / self.loss if self.loss > 0 else None

    def to_json(self) -> dict[str, Any]:
        data = dict(vars(self))
        data.update(output=str(self.output), bundle=str(self.bundle), loss=self.loss, recovered=self.recovered)
        data.update(validation=list(self.validation), checks=list(self.checks))
        return data
