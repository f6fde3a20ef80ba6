"""What a fine-tuning run is asked to do. Defaults and their sources: docs/finetune.md."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Annotated, Any, Union

from vitdeploy.core.errors import InputError
from vitdeploy.core.machine import check_threads
from vitdeploy.core.settings import (
    ABOVE_ZERO,
    AT_LEAST_ZERO,
    BELOW_ONE,
    INPUT,
    PATH,
    SEED,
    SHARE,
    OneOf,
    Range,
    check,
    marked,
    shown,
)
from vitdeploy.core.specs import LABEL_WAYS
from vitdeploy.data.labels import BY_NAME

__all__ = ["AUGMENTATIONS", "DISTILL_KINDS", "ONCE", "PRECISIONS", "FinetuneConfig"]

DISTILL_KINDS = ("auto", "soft", "hard")
AUGMENTATIONS = ("none", "shift", "flip-shift")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_EPOCHS, _PROBE_EPOCHS = 3.0, 30.0
_LEARNING_RATE, _PROBE_LEARNING_RATE = 5e-5, 1e-3
# What stands beside a field, other than a rule for its value.
_NOT_WITH_PROBE = "can't be used with a linear probe"
_ONLY_WITH_DISTILL = "has no effect without a teacher"
_FREE = "may differ when a run is taken up again: where and how fast it runs, what it is tested on"
ONCE = "belongs to one command: it is neither kept nor read from a file"

_LAYER_DECAY = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
_MAGNITUDE = Range("0 (off) to 29", lambda value: 0 <= value <= 29, hint="9 is usual")
_Path = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run. The defaults suit a pre-trained ViT and AdamW on images such as CIFAR-10's.

    Attributes:
        model: Hub id or local folder: a classifier, or a backbone without a head.
        dataset: as `vitdeploy.data.load_dataset` takes it; it must have `train`, and `test` or `validation`.
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
        test_split: the split that is looked at once, at the end; a dataset without "test" is tested on "validation".
        validation_split: a split of the dataset to choose the best weights by, instead of a part of train.
        image_column, label_column: where they can't be found.
        match_labels: how the dataset's classes are found among the checkpoint's and the teacher's, "name" or
            "position": see `data.labels`.
        skip_bad: decode every image once before training, list those that can't be, and go on without them.
        revision: branch, tag or commit of a Hub model.
        trust_remote_code: run Python code that comes with the model or the teacher.
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

    model: Annotated[_Path, PATH, INPUT]
    dataset: Annotated[_Path, PATH, INPUT]
    output: Annotated[_Path, PATH, _FREE]
    overwrite: Annotated[bool, _FREE, ONCE] = False
    resume: Annotated[bool, _FREE, ONCE] = False
    epochs: Annotated[float | None, ABOVE_ZERO] = None
    max_steps: Annotated[int | None, ABOVE_ZERO] = None
    batch_size: Annotated[int, ABOVE_ZERO] = 32
    accumulate: Annotated[int, ABOVE_ZERO] = 1
    learning_rate: Annotated[float | None, ABOVE_ZERO] = None
    layer_decay: Annotated[float, _LAYER_DECAY, _NOT_WITH_PROBE] = 0.85
    warmup_ratio: Annotated[float, BELOW_ONE] = 0.1
    weight_decay: Annotated[float, AT_LEAST_ZERO] = 0.01
    clip_grad_norm: Annotated[float, AT_LEAST_ZERO] = 1.0
    label_smoothing: Annotated[float, BELOW_ONE] = 0.0
    augment: Annotated[str, OneOf("augmentation", AUGMENTATIONS), _NOT_WITH_PROBE] = "none"
    randaugment: Annotated[int, _MAGNITUDE, _NOT_WITH_PROBE] = 0
    mixup: Annotated[float, AT_LEAST_ZERO, _NOT_WITH_PROBE] = 0.0
    cutmix: Annotated[float, AT_LEAST_ZERO, _NOT_WITH_PROBE] = 0.0
    drop_path: Annotated[float, BELOW_ONE, _NOT_WITH_PROBE] = 0.0
    ema: Annotated[float, BELOW_ONE] = 0.0
    freeze: Annotated[int, AT_LEAST_ZERO, _NOT_WITH_PROBE] = 0
    linear_probe: bool = False
    image_size: Annotated[int | None, ABOVE_ZERO] = None
    precision: Annotated[str, OneOf("precision", PRECISIONS)] = "auto"
    gradient_checkpointing: Annotated[bool, _NOT_WITH_PROBE] = False
    compile: bool = False
    patience: Annotated[int | None, ABOVE_ZERO] = None
    save_every: Annotated[int | None, ABOVE_ZERO] = None
    limit_train: Annotated[int | None, ABOVE_ZERO] = None
    limit_test: Annotated[int | None, ABOVE_ZERO, _FREE] = None
    validation: Annotated[int | None, AT_LEAST_ZERO] = None
    test_split: Annotated[str, _FREE] = "test"
    validation_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    match_labels: Annotated[str, OneOf("way to match labels", LABEL_WAYS)] = BY_NAME
    skip_bad: Annotated[bool, _FREE] = False
    revision: str | None = None
    trust_remote_code: Annotated[bool, _FREE, ONCE] = False
    distill: Annotated[_Path | None, PATH, INPUT, _NOT_WITH_PROBE] = None
    distill_kind: Annotated[str, OneOf("distillation", DISTILL_KINDS), _ONLY_WITH_DISTILL] = "auto"
    distill_temperature: Annotated[float, ABOVE_ZERO, _ONLY_WITH_DISTILL] = 3.0
    distill_weight: Annotated[float, SHARE, _ONLY_WITH_DISTILL] = 0.5
    seed: Annotated[int, SEED] = 0
    threads: Annotated[int | None, _FREE] = None
    workers: Annotated[int | None, AT_LEAST_ZERO, _FREE] = None
    tensorboard: Annotated[bool, _FREE] = False

    def __post_init__(self) -> None:
        check(self)
        check_threads(self.threads)
        self._check_together()

    def _check_together(self) -> None:
        if self.patience is not None and self.validation == 0:
            raise InputError("patience needs validation images", hint="leave --validation out, or --patience")
        if "all" in (self.test_split, self.validation_split):
            raise InputError("the split all holds the training images too", hint="name another split")
        if self.validation_split is not None and self.validation is not None:
            raise InputError(
                "validation says how many images of train to choose by, validation_split which split instead of them",
                hint="leave --validation or --validation-split out",
            )
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

    def _changed(self, mark: str) -> list[str]:
        """Those of the fields with a mark that are not at their default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return [name for name in marked(type(self), mark) if getattr(self, name) != defaults[name]]

    def resolved(self) -> FinetuneConfig:
        """The same run with every default that depends on other settings filled in."""
        probe = self.linear_probe
        return dataclasses.replace(
            self,
            epochs=self.epochs or (_PROBE_EPOCHS if probe else _EPOCHS),
            learning_rate=self.learning_rate or (_PROBE_LEARNING_RATE if probe else _LEARNING_RATE),
        )

    def to_json(self) -> dict[str, Any]:
        """All settings but those of one command; of paths only the last part, since a checkpoint travels."""
        once = marked(type(self), ONCE)
        return {name: value for name, value in shown(self).items() if name not in once}

    def fixed(self) -> dict[str, Any]:
        """The settings that must be the same when the run is taken up again."""
        free = marked(type(self), _FREE)
        return {name: value for name, value in self.to_json().items() if name not in free}
