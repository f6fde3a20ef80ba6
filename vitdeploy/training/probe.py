"""A linear probe: the backbone's features of every image are computed once, and a head alone is trained on them.

Each feature is put to mean 0 and deviation 1 over the training images, as a batch norm without weights before the head
does it in MAE (https://arxiv.org/abs/2111.06377, appendix A.1); that is folded into the head afterwards:
W (f - m) / s + b = (W / s) f + (b - (W / s) m).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitdeploy.core import progress
from vitdeploy.core.errors import ModelError, require
from vitdeploy.data import ImageDataset
from vitdeploy.training.data import Batcher, Example
from vitdeploy.training.processes import Processes
from vitdeploy.training.scoring import targets

__all__ = ["FeatureBatcher", "fold_probe", "make_probe"]


def _head_of(module: Any) -> Any:
    torch = require("torch", extra="build")
    head = getattr(module, "classifier", None)
    if not isinstance(head, torch.nn.Linear):
        raise ModelError(
            f"a {module.config.model_type} model has no single linear head to probe with",
            hint="leave --linear-probe out; --freeze keeps the first layers as they are",
        )
    return head


class FeatureBatcher:
    """The collate function of a probe: rows -> {pixel_values (batch, hidden) float32: features, labels as `Batcher`'s}.

    The features of a dataset are computed when it is first asked for, each process doing its share.
    """

    def __init__(self, module: Any, batcher: Batcher, processes: Processes, *, batch_size: int, device: Any) -> None:
        self._torch = require("torch", extra="build")
        self._module, self._head = module, _head_of(module)
        self._batcher, self._processes = batcher, processes
        self._batch_size, self._device = batch_size, device
        self._features: dict[int, Any] = {}

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        dataset = rows[0].dataset
        indices = np.array([row.index for row in rows])
        return {
            "pixel_values": self.features(dataset)[self._torch.from_numpy(indices)],
            "labels": self._torch.as_tensor(targets(dataset, indices)),
        }

    def features(self, dataset: ImageDataset) -> Any:
        """(count, hidden) float32 on the CPU: what the head is given for each image."""
        if id(dataset) not in self._features:
            mine = np.array_split(np.arange(len(dataset)), self._processes.count)[self._processes.rank]
            parts = self._processes.gather(self._compute(dataset, mine))
            self._features[id(dataset)] = self._torch.cat(parts)
        return self._features[id(dataset)]

    def _compute(self, dataset: ImageDataset, indices: Any) -> Any:
        seen: list[Any] = []
        hook = self._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
        module = self._module.to(self._device).eval()
        try:
            with (
                self._torch.inference_mode(),
                progress.task(f"Features of {dataset}", total=len(indices), unit="images") as step,
            ):
                for start in range(0, len(indices), self._batch_size):
                    chunk = indices[start : start + self._batch_size].tolist()
                    module(pixel_values=self._batcher.process(dataset, chunk).to(self._device))
                    step.advance(len(chunk))
        finally:
            hook.remove()
        return (
            self._torch.cat([part.clone() for part in seen]) if seen else self._torch.empty(0, self._head.in_features)
        )


def make_probe(module: Any, features: Any) -> Any:
    """A module of a new head alone, for features like `features` (count, hidden) of the training images."""
    torch = require("torch", extra="build")
    outputs = require("transformers.modeling_outputs", extra="build")
    head = _head_of(module)

    class Probe(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(head.in_features, head.out_features)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)
            self.register_buffer("mean", features.mean(0))
            self.register_buffer("deviation", features.std(0).clamp_min(1e-6))

        def forward(self, pixel_values: Any) -> Any:
            standardised = (pixel_values - self.mean) / self.deviation  # (batch, hidden)
            return outputs.ImageClassifierOutput(logits=self.head(standardised))

    return Probe()


def fold_probe(probe: Any, module: Any) -> None:
    """Make the trained probe the head of `module`."""
    torch = require("torch", extra="build")
    head = _head_of(module)
    with torch.no_grad():
        weight = (probe.head.weight / probe.deviation).to(head.weight.device)  # (classes, hidden)
        head.weight.copy_(weight)
        head.bias.copy_(probe.head.bias.to(head.bias.device) - weight @ probe.mean.to(head.weight.device))
