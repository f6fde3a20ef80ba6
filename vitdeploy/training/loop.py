"""The Hugging Face Trainer, set up: arguments, metric, progress, best weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy import progress
from vitdeploy.datasets import ImageDataset
from vitdeploy.errors import InputError, require
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.data import Augmenter, Batcher, Rows
from vitdeploy.training.models import Trainable
from vitdeploy.training.objective import CrossEntropy, Objective

__all__ = ["CHOICE", "Plan", "build_trainer", "evaluate", "make_plan", "score", "train"]

CHOICE = "choice"
_MIN_EVALUATIONS = 5
_LOSS_POINTS = 50


@dataclass(frozen=True)
class Plan:
    """How many steps there are, and after how many of them loss and validation accuracy are taken."""

    steps: int
    warmup_steps: int
    log_every: int
    evaluate_every: int


def make_plan(config: FinetuneConfig, train_images: int) -> Plan:
    """Validation comes once an epoch, but at least five times a run."""
    per_epoch = math.ceil(train_images / config.batch_size)
    steps = config.max_steps or max(1, round(config.epochs * per_epoch))
    return Plan(
        steps=steps,
        warmup_steps=min(round(config.warmup_ratio * steps), steps - 1),
        log_every=max(1, steps // _LOSS_POINTS),
        evaluate_every=max(1, min(per_epoch, steps // _MIN_EVALUATIONS)),
    )


def score(prediction: Any) -> dict[str, float]:
    """For `compute_metrics`: top-1 accuracy (0..1) and what the best weights are chosen by.

    `choice` is the accuracy, ties decided by the cross-entropy: small validation sets have many ties, and the first
    of them is the least trained.
    """
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    logits, labels = np.asarray(logits, np.float64), prediction.label_ids
    top = logits.max(axis=-1, keepdims=True)
    log_sums = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1))
    loss = float(np.mean(log_sums - logits[np.arange(len(labels)), labels]))
    accuracy = float(np.mean(np.argmax(logits, axis=-1) == labels))
    return {"accuracy": accuracy, CHOICE: accuracy - 1e-6 * min(loss, 100.0)}


def build_trainer(
    config: FinetuneConfig,
    plan: Plan,
    model: Trainable,
    train_set: ImageDataset,
    validation_set: ImageDataset | None,
    folder: Path,
    objective: Objective | None = None,
) -> Any:
    """A Trainer that writes to `folder` and says nothing on its own; `objective`: None is the config's own."""
    transformers = require("transformers", extra="build")
    torch = require("torch", extra="build")
    require("accelerate", extra="build")
    validated = validation_set is not None
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup_steps,
        weight_decay=config.weight_decay,
        logging_steps=plan.log_every,
        logging_nan_inf_filter=False,  # it would hide a loss that is not a number
        eval_strategy="steps" if validated else "no",
        eval_steps=plan.evaluate_every if validated else None,
        eval_on_start=validated,
        save_strategy="best" if validated else "no",
        save_total_limit=1,
        save_only_model=True,
        metric_for_best_model=CHOICE if validated else None,
        greater_is_better=True if validated else None,
        seed=config.seed,
        data_seed=config.seed,
        remove_unused_columns=False,  # the rows are no dictionaries
        label_names=["labels"],  # DeiT with its distillation token takes none, so the Trainer would look for none
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
    )
    batcher = Batcher(model.processor, train_set, Augmenter(config.augment, config.seed))
    trainer = _trainer_class()(
        objective or CrossEntropy(config.label_smoothing),
        model=model.module,
        args=arguments,
        data_collator=batcher,
        train_dataset=Rows(train_set),
        eval_dataset=Rows(validation_set) if validation_set is not None else None,
        processing_class=model.processor,
        compute_metrics=score,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _trainer_class() -> Any:
    transformers = require("transformers", extra="build")

    class ObjectiveTrainer(transformers.Trainer):  # type: ignore[misc, name-defined]
        """The Trainer with its loss taken from an Objective."""

        def __init__(self, objective: Objective, **options: Any) -> None:
            super().__init__(**options)
            self.objective = objective
            self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch: the Trainer averages batches

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            loss, output = self.objective(model, inputs)
            return (loss, output) if return_outputs else loss

    return ObjectiveTrainer


def train(trainer: Any, plan: Plan) -> dict[str, float]:
    """Train to the end, load the best weights, and return the Trainer's metrics of the training.

    The Trainer's own load_best_model_at_end is not used: up to transformers 5.23 at least it reads the saved names of
    weights without the renaming that from_pretrained does, and silently leaves most of a ViT as it was last.

    Raises:
        InputError: the loss became infinite or not a number.
    """
    with progress.task("Training", total=plan.steps, unit="steps") as step:
        callback = _progress_callback(step)
        trainer.add_callback(callback)
        metrics: dict[str, float] = trainer.train().metrics
        trainer.remove_callback(callback)
    best = trainer.state.best_model_checkpoint
    if best is not None:
        module = trainer.model
        module.load_state_dict(type(module).from_pretrained(best).state_dict())
    return metrics


def evaluate(trainer: Any, dataset: ImageDataset, name: str) -> dict[str, float]:
    """Loss and accuracy of the trainer's model on `dataset`, as `name`_accuracy and so on."""
    with progress.task(f"Evaluating on {dataset}", total=len(dataset), unit="images") as step:
        callback = _progress_callback(step, batch=trainer.args.eval_batch_size, images=len(dataset))
        trainer.add_callback(callback)
        metrics: dict[str, float] = trainer.evaluate(Rows(dataset), metric_key_prefix=name)
        trainer.remove_callback(callback)
    return {key: value for key, value in metrics.items() if not key.endswith(CHOICE)}


def _progress_callback(step: progress.Step, *, batch: int = 0, images: int | None = None) -> Any:
    """Feed the Trainer's events to a progress step: training steps, or (given `images` in all) evaluated images."""
    transformers = require("transformers", extra="build")

    class Progress(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.loss = self.validation = ""
            self.evaluated = 0

        def show(self, state: Any) -> None:
            detail = f"{state.global_step}/{state.max_steps} steps{self.loss}{self.validation}"
            step.update(completed=state.global_step, detail=detail)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.show(state)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logs = logs or {}
            if "loss" in logs:
                if not math.isfinite(float(logs["loss"])):
                    raise InputError(
                        f"the training loss became {logs['loss']} after {state.global_step} steps",
                        hint="use a smaller --learning-rate or a longer --warmup-ratio",
                    )
                self.loss = f", loss {float(logs['loss']):.3f}"
            if "eval_accuracy" in logs:
                self.validation = f", validation {logs['eval_accuracy']:.1%}"

        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if images is not None:
                self.evaluated = min(self.evaluated + batch, images)
                step.update(completed=self.evaluated)

    return Progress()
