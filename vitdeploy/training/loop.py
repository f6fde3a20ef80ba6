"""A run's length, its Trainer, and the passes over validation and test images."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.core import progress
from vitdeploy.core.errors import InputError, require
from vitdeploy.core.machine import usable_cores
from vitdeploy.core.storage import read_json
from vitdeploy.data import ImageDataset
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.data import EpochSampler, Rows
from vitdeploy.training.objective import Objective
from vitdeploy.training.processes import Processes
from vitdeploy.training.regularise import MovingAverage
from vitdeploy.training.scoring import CHOICE, CROSS_ENTROPY, SCORINGS, scoring_of
from vitdeploy.training.trainer import evaluations_since_best, load_weights, run_callback, trainer_class
from vitdeploy.training.workspace import Workspace

__all__ = [
    "Plan",
    "build_trainer",
    "keep_best",
    "look",
    "make_plan",
    "resolve_precision",
    "resolve_workers",
    "train",
]

_EVAL_CHOICE = f"eval_{CHOICE}"
_MIN_EVALUATIONS = 5
_LOSS_POINTS = 50
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Plan:
    """How many optimizer steps there are, and after how many of them what is done.

    `log_every` divides the other two, so that a mean of losses never spans a checkpoint: the curve of a run that is
    taken up again is the one it would have had.
    """

    steps: int
    per_epoch: int
    warmup_steps: int
    log_every: int
    evaluate_every: int
    save_every: int


def make_plan(config: FinetuneConfig, train_images: int, processes: int = 1) -> Plan:
    """Validation comes once an epoch, but at least five times a run."""
    config = config.resolved()
    assert config.epochs is not None
    batches = math.ceil(math.ceil(train_images / config.batch_size) / processes)  # of one process in one epoch
    per_epoch = math.ceil(batches / config.accumulate)
    steps = config.max_steps or max(1, round(config.epochs * per_epoch))
    evaluate_every = max(1, min(per_epoch, steps // _MIN_EVALUATIONS))
    save_every = config.save_every or evaluate_every
    common = math.gcd(evaluate_every, save_every)
    wanted = max(1, steps // _LOSS_POINTS)
    return Plan(
        steps=steps,
        per_epoch=per_epoch,
        warmup_steps=min(round(config.warmup_ratio * steps), steps - 1),
        log_every=max(divisor for divisor in range(1, min(common, wanted) + 1) if common % divisor == 0),
        evaluate_every=evaluate_every,
        save_every=save_every,
    )


def resolve_precision(precision: str) -> str:
    """What `auto` means on this machine.

    Raises:
        InputError: this machine can't train in that precision.
    """
    cuda = require("torch", extra="build").cuda
    if precision == "auto":
        if not cuda.is_available():
            return "fp32"
        return "bf16" if cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp16" and not cuda.is_available():
        raise InputError("fp16 training needs a GPU", hint="use --precision bf16 or fp32 on a CPU")
    return precision


def resolve_workers(workers: int | None) -> int:
    """How many processes prepare images."""
    if workers is not None:
        return workers
    if not require("torch", extra="build").cuda.is_available():
        return 0
    return min(_MOST_WORKERS, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def build_trainer(
    config: FinetuneConfig,
    plan: Plan,
    module: Any,
    collate: Any,
    train_set: ImageDataset,
    validation_set: ImageDataset | None,
    work: Workspace,
    processes: Processes,
    objective: Objective,
    processor: Any = None,
) -> Any:
    """A Trainer that writes its checkpoints to `work` and says nothing on its own."""
    transformers = require("transformers", extra="build")
    require("accelerate", extra="build")
    config = config.resolved()
    _refuse_sharding(os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1"))  # it says so to its processes
    trainer = trainer_class()(
        config=config,
        objective=objective,
        sampler=EpochSampler(len(train_set), config.seed),
        average=MovingAverage(module, config.ema) if config.ema else None,
        work=work,
        processes=processes,
        model=module,
        args=_arguments(config, plan, work, validated=validation_set is not None),
        data_collator=collate,
        train_dataset=Rows(train_set),
        eval_dataset=Rows(validation_set) if validation_set is not None else None,
        processing_class=processor,
        compute_metrics=scoring_of(train_set),
    )
    _refuse_sharding(trainer.is_fsdp_enabled)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(run_callback(trainer, config.patience, _EVAL_CHOICE, plan.save_every))
    return trainer


def _arguments(config: FinetuneConfig, plan: Plan, work: Workspace, *, validated: bool) -> Any:
    """The TrainingArguments of a resolved `config`; `validated`: there are validation images."""
    torch = require("torch", extra="build")
    precision = resolve_precision(config.precision)
    arguments = require("transformers", extra="build").TrainingArguments(
        output_dir=str(work.path),
        max_steps=plan.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        torch_compile=config.compile,
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        logging_steps=plan.log_every,
        logging_nan_inf_filter=False,  # it would hide a loss that is not a number
        eval_strategy="steps" if validated else "no",
        eval_steps=plan.evaluate_every if validated else None,
        eval_on_start=validated and work.start is None,
        save_strategy="steps",
        save_steps=plan.save_every,
        metric_for_best_model=CHOICE if validated else None,
        greater_is_better=True if validated else None,
        seed=config.seed,
        remove_unused_columns=False,  # the rows are not dictionaries
        label_names=["labels"],  # a probe and DeiT with its distillation token take none: none would be looked for
        dataloader_num_workers=0 if config.linear_probe else resolve_workers(config.workers),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=[],
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # DataParallel is never wanted: several GPUs are torchrun's
    return arguments


def _refuse_sharding(wished: bool) -> None:
    """Nothing here was tried on shards of a model, and a ViT needs none."""
    if wished:
        raise InputError(
            "FSDP is not supported: every process holds the whole model",
            hint="launch it without --use_fsdp; for a large batch use --accumulate or more processes",
        )


def train(trainer: Any, plan: Plan) -> dict[str, float]:
    """Train to the end, from the workspace's checkpoint if it has one; the Trainer's metrics of this session.

    Raises:
        InputError: the loss became infinite or not a number.
    """
    start = trainer.work.start
    if start is not None and _is_finished(trainer, plan, start):
        return {}
    with progress.task("Training", total=plan.steps, unit="steps") as step:
        callback = _progress_callback(step)
        trainer.add_callback(callback)
        metrics: dict[str, float] = trainer.train(resume_from_checkpoint=None if start is None else str(start)).metrics
        trainer.remove_callback(callback)
    return metrics


def _is_finished(trainer: Any, plan: Plan, start: Any) -> bool:
    """Whether the checkpoint is the last of its run; then the Trainer gets its state."""
    transformers = require("transformers", extra="build")
    history = read_json(start / "trainer_state.json")
    patience = trainer.config.patience
    stopped = patience is not None and evaluations_since_best(history["log_history"], _EVAL_CHOICE) >= patience
    if history["global_step"] < plan.steps and not stopped:
        return False
    trainer.state = transformers.TrainerState.load_from_json(str(start / "trainer_state.json"))
    return True


def keep_best(trainer: Any, module: Any) -> int:
    """Give the trainer's `module` the weights to keep, the best or the last, averaged if asked for; their step."""
    torch = require("torch", extra="build")
    state, processes = trainer.state, trainer.processes
    step = int(state.best_global_step or state.global_step)
    folder = trainer.work.checkpoint(step)
    if processes.is_main:
        load_weights(module, folder)
        if trainer.average is not None:
            trainer.average.load(folder)
    if trainer.average is not None:
        trainer.average.settle()
        trainer.average = None
    if processes.count > 1:
        for value in module.state_dict().values():
            torch.distributed.broadcast(value, 0)
    return step


