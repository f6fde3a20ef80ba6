"""What a run would cost: a few real steps are timed, and the tensors that they keep are counted. Nothing is written."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vitdeploy import hub, progress
from vitdeploy.datasets import ImageDataset
from vitdeploy.errors import require
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.data import EpochSampler, Rows
from vitdeploy.training.distill import load_distillation
from vitdeploy.training.loop import resolve_precision
from vitdeploy.training.objective import CrossEntropy, Objective
from vitdeploy.training.parameters import parameter_counts, parameter_groups
from vitdeploy.training.processes import Processes
from vitdeploy.training.run import Prepared, device, make_batcher, own_randomness, prepare, threads

__all__ = ["DryRun", "dry_run"]

_TIMED_STEPS = 3
_LONG_SECONDS = 20.0


@dataclass(frozen=True)
class DryRun:
    """What `finetune` would do.

    `settings` are the resolved ones, `images` the number a split. `seconds` is for training, validation and test on
    this machine, as `step_seconds` (one optimizer step, images decoded and augmented) makes one expect. `memory_bytes`
    has weights, gradients, optimizer, activations (what a backward pass needs at this batch size), a teacher's
    weights if there is one, and their total.
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
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "notes": list(self.notes)}


def dry_run(config: FinetuneConfig, *, processes: int = 1) -> DryRun:
    """Load model and data as `finetune` does, take a few steps, and throw them away.

    Raises:
        what `finetune` raises before it trains.
    """
    run = prepare(config, Processes(0, processes))
    config, plan, splits = run.config, run.plan, run.splits
    teacher = load_distillation(config, run.model, splits.train.labels)
    with hub.quiet_libraries(), own_randomness(), threads(config.threads), progress.task("Timing a few steps"):
        measured = _measure(run, teacher or CrossEntropy(config.label_smoothing))
    total, trainable = parameter_counts(run.model.module)
    head = (
        sum(value.numel() for value in run.model.module.classifier.parameters()) if config.linear_probe else trainable
    )
    evaluations = 0 if splits.validation is None else 1 + math.ceil(plan.steps / plan.evaluate_every)
    validation = 0 if splits.validation is None else len(splits.validation)
    forwards = (evaluations * validation + len(splits.test)) / processes
    if config.linear_probe:  # every image goes through the backbone once
        step_seconds = 0.0
        seconds = measured.image_seconds * (len(splits.train) + validation + len(splits.test)) / processes
    else:
        step_seconds = measured.batch_seconds * config.accumulate
        seconds = step_seconds * plan.steps + measured.image_seconds * forwards
    memory = {
        "weights": 4 * total,
        "gradients": 4 * head,
        "optimizer": 8 * head + (4 * head if config.ema else 0),
        "activations": 0 if config.linear_probe else measured.activation_bytes,
        **({} if teacher is None else {"teacher": teacher.weight_bytes}),
    }
    return DryRun(
        settings=config.to_json(),
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
        notes=run.notes,
    )


@dataclass(frozen=True)
class _Measured:
    batch_seconds: float
    image_seconds: float
    activation_bytes: int
    device: str


def _measure(run: Prepared, objective: Objective) -> _Measured:
    torch = require("torch", extra="build")
    config, module, where = run.config, run.model.module, device()
    batcher = make_batcher(run)
    module.to(where)
    assert config.learning_rate is not None
    groups = parameter_groups(
        module, learning_rate=config.learning_rate, layer_decay=config.layer_decay, weight_decay=config.weight_decay
    )
    for group in groups:
        del group["names"]
    optimizer = torch.optim.AdamW(groups)
    autocast = _autocast(torch, config.precision, where)
    times: list[float] = []
    kept = 0
    for rows in _batches(run.splits.train, config, _TIMED_STEPS + 1):
        start = time.perf_counter()
        batch = {name: value.to(where) for name, value in batcher(rows).items()}
        module.train()
        with autocast, _kept_bytes(torch, module) as counted:
            loss, _ = objective(module, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the GPU
        times.append(time.perf_counter() - start)
        kept = max(kept, counted[0])
        if sum(times) > _LONG_SECONDS:
            break
    start = time.perf_counter()
    rows = next(iter(_batches(run.splits.test, config, 1)))
    with torch.inference_mode(), autocast:
        module.eval()(pixel_values=batcher(rows)["pixel_values"].to(where)).logits.cpu()
    image_seconds = (time.perf_counter() - start) / len(rows)
    return _Measured(statistics.median(times[1:] or times), image_seconds, kept, where.type)


def _batches(dataset: ImageDataset, config: FinetuneConfig, count: int) -> Iterator[list[Any]]:
    rows = Rows(dataset)
    order = iter(EpochSampler(len(dataset), config.seed))
    for _ in range(count):
        batch = [rows[key] for key in islice(order, config.batch_size)]
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
