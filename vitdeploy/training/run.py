"""Fine-tuning from end to end: data, model, Trainer, evaluation, and a folder that is whole or not there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.core import progress
from vitdeploy.core.errors import InputError, require
from vitdeploy.core.machine import quota_threads
from vitdeploy.core.storage import check_apart, check_output, lists_all, staged_folder
from vitdeploy.evaluation.accuracy import Answers
from vitdeploy.evaluation.multi_label import summarise_sets
from vitdeploy.models import hub
from vitdeploy.models.checkpoints import CheckpointFolder, open_folder
from vitdeploy.models.tasks import THRESHOLD_KEY, reached
from vitdeploy.training import parameters
from vitdeploy.training.artifacts import SETTINGS_FILE, save_metrics, save_report
from vitdeploy.training.augment import Augmenter, Mixer, RandAugmenter
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.confusion import count_confusion
from vitdeploy.training.curve import curve_from_log
from vitdeploy.training.data import Batcher
from vitdeploy.training.distill import load_distillation
from vitdeploy.training.loop import Plan, build_trainer, keep_best, look, make_plan, resolve_workers, train
from vitdeploy.training.models import Trainable, load_trainable, require_trainable
from vitdeploy.training.objective import Objective
from vitdeploy.training.probe import FeatureBatcher, fold_probe, make_probe
from vitdeploy.training.processes import Processes, joined
from vitdeploy.training.regularise import add_stochastic_depth, takes_drop_path_rate
from vitdeploy.training.result import FinetuneResult, SamplePrediction
from vitdeploy.training.scoring import scoring_of
from vitdeploy.training.splits import Splits, load_splits
from vitdeploy.training.watch import watching
from vitdeploy.training.workspace import Workspace, workspace

__all__ = ["Prepared", "device", "finetune", "make_batcher", "objective_of", "own_randomness", "prepare", "threads"]

_WHAT = "folder of vitdeploy finetune"


@dataclass(frozen=True)
class Prepared:
    """A run that could start: its settings with nothing left open, model, data and length."""

    config: FinetuneConfig
    folder: CheckpointFolder
    model: Trainable
    splits: Splits
    plan: Plan
    teacher_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.splits.notes, *self.model.notes, *self.teacher_notes)


def prepare(config: FinetuneConfig, processes: Processes, *, decode: bool = True) -> Prepared:
    """Everything that can be refused before a run starts; `decode`: also for an image that can't be decoded.

    Raises:
        OutputExistsError, DatasetError, ModelError, InputError.
    """
    config = config.resolved()
    check_output(Path(config.output), overwrite=config.overwrite, ours=is_ours, what=_WHAT)
    check_apart(config.output, (config.model, config.dataset))
    folder = open_folder(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    require_trainable(folder)
    splits = load_splits(config, decode=decode)
    model = load_trainable(
        folder,
        splits.train.labels,
        image_size=config.image_size,
        seed=config.seed,
        drop_path=config.drop_path,
        way=config.match_labels,
        scoring=scoring_of(splits.train),
    )
    if config.distill is not None and splits.train.label_sets is not None:
        raise InputError(
            f"learning from a teacher is not supported for {splits.train}, which has several labels an image",
            hint="leave --distill out",
        )
    if config.drop_path and not takes_drop_path_rate(model.module.config):
        add_stochastic_depth(model.module, config.drop_path)
    if config.freeze:
        parameters.freeze(model.module, config.freeze)
    if config.gradient_checkpointing:
        module = model.module
        getattr(module, "activation_checkpointing_enable", module.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    return Prepared(config, folder, model, splits, make_plan(config, len(splits.train), processes.count))


def make_batcher(run: Prepared) -> Batcher:
    """The collate function of a run."""
    config, processor = run.config, run.model.processor
    randaugment = None
    if config.randaugment:
        settings = processor.to_dict()
        randaugment = RandAugmenter(config.randaugment, config.seed, settings["image_mean"], settings["image_std"])
    mixer = None
    if config.mixup or config.cutmix:
        mixer = Mixer(config.mixup, config.cutmix, len(run.splits.train.labels), config.seed)
    augmenter = Augmenter(config.augment, config.seed, randaugment)
    return Batcher(processor, run.splits.train, augmenter, mixer, keep=resolve_workers(config.workers) == 0)


def objective_of(run: Prepared) -> Objective:
    """What the settings and the data ask for: a teacher's loss, or that of one class or of several labels an image."""
    taught = load_distillation(run.config, run.model, run.splits.train.labels)
    return taught or scoring_of(run.splits.train).objective(run.config.label_smoothing)


