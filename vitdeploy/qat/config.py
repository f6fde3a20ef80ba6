"""What a quantisation-aware tune is asked to do, and what it gives back."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union

from vitdeploy.core.errors import InputError
from vitdeploy.core.machine import check_threads
from vitdeploy.core.settings import ABOVE_ZERO, AT_LEAST_ZERO, BELOW_ONE, PATH, SEED, SHARE, OneOf, check, shown
from vitdeploy.core.specs import LABEL_WAYS
from vitdeploy.data.labels import BY_NAME

__all__ = ["QatConfig", "QatResult"]

_Path = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class QatConfig:
    """A short tune with INT8's rounding inside.

    Attributes:
        model: the checkpoint that the bundle was exported from, Hub id or folder.
        bundle: a bundle with INT8 in it; its calibration says what is rounded and how. It is replaced by one of the
            tuned weights, once that is whole.
        dataset: as `vitdeploy.data.load_dataset` takes it, with `train`, and `test` or `validation`.
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
        test_split: the split that accuracies are of; a dataset without "test" is tested on "validation".
        image_column, label_column: where they can't be found.
        match_labels: how the dataset's classes are found among the checkpoint's, and the checkpoint's among the
            teacher's: "name" or "position", see `data.labels`.
        revision: branch, tag or commit of a Hub model.
        trust_remote_code: run Python code that comes with the checkpoint or the teacher.
        seed: of everything random.
        threads: CPU threads of PyTorch; None: one a core.
    """

    model: Annotated[_Path, PATH]
    bundle: Annotated[_Path, PATH]
    dataset: Annotated[_Path, PATH]
    output: Annotated[_Path, PATH]
    overwrite: bool = False
    epochs: Annotated[float, ABOVE_ZERO] = 1.0
    max_steps: Annotated[int | None, ABOVE_ZERO] = None
    batch_size: Annotated[int, ABOVE_ZERO] = 32
    learning_rate: Annotated[float, ABOVE_ZERO] = 2e-5
    scale_learning_rate: Annotated[float, ABOVE_ZERO] = 2e-2
    weight_decay: Annotated[float, AT_LEAST_ZERO] = 0.01
    warmup_ratio: Annotated[float, BELOW_ONE] = 0.1
    distill: Annotated[_Path | None, PATH] = None
    distill_temperature: Annotated[float, ABOVE_ZERO] = 1.0
    distill_weight: Annotated[float, SHARE] = 0.9
    limit_train: Annotated[int | None, ABOVE_ZERO] = None
    limit_test: Annotated[int | None, ABOVE_ZERO] = None
    validation: Annotated[int | None, ABOVE_ZERO] = None
    test_split: str = "test"
    image_column: str | None = None
    label_column: str | None = None
    match_labels: Annotated[str, OneOf("way to match labels", LABEL_WAYS)] = BY_NAME
    revision: str | None = None
    trust_remote_code: bool = False
    seed: Annotated[int, SEED] = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        check(self)
        check_threads(self.threads)
        if self.test_split == "all":
            raise InputError("the split all holds the training images too", hint="name another split")

    def to_json(self) -> dict[str, Any]:
        """All settings; of paths only the last part, since results travel."""
        data = shown(self)
        del data["overwrite"], data["trust_remote_code"]
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

    def __repr__(self) -> str:
        return (
            f"<QatResult {self.output}: INT8 top-1 {self.int8_before:.4f} -> {self.int8_after:.4f}, {self.steps} steps>"
        )

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