def look(
    trainer: Any, dataset: ImageDataset, name: str, threshold: float | None = None
) -> tuple[dict[str, float], npt.NDArray[np.float32], float | None]:
    """The metrics of the trainer's model on a dataset, as `name`_accuracy and so on, its logits (count, classes), and
    from which score one of several labels counts.

    Args:
        threshold: that score; None: the best one for these images, which then is given back (of one class None).
    """
    scoring = scoring_of(dataset)
    with _evaluating(trainer, dataset):
        output = trainer.predict(Rows(dataset), metric_key_prefix=name)
    found = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    logits = np.asarray(found, np.float32)
    if threshold is None:
        threshold = scoring.threshold(logits, dataset)
    metrics = {key: value for key, value in output.metrics.items() if not key.endswith(CHOICE)}
    if threshold is not None:
        numbers = scoring.numbers(logits.astype(np.float64), output.label_ids, threshold)
        metrics |= {f"{name}_{key}": value for key, value in numbers.items() if key != CROSS_ENTROPY}
    metrics[f"{name}_samples"] = len(dataset)
    trainer.log(dict(metrics))
    return metrics, logits, threshold


@contextmanager
def _evaluating(trainer: Any, dataset: ImageDataset) -> Iterator[None]:
    """Progress over a dataset's images inside the block."""
    with progress.task(f"Evaluating on {dataset}", total=len(dataset), unit="images") as step:
        batch = trainer.args.eval_batch_size * trainer.processes.count
        callback = _progress_callback(step, batch=batch, images=len(dataset))
        trainer.add_callback(callback)
        yield
        trainer.remove_callback(callback)


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
                self.loss = f", loss {float(logs['loss']):.3f}"
            for scoring in SCORINGS:
                if f"eval_{scoring.metric}" in logs:
                    self.validation = f", validation {logs[f'eval_{scoring.metric}']:.1%}"

        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if images is not None:
                self.evaluated = min(self.evaluated + batch, images)
                step.update(completed=self.evaluated)

    return Progress()