def finetune(config: FinetuneConfig, *, objective: Objective | None = None) -> FinetuneResult:
    """Fine-tune a checkpoint on a dataset and write the result to `config.output`.

    A dataset with one class an image makes a classifier of one class an image, one with a list of labels an image
    makes one of several labels: see `training.scoring`. `objective` replaces the loss (None: what the config and the
    data say: a teacher's, cross-entropy, or binary cross-entropy of several labels).

    The folder holds the model (config.json, model.safetensors), preprocessor_config.json, metrics (all_results.json
    and one file a split), trainer_state.json, the settings (finetune.json, finetune.toml), training_curve and
    confusion_matrix (.json and .svg; of several labels labels.json, the numbers of each), and a model card (README.md).
    The best weights by accuracy, or mAP, on a validation part of train are kept; test is looked at once, at the end.
    Under `torchrun` or `accelerate launch` every process calls this and gets the same result; the first one writes.

    Raises:
        OutputExistsError, DatasetError, ModelError, InputError: before any training.
        VitdeployError: the disk is full. Whatever was at `config.output` is unchanged by any failure, and a run that
            had written a checkpoint can be taken up again with `resume`.
    """
    started = time.perf_counter()
    with joined() as processes:
        return _finetune(config, objective, processes, started)


def _finetune(
    config: FinetuneConfig, objective: Objective | None, processes: Processes, started: float
) -> FinetuneResult:
    """A call of its own, so that nothing of it holds the trainer, and by it the other processes, when it is over."""
    run = prepare(config, processes)
    loss = objective or objective_of(run)
    run = replace(run, teacher_notes=getattr(loss, "notes", ()))
    settings = {**run.config.fixed(), "processes": processes.count, **run.splits.identity()}
    with workspace(Path(config.output), settings, processes, overwrite=config.overwrite, resume=config.resume) as work:
        for note in run.notes:
            progress.note(note)
        with hub.quiet_libraries(), own_randomness(), threads(config.threads):
            trainer, module, result, metrics = _train_and_test(run, loss, work, processes)
            if processes.is_main:
                result = _publish(run, trainer, module, result, metrics, work, started)
        processes.wait()
    return result


