"""The tune itself: a bare loop over batches, since weights and scales learn at rates of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from vitdeploy.core import progress
from vitdeploy.core.errors import InputError, require
from vitdeploy.data import ImageDataset
from vitdeploy.qat.config import QatConfig
from vitdeploy.qat.fake import FakeQuantized
from vitdeploy.training.data import processed

__all__ = ["Pixels", "measure_noise", "train", "validate"]

_CACHE_LIMIT_BYTES = 512 << 20
_LOOKS = 5


class Pixels:
    """A split's images through the model's image processor; kept where all of them fit into 512 MiB."""

    def __init__(self, processor: Any, dataset: ImageDataset) -> None:
        self._processor, self._dataset = processor, dataset
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: np.ndarray) -> dict[str, Any]:
        """{pixel_values (batch, 3, height, width) float32, labels (batch,) int64}."""
        torch = require("torch", extra="build")
        missing = [int(index) for index in indices if int(index) not in self._kept]
        made = {}
        if missing:
            values = processed(self._processor, self._dataset, missing)
            made = dict(zip(missing, values, strict=True))
            if values[0].numel() * values.element_size() * len(self._dataset) <= _CACHE_LIMIT_BYTES:
                self._kept.update(made)
        pixels = [made[int(index)] if int(index) in made else self._kept[int(index)] for index in indices]
        return {
            "pixel_values": torch.stack(pixels),
            "labels": torch.as_tensor(self._dataset.label_ids[indices], dtype=torch.int64),
        }

    def batches(self, size: int) -> Iterator[dict[str, Any]]:
        """All images in order."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))


def train(
    state: FakeQuantized, objective: Any, pixels: Pixels, validation: Pixels, config: QatConfig
) -> tuple[int, int, list[dict[str, float]]]:
    """Tune weights and scales; the best of what was seen on the validation images is loaded at the end.

    Returns:
        (steps, best step, points): step 0 is the calibration as it was.

    Raises:
        InputError: the loss became infinite or not a number.
    """
    torch = require("torch", extra="build")
    per_epoch = math.ceil(len(pixels) / config.batch_size)
    steps = config.max_steps or max(1, round(config.epochs * per_epoch))
    every = max(1, min(per_epoch, steps // _LOOKS))
    optimizer = _optimizer(torch, state, config)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps, config.warmup_ratio))
    points = [{"step": 0, **validate(state, objective, validation, config.batch_size)}]
    best, kept = points[0], state.state()
    with progress.task("Tuning with INT8's rounding", total=steps, unit="steps") as task:
        for step, indices in enumerate(_order(len(pixels), config, steps), start=1):
            state.module.train()
            loss, _ = objective(state.module, pixels.batch(indices))
            if not math.isfinite(float(loss.detach())):
                raise InputError(
                    f"the loss became {float(loss.detach())} after {step} steps", hint="use a smaller --learning-rate"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(state.module.parameters(), 1.0)
            optimizer.step()
            rates.step()
            task.update(completed=step, detail=f"{step}/{steps} steps, loss {float(loss.detach()):.3f}")
            if step % every == 0 or step == steps:
                points.append({"step": step, **validate(state, objective, validation, config.batch_size)})
                if _quality(points[-1]) > _quality(best):
                    best, kept = points[-1], state.state()
    state.load(kept)
    state.module.eval()
    return steps, int(best["step"]), points


def _quality(point: dict[str, float]) -> float:
    return point["accuracy"] - 1e-6 * min(point["loss"], 100.0)


def _order(count: int, config: QatConfig, steps: int) -> Iterator[np.ndarray]:
    """Indices of each step's images: shuffled passes."""
    generator = np.random.default_rng(config.seed)
    queue = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(queue) < min(config.batch_size, count):
            queue = np.concatenate([queue, generator.permutation(count)])
        yield queue[: config.batch_size]
        queue = queue[config.batch_size :]


def _share(step: int, steps: int, warmup_ratio: float) -> float:
    """Of the peak learning rate: a linear rise, then half a cosine down to 0."""
    warmup = min(round(warmup_ratio * steps), steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _optimizer(torch: Any, state: FakeQuantized, config: QatConfig) -> Any:
    weights = [value for value in state.module.parameters() if value.requires_grad and value.ndim > 1]
    others = [value for value in state.module.parameters() if value.requires_grad and value.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": weights, "lr": config.learning_rate, "weight_decay": config.weight_decay},
            {"params": others, "lr": config.learning_rate, "weight_decay": 0.0},
            {"params": state.parameters(), "lr": config.scale_learning_rate, "weight_decay": 0.0},
        ]
    )


def validate(state: FakeQuantized, objective: Any, pixels: Pixels, batch_size: int) -> dict[str, float]:
    """Loss (cross-entropy) and accuracy with rounding."""
    torch = require("torch", extra="build")
    state.module.eval()
    loss, right = 0.0, 0
    with torch.inference_mode():
        for batch in pixels.batches(batch_size):
            value, output = objective(state.module, batch)
            loss += float(value) * len(batch["labels"])
            right += int((output.logits.argmax(dim=-1) == batch["labels"]).sum())
    return {"loss": loss / len(pixels), "accuracy": right / len(pixels)}


def measure_noise(state: FakeQuantized, pixels: Pixels, images: int) -> dict[str, float]:
    """Signal-to-noise ratio in dB of what each group of layers gives with rounding, against the same without."""
    torch = require("torch", extra="build")
    state.noise = {}
    try:
        with torch.inference_mode():
            state.module.eval()(pixel_values=pixels.batch(np.arange(min(images, len(pixels))))["pixel_values"])
        return {
            name: 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))
            for name, (signal, noise) in state.noise.items()
        }
    finally:
        state.noise = None
