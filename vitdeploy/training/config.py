"""What a fine-tuning run is asked to do. Defaults and their sources: docs/finetune.md."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError
from vitdeploy.training.distill import KINDS

__all__ = ["AUGMENTATIONS", "PRECISIONS", "FinetuneConfig", "check_seed"]

AUGMENTATIONS = ("none", "shift", "flip-shift")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_EPOCHS, _PROBE_EPOCHS = 3.0, 30.0
_LEARNING_RATE, _PROBE_LEARNING_RATE = 5e-5, 1e-3
_NOT_WITH_PROBE = (
    "distill",
    "augment",
    "randaugment",
    "mixup",
    "cutmix",
    "drop_path",
    "freeze",
    "gradient_checkpointing",
    "layer_decay",
)
_ONLY_WITH_DISTILL = ("distill_kind", "distill_temperature", "distill_weight")
# What may differ when a run is taken up again: where and how fast it runs, not what it computes.
_FREE = frozenset(["output", "overwrite", "resume", "threads", "workers", "tensorboard"])


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run. The defaults suit a pre-trained ViT and AdamW on images such as CIFAR-10's.

    Attributes:
        model: Hub id or local folder: a classifier, or a backbone without a head.
        dataset: as `vitdeploy.datasets.load_dataset` takes it; it must have `train` and `test`.
        output: folder to write.
        overwrite: replace an `output` that an earlier run wrote, and drop an interrupted run of it.
        resume: go on from the last checkpoint of an interrupted run with the same settings, if there is one.
        epochs: passes over the training images, may be a fraction; None: 3, or 30 for a linear probe.
        max_steps: stop after this many optimizer steps; wins over `epochs`.
        batch_size: images of one forward and backward pass in each process.
        accumulate: batches whose gradients are averaged for one optimizer step.
        learning_rate: AdamW's peak at the head; it rises over `warmup_ratio` of the steps and falls to 0 along a
            cosine. None: 5e-5, or 1e-3 for a linear probe.
        layer_decay: each layer learns at this share of the rate of the layer above it; 1: all at the same.
        warmup_ratio: 0..1.
        weight_decay: AdamW's, not applied to biases, norms, class tokens and position embeddings.
        clip_grad_norm: gradients are scaled down to this norm; 0: they are not.
        label_smoothing: 0..1, how much of the target is spread over all classes.
        augment: none; shift (up to an eighth of the side, edges repeated); flip-shift (and mirrored half the time,
            for images that mean the same when mirrored: not for digits or text).
        randaugment: magnitude of RandAugment's two random operations an image, 1..29; 0: none.
        mixup: alpha of mixup's Beta(alpha, alpha); 0: none. With `cutmix` each batch gets one of the two.
        cutmix: the same for CutMix.
        drop_path: stochastic depth: how often the last layer's residual branches are left out, the others in
            proportion to their depth.
        ema: decay of an exponential moving average of the weights, which is then what is evaluated and kept; 0: none.
        freeze: leave the embeddings and this many first layers as they are.
        linear_probe: train a new head only, on features that are computed once.
        image_size: pixels a side, other than the checkpoint's; its position embeddings are resized.
        precision: auto (bf16 or fp16 on a GPU, whichever it can, fp32 on a CPU), fp32, bf16, fp16.
        gradient_checkpointing: compute activations twice instead of keeping them.
        compile: run the model through torch.compile.
        patience: stop after this many evaluations without a better one; None: never.
        save_every: steps between checkpoints to resume from; None: at every evaluation, where it is saved anyway.
        limit_train: use a stratified sample of this many training images (validation included).
        limit_test: the same for the test images.
        validation: images carved out of train to choose the best weights by; None: a tenth, at most 1,000.
            0: none, and the last weights are kept.
        image_column, label_column: where they can't be found.
        skip_bad: decode every image once before training, list those that can't be, and go on without them.
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
        workers: processes that decode and augment; None: none on a CPU, one a core and at most 8 beside a GPU.
        tensorboard: write event files for TensorBoard too.
    """

    model: str | os.PathLike[str]
    dataset: str | os.PathLike[str]
    output: str | os.PathLike[str]
    overwrite: bool = False
    resume: bool = False
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float | None = None
    layer_decay: float = 0.85
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    clip_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    augment: str = "none"
    randaugment: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    ema: float = 0.0
    freeze: int = 0
    linear_probe: bool = False
    image_size: int | None = None
    precision: str = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    patience: int | None = None
    save_every: int | None = None
    limit_train: int | None = None
    limit_test: int | None = None
    validation: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    skip_bad: bool = False
    revision: str | None = None
    distill: str | os.PathLike[str] | None = None
    distill_kind: str = "auto"
    distill_temperature: float = 3.0
    distill_weight: float = 0.5
    seed: int = 0
    threads: int | None = None
    workers: int | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "learning_rate", "max_steps", "image_size", "limit_train"):
            _positive(name, getattr(self, name))
        for name in ("limit_test", "threads", "patience", "save_every", "distill_temperature"):
            _positive(name, getattr(self, name))
        for name in ("warmup_ratio", "label_smoothing", "drop_path", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        for name in ("weight_decay", "clip_grad_norm", "mixup", "cutmix", "freeze", "validation", "workers"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be 0 or more, not {value}")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay must be above 0 and at most 1, not {self.layer_decay}")
        if not 0 <= self.distill_weight <= 1:
            raise InputError(f"distill_weight must be from 0 to 1, not {self.distill_weight}")
        check_seed(self.seed)
        if not 0 <= self.randaugment <= 29:
            raise InputError(f"randaugment must be 0 (off) to 29, not {self.randaugment}", hint="9 is usual")
        _one_of("augmentation", self.augment, AUGMENTATIONS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("distillation", self.distill_kind, KINDS)
        self._check_together()

    def _check_together(self) -> None:
        if self.patience is not None and self.validation == 0:
            raise InputError("patience needs validation images", hint="leave --validation out, or --patience")
        if self.distill is None and (idle := self._changed(_ONLY_WITH_DISTILL)):
            raise InputError(
                f"{idle[0]} has no effect without a teacher",
                hint=f"name one with --distill, or leave --{idle[0].replace('_', '-')} out",
            )
        if self.linear_probe:
            wrong = self._changed(_NOT_WITH_PROBE)
            if wrong:
                raise InputError(
                    f"a linear probe trains on features that are computed once, so {wrong[0]} can't be used",
                    hint=f"leave --{wrong[0].replace('_', '-')} out, or --linear-probe",
                )

    def _changed(self, names: tuple[str, ...]) -> list[str]:
        """Those of `names` that are not at their default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]

    def resolved(self) -> FinetuneConfig:
        """The same run with every default that depends on other settings filled in."""
        probe = self.linear_probe
        return dataclasses.replace(
            self,
            epochs=self.epochs or (_PROBE_EPOCHS if probe else _EPOCHS),
            learning_rate=self.learning_rate or (_PROBE_LEARNING_RATE if probe else _LEARNING_RATE),
        )

    def to_json(self) -> dict[str, Any]:
        """All settings; of paths only the last part, since a checkpoint travels."""
        data = dataclasses.asdict(self)
        for name in ("model", "dataset", "output", "distill"):
            if data[name] is None:
                continue
            path = Path(data[name])
            data[name] = path.name if path.is_absolute() or path.exists() else str(data[name])
        del data["overwrite"], data["resume"]
        return data

    def fixed(self) -> dict[str, Any]:
        """The settings that must be the same when the run is taken up again."""
        return {name: value for name, value in self.to_json().items() if name not in _FREE}


def check_seed(seed: int) -> None:
    """NumPy's old generator, which libraries still seed, takes 32 bits."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be from 0 to {2**32 - 1}, not {seed}")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be more than 0, not {value}")


def _one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"there is no {what} {value!r}", hint=f"choose one of {', '.join(choices)}")