def _train_and_test(
    run: Prepared, objective: Objective, work: Workspace, processes: Processes
) -> tuple[Any, Any, FinetuneResult, dict[str, dict[str, float]]]:
    """The trainer, the trained classifier, and what is to be said of it."""
    splits, module, scoring = run.splits, run.model.module, scoring_of(run.splits.train)
    collate: Any = make_batcher(run)
    if run.config.linear_probe:
        where = device()
        collate = FeatureBatcher(module, collate, processes, batch_size=run.config.batch_size, device=where)
        module = make_probe(run.model.module, collate.features(splits.train))
    trainer = build_trainer(
        run.config, run.plan, module, collate, splits.train, splits.validation, work, processes, objective
    )
    watched = run.config.tensorboard and processes.is_main
    with watching(trainer, work.tensorboard if watched else None):
        metrics: dict[str, dict[str, float]] = {"train": train(trainer, run.plan), "validation": {}}
        kept = keep_best(trainer, module)
        threshold = None
        if splits.validation is not None:
            metrics["validation"], _, threshold = look(trainer, splits.validation, "validation")
        at = scoring.task.threshold(threshold, str(run.config.output))  # nothing is tuned on the test images
        metrics["test"], logits, _ = look(trainer, splits.test, "test", at)
    if run.config.linear_probe:
        fold_probe(module, run.model.module)
        module = run.model.module
    curve = curve_from_log(trainer.state.log_history, kept if splits.validation is not None else None, scoring)
    sets, several, confusion = splits.test.label_sets, None, tuple[tuple[int, ...], ...]()
    if sets is None:
        confusion = count_confusion(splits.test.label_ids, logits.argmax(-1), len(splits.test.labels))
    else:
        assert at is not None
        several = summarise_sets(Answers(logits, np.ones(len(logits), np.bool_)), sets.astype(np.int8), at)
    result = FinetuneResult(
        output=Path(run.config.output),
        labels=splits.train.labels,
        test_accuracy=metrics["test"][f"test_{scoring.right}"],
        validation_accuracy=metrics["validation"].get(f"validation_{scoring.right}"),
        steps=trainer.state.global_step,
        seconds=0.0,
        sample=_first_prediction(run, logits[0], at),
        curve=curve,
        confusion=confusion,
        metrics={**metrics["train"], **metrics["validation"], **metrics["test"]},
        data=splits.describe(),
        notes=run.notes,
        skipped=splits.skipped,
        resumed_from=work.resumed_from,
        multi_label=several,
        threshold=threshold,
    )
    return trainer, module, result, metrics


def _publish(
    run: Prepared,
    trainer: Any,
    module: Any,
    result: FinetuneResult,
    metrics: dict[str, dict[str, float]],
    work: Workspace,
    started: float,
) -> FinetuneResult:
    """Write the output folder, whole or not at all, then remove the run's own."""
    output = Path(run.config.output)
    result = replace(result, seconds=time.perf_counter() - started)
    with staged_folder(output, overwrite=run.config.overwrite, ours=is_ours, what=_WHAT) as staging:
        if result.threshold is not None:
            setattr(module.config, THRESHOLD_KEY, result.threshold)
        module.save_pretrained(staging)
        for weights in staging.glob("*.safetensors"):
            shutil.copymode(staging / "config.json", weights)  # they are written for the owner alone
        run.model.processor.save_pretrained(staging)
        save_metrics(trainer, staging, metrics)
        if work.tensorboard.is_dir():
            shutil.copytree(work.tensorboard, staging / "tensorboard")
        save_report(staging, run.config, result, model_is_local=run.folder.is_local)
    work.discard()
    return result


def _first_prediction(run: Prepared, logits: Any, threshold: float | None) -> SamplePrediction:
    """What the model says of the first test image, from its logits (classes,)."""
    test_set = run.splits.test
    scores = scoring_of(test_set).task.scores(logits)
    assert scores is not None
    if test_set.label_sets is None:
        right, found = [int(test_set.label_ids[0])], [int(logits.argmax())]
    else:
        assert threshold is not None
        has = test_set.label_sets[0], reached(scores, threshold)
        right, found = (np.flatnonzero(given).tolist() for given in has)
    label, predicted = (", ".join(test_set.labels[place] for place in places) for places in (right, found))
    return SamplePrediction(0, label, predicted, float(scores.max()))


def is_ours(folder: Path) -> bool:
    """Whether a folder is what `finetune` wrote, and holds nothing else."""
    return lists_all(folder, SETTINGS_FILE, "files")


def device() -> Any:
    """Where this process trains."""
    torch = require("torch", extra="build")
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the caller's random states as they were: the Trainer seeds all of them."""
    import random

    torch = require("torch", extra="build")
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Give PyTorch `count` threads inside the block; None: its own choice, within a container's quota."""
    torch = require("torch", extra="build")
    before = torch.get_num_threads()
    torch.set_num_threads(count or quota_threads() or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
