"""Fine-tuning from end to end: data, model, Trainer, evaluation, and a folder that is whole or not there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy import hub, progress
from vitdeploy.checkpoints import open_folder
from vitdeploy.datasets import ImageDataset, load_dataset, stratified_sample, stratified_split
from vitdeploy.errors import DatasetError, require
from vitdeploy.storage import staged_folder
from vitdeploy.training.config import Curve, FinetuneConfig, FinetuneResult, SamplePrediction
from vitdeploy.training.curve import curve_from_log, draw_curve
from vitdeploy.training.distill import load_distillation
from vitdeploy.training.loop import build_trainer, evaluate, make_plan, train
from vitdeploy.training.models import Trainable, load_trainable
from vitdeploy.training.objective import Objective

__all__ = ["finetune"]

_SETTINGS = "finetune.json"
_MOST_VALIDATION_IMAGES = 1000


def finetune(config: FinetuneConfig, *, objective: Objective | None = None) -> FinetuneResult:
    """Fine-tune a checkpoint on a dataset and write the result to `config.output`.

    `objective` replaces the loss (None: what the config says: a teacher's, or cross-entropy).

    The folder holds the model (config.json, model.safetensors), preprocessor_config.json, metrics (all_results.json
    and one file a split), trainer_state.json, training_curve.json and .svg, and the settings in finetune.json. The
    best weights by accuracy on a validation part of train are kept; test is looked at once, at the end.

    Raises:
        OutputExistsError, DatasetError, ModelError, InputError: before any training.
        VitdeployError: the disk is full. Whatever was at `config.output` is unchanged by any failure.
    """
    started = time.perf_counter()
    output = Path(config.output)
    with staged_folder(
        output, overwrite=config.overwrite, ours=_is_ours, what="folder of vitdeploy finetune"
    ) as staging:
        folder = open_folder(config.model, revision=config.revision)
        data = _load_data(config)
        model = load_trainable(folder, data.train.labels, image_size=config.image_size, seed=config.seed)
        for note in (*data.notes, *model.notes):
            progress.note(note)
        plan = make_plan(config, len(data.train))
        with hub.quiet_libraries(), _own_randomness(), _threads(config.threads):
            objective = objective or load_distillation(config, model, data.train.labels)
            trainer = build_trainer(config, plan, model, data.train, data.validation, staging, objective)
            train_metrics = train(trainer, plan)
            best_step = trainer.state.best_global_step if data.validation is not None else None
            validation_metrics = {} if data.validation is None else evaluate(trainer, data.validation, "validation")
            test_metrics = evaluate(trainer, data.test, "test")
            curve = curve_from_log(trainer.state.log_history, best_step)
            sample = _predict_one(trainer, data.test)
            _save(trainer, model, {"train": train_metrics, "validation": validation_metrics, "test": test_metrics})
        result = FinetuneResult(
            output=output,
            labels=data.train.labels,
            test_accuracy=test_metrics["test_accuracy"],
            validation_accuracy=validation_metrics.get("validation_accuracy"),
            steps=plan.steps,
            seconds=time.perf_counter() - started,
            sample=sample,
            curve=curve,
            metrics={**train_metrics, **validation_metrics, **test_metrics},
            data=data.describe(),
            notes=(*data.notes, *model.notes),
        )
        _save_report(staging, config, result)
    return result


def _is_ours(folder: Path) -> bool:
    return (folder / _SETTINGS).is_file() and (folder / "config.json").is_file()


@dataclass(frozen=True)
class _Data:
    train: ImageDataset
    validation: ImageDataset | None
    test: ImageDataset
    notes: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split.describe() for name, split in splits.items() if split is not None}


def _load_data(config: FinetuneConfig) -> _Data:
    def load(split: str, limit: int | None) -> ImageDataset:
        return load_dataset(
            config.dataset,
            split,
            image_column=config.image_column,
            label_column=config.label_column,
            limit=limit,
            seed=config.seed,
        )

    whole, test = load("train", None), load("test", config.limit_test)
    if whole.labels != test.labels:
        raise DatasetError(
            f"train and test of {whole.name} have different classes", hint="give both splits the same class names"
        )
    if len(whole.labels) < 2:
        raise DatasetError(
            f"{whole.name} has one class only ({whole.labels[0]})", hint="use a dataset with two or more"
        )
    empty = [label for label, count in whole.class_counts().items() if not count]
    if empty:
        raise DatasetError(
            f"{whole} has no image of {', '.join(empty[:5])}", hint="add images of it, or remove the class"
        )
    if config.limit_train is not None:
        whole = stratified_sample(whole, config.limit_train, seed=config.seed)
    count = min(round(len(whole) / 10), _MOST_VALIDATION_IMAGES) if config.validation is None else config.validation
    if count >= len(whole):
        raise DatasetError(
            f"{count} validation images leave none of the {len(whole)} of {whole} to train on",
            hint="use a smaller --validation or a larger --limit-train",
        )
    if count == 0:
        return _Data(whole, None, test, ("No validation images: the last weights are kept.",))
    validation, train_set = stratified_split(whole, [count], seed=config.seed)
    note = f"{count} of the {len(whole)} training images are set aside to choose the best weights by."
    return _Data(train_set, replace(validation, split="validation"), test, (note,))


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave the caller's random states as they were: the Trainer seeds all of them."""
    import random

    import numpy as np

    torch = require("torch", extra="build")
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Give PyTorch `count` threads inside the block."""
    torch = require("torch", extra="build")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _predict_one(trainer: Any, test: ImageDataset) -> SamplePrediction:
    """What the model says of the first test image."""
    torch = require("torch", extra="build")
    module = trainer.model.eval()
    batch = trainer.data_collator([(test, 0)])
    with torch.inference_mode():
        logits = module(pixel_values=batch["pixel_values"].to(module.device)).logits[0]
    scores = torch.softmax(logits.float(), dim=-1)
    best = int(scores.argmax())
    return SamplePrediction(0, test.labels[int(test.label_ids[0])], test.labels[best], float(scores[best]))


def _save(trainer: Any, model: Trainable, metrics: dict[str, dict[str, float]]) -> None:
    folder = Path(trainer.args.output_dir)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    trainer.model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    for split, values in metrics.items():
        if values:
            trainer.save_metrics(split, values)
    trainer.state.best_model_checkpoint = None  # it lay in the staging folder; best_global_step says which it was
    trainer.save_state()


def _save_report(folder: Path, config: FinetuneConfig, result: FinetuneResult) -> None:
    curve: Curve = result.curve
    versions = {name: require(name, extra="build").__version__ for name in ("torch", "transformers")}
    settings = {"settings": config.to_json(), "versions": versions, "data": result.data, "notes": list(result.notes)}
    title = f"{result.data['test']['name']}: test accuracy {result.test_accuracy:.2%} after {result.steps} steps"
    files = {
        _SETTINGS: json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
        "training_curve.json": json.dumps(curve.to_json(), indent=2) + "\n",
        "training_curve.svg": draw_curve(curve, title),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
