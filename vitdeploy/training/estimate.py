"""What a run would cost: a few real steps are timed, and the tensors that they keep are counted. Nothing is written."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.errors import require
from vitdeploy.core.machine import BUSY, BusyMeter
from vitdeploy.data import ImageDataset
from vitdeploy.models import hub
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.data import EpochSampler, Rows
from vitdeploy.training.distill import Distillation
from vitdeploy.training.loop import resolve_precision
from vitdeploy.training.objective import Objective
from vitdeploy.training.parameters import parameter_counts, parameter_groups
from vitdeploy.training.processes import Processes
from vitdeploy.training.run import Prepared, device, make_batcher, objective_of, own_randomness, prepare, threads
from vitdeploy.training.settings import repeatable

__all__ = ["DryRun", "dry_run"]

_TIMED_STEPS = 3
_TIMED_SECONDS = 2.5  # beside imports and loading, so that the answer comes in some ten seconds
_FEW_IMAGES = 4
_HEAD_STEPS = 10


@dataclass(frozen=True)
class DryRun:
    """What `finetune` would do.

    `settings` are the resolved ones, `images` the number a split. `seconds` is for training, validation and test on
    this machine, as `step_seconds` (one optimizer step, images decoded and augmented) makes one expect. `memory_bytes`
    has weights, gradients, optimizer, activations (what a backward pass needs at this batch size), a teacher's
    weights if there is one, and their total. `other_share` of the processor was used by other programs meanwhile,
    0..1, None where it can't be told: `busy` says that the seconds are too many for a machine without them.
    """

    settings: dict[str, Any]
    images: dict[str, int]
    parameters: int
    trainable: int
    steps: int
    images_per_step: int
    evaluations: int
    step_seconds: float
    seconds: float
    memory_bytes: dict[str, int]
    device: str
    precision: str
    other_share: float | None
    notes: tuple[str, ...]

    @property
    def busy(self) -> bool:
        return self.other_share is not None and self.other_share > BUSY

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "notes": list(self.notes)}


def dry_run(config: FinetuneConfig, *, processes: int = 1) -> DryRun:
    """Load model and data as `finetune` does, take a few steps, and throw them away.

    Images are decoded for these steps only, so one that can't be is found by `finetune` itself, before it trains.

    Raises:
        what else `finetune` raises before it trains.
    """
    run = prepare(config, Processes(0, processes), decode=False)
    config, plan, splits = run.config, run.plan, run.splits
    objective = objective_of(run)
    teacher = objective if isinstance(objective, Distillation) else None
    with hub.quiet_libraries(), own_randomness(), threads(config.threads), progress.task("Timing a few steps"):
        meter = BusyMeter()
        measured = _measure(run, objective)
        others = meter.other_share()
    total, trainable = parameter_counts(run.model.module)
    head = (
        sum(value.numel() for value in run.model.module.classifier.parameters()) if config.linear_probe else trainable
    )
    evaluations = 0 if splits.validation is None else 1 + math.ceil(plan.steps / plan.evaluate_every)
    validation = 0 if splits.validation is None else len(splits.validation)
    looks = evaluations + (splits.validation is not None)  # the last one is at the weights that are kept
    forwards = (looks * validation + len(splits.test)) / processes
    if config.linear_probe:  # every image goes through the backbone once, its features through the head in each epoch
        step_seconds = _head_seconds(run) * config.accumulate
        seconds = measured.image_seconds * (len(splits.train) + validation + len(splits.test)) / processes
        seconds += step_seconds * plan.steps
    else:
        step_seconds = measured.batch_seconds * config.accumulate + measured.update_seconds
        seconds = step_seconds * plan.steps + measured.image_seconds * forwards
    unseen = () if config.skip_bad else ("A run decodes every test image before it trains; this did not.",)
    memory = {
        "weights": 4 * total,
        "gradients": 4 * head,
        "optimizer": 8 * head + (4 * head if config.ema else 0),
        "activations": measured.activation_bytes,
        **({} if teacher is None else {"teacher": teacher.weight_bytes}),
    }
    return DryRun(
        settings=repeatable(config, Path()),
        images={
            split.split: len(split) for split in (splits.train, splits.validation, splits.test) if split is not None
        },
        parameters=total,
        trainable=head,
        steps=plan.steps,
        images_per_step=config.batch_size * config.accumulate * processes,
        evaluations=evaluations,
        step_seconds=step_seconds,
        seconds=seconds,
        memory_bytes={**memory, "total": sum(memory.values())},
        device=measured.device,
        precision=resolve_precision(config.precision),
        other_share=others,
        notes=(*run.notes, *(() if teacher is None else teacher.notes), *measured.notes, *unseen),
    )


@dataclass(frozen=True)
class _Measured:
    batch_seconds: float  # one batch forward and backward
    update_seconds: float  # the optimizer's step
    image_seconds: float  # forward alone
    activation_bytes: int
    device: str
    notes: tuple[str, ...] = ()


def _measure(run: Prepared, objective: Objective) -> _Measured:
    torch = require("torch", extra="build")
    config, module, where = run.config, run.model.module, device()
    batcher = make_batcher(run)
    module.to(where)
    autocast = _autocast(torch, config.precision, where)

    def forward(rows: list[Any]) -> tuple[float, float]:
        begun = time.perf_counter()
        with torch.inference_mode(), autocast:
            module.eval()(pixel_values=batcher(rows)["pixel_values"].to(where)).logits.cpu()
        return time.perf_counter() - begun, 0.0

    if config.linear_probe:  # no step goes through the backbone
        images, seconds, _ = _largest_in_time(run.splits.test, config, forward)
        return _Measured(0.0, 0.0, seconds / images, 0, where.type, _scaled(images, config.batch_size, "time is"))
    step = _Step(run, objective, batcher, where, autocast)
    images, seconds, update = _largest_in_time(run.splits.train, config, step)
    (rows,) = _batches(run.splits.test, config.seed, [images])
    return _Measured(
        batch_seconds=seconds * config.batch_size / images,
        update_seconds=update,
        image_seconds=forward(rows)[0] / len(rows),
        activation_bytes=step.kept_bytes * config.batch_size // images,
        device=where.type,
        notes=_scaled(images, config.batch_size, "time and activations are"),
    )


class _Step:
    """A step of the training: the seconds that grow with the images of a batch, and those of the optimizer."""

    def __init__(self, run: Prepared, objective: Objective, batcher: Any, where: Any, autocast: Any) -> None:
        self._torch = require("torch", extra="build")
        self._module, self._objective = run.model.module, objective
        self._batcher, self._where, self._autocast = batcher, where, autocast
        config = run.config
        assert config.learning_rate is not None
        groups = parameter_groups(
            self._module,
            learning_rate=config.learning_rate,
            layer_decay=config.layer_decay,
            weight_decay=config.weight_decay,
        )
        for group in groups:
            del group["names"]
        self._optimizer = self._torch.optim.AdamW(groups)
        self._optimizer.step()  # nothing yet: it imports what the first step would
        self.kept_bytes = 0  # of the largest batch

    def __call__(self, rows: list[Any]) -> tuple[float, float]:
        begun = time.perf_counter()
        batch = {name: value.to(self._where) for name, value in self._batcher(rows).items()}
        self._module.train()
        with self._autocast, _kept_bytes(self._torch, self._module) as counted:
            loss, _ = self._objective(self._module, batch)
        loss.backward()
        self._wait()
        passed = time.perf_counter()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._wait()
        self.kept_bytes = max(self.kept_bytes, counted[0])
        return passed - begun, time.perf_counter() - passed

    def _wait(self) -> None:
        if self._where.type == "cuda":
            self._torch.cuda.synchronize(self._where)


def _largest_in_time(
    split: ImageDataset, config: FinetuneConfig, timed: Callable[[list[Any]], tuple[float, float]]
) -> tuple[int, float, float]:
    """The largest batch that there is time for, at most the run's own: its images, and what `timed` says of it (seconds
    that grow with the images, other seconds). An image before them warms up, and only counts where it took all the
    time that there is."""
    sizes = [1, 1, min(_FEW_IMAGES, config.batch_size), *[config.batch_size] * _TIMED_STEPS]
    batches = _batches(split, config.seed, sizes)
    first = (1, *timed(next(batches)))
    begun = time.perf_counter()
    found: list[tuple[int, float, float]] = []
    if sum(first[1:]) < _TIMED_SECONDS:
        found.extend((len(rows), *timed(rows)) for rows in islice(batches, 1))
    for rows in batches if found else ():
        images, seconds, others = found[-1]
        if time.perf_counter() - begun + seconds * len(rows) / images + others > _TIMED_SECONDS:
            break
        found.append((len(rows), *timed(rows)))
    found = found or [first]
    most = max(images for images, *_ in found)
    whole = [each for each in found if each[0] == most]
    return most, statistics.median(each[1] for each in whole), statistics.median(each[2] for each in whole)


def _scaled(images: int, batch_size: int, what: str) -> tuple[str, ...]:
    if images == batch_size:
        return ()
    return (f"{what} scaled up from a batch of {images} image{'s' if images > 1 else ''}",)


def _head_seconds(run: Prepared) -> float:
    """One step of a linear probe's head on a batch of features."""
    torch = require("torch", extra="build")
    head = torch.nn.Linear(run.model.module.classifier.in_features, run.model.module.classifier.out_features)
    optimizer = torch.optim.AdamW(head.parameters())
    features = torch.randn(run.config.batch_size, head.in_features)
    labels = torch.zeros(run.config.batch_size, dtype=torch.long)
    start = time.perf_counter()
    for _ in range(_HEAD_STEPS):
        torch.nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - start) / _HEAD_STEPS


def _batches(dataset: ImageDataset, seed: int, sizes: list[int]) -> Iterator[list[Any]]:
    rows = Rows(dataset)
    order = iter(EpochSampler(len(dataset), seed))
    for size in sizes:
        batch = [rows[key] for key in islice(order, size)]
        if batch:
            yield batch


def _autocast(torch: Any, precision: str, where: Any) -> Any:
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve_precision(precision))
    return torch.autocast(where.type, dtype=kind or torch.bfloat16, enabled=kind is not None)


@contextmanager
def _kept_bytes(torch: Any, module: Any) -> Iterator[list[int]]:
    """The bytes of what autograd keeps for the backward pass inside the block, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    counted = [0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted
    counted[0] = sum(seen.values())
