"""What training minimises: one replaceable object from a model and a batch to a loss."""

from __future__ import annotations

from typing import Any, Protocol

from vitdeploy.core.errors import require

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Objective"]


class Objective(Protocol):
    """Called by the Trainer on every batch, in training and in evaluation (`module.training` says which).

    `module` is the classifier, perhaps wrapped (DDP, torch.compile); `batch` has `pixel_values`
    (batch, 3, height, width) and `labels`: (batch,) int64 class ids, or (batch, classes) probabilities where images
    were mixed or may have several labels. Returns the scalar loss, a mean over the batch, and the module's output with
    its `logits`.
    """

    def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        """Run `module` on `batch`: (loss, output)."""


class CrossEntropy:
    """Cross-entropy; in training with `smoothing` (0..1) of each target spread evenly over all classes."""

    def __init__(self, smoothing: float = 0.0) -> None:
        self._smoothing = smoothing

    def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        torch = require("torch", extra="build")
        output = module(pixel_values=batch["pixel_values"])
        smoothing = self._smoothing if module.training else 0.0
        loss = torch.nn.functional.cross_entropy(output.logits.float(), batch["labels"], label_smoothing=smoothing)
        return loss, output


class BinaryCrossEntropy:
    """Of several labels an image: the mean over images and labels of each sigmoid's cross-entropy; in training each
    target t of 0..1 is t (1 - `smoothing`) + `smoothing` / 2."""

    def __init__(self, smoothing: float = 0.0) -> None:
        self._smoothing = smoothing

    def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        torch = require("torch", extra="build")
        output = module(pixel_values=batch["pixel_values"])
        smoothing = self._smoothing if module.training else 0.0
        wanted = batch["labels"] * (1 - smoothing) + smoothing / 2
        return torch.nn.functional.binary_cross_entropy_with_logits(output.logits.float(), wanted), output
