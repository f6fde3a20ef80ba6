"""What one forward pass shows, whoever ran it, and what makes a model one that these pictures can be drawn of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import Prediction, PreprocessSpec

__all__ = ["Inside", "check_attention", "readout_of", "undo_normalisation"]

_POOLS_PATCHES = ("BeitForImageClassification", "Data2VecVisionForImageClassification")
_TWO_HEADS = "DeiTForImageClassificationWithTeacher"


@dataclass(frozen=True)
class Inside:
    """One image inside a model.

    Attributes:
        source: the model's name, and `form` what ran: "fp32 graph", "PyTorch".
        pixels: what reaches the patch embedding, normalisation undone: uint8 (height, width, 3).
        attentions: one a layer, float32 (heads, tokens, tokens); rows sum to 1.
        grid: (rows, columns) of patches; they are the last tokens, class token and others come first.
        readout: the tokens that the logits are made from and that attention is drawn for: (0,) the class token, (0, 1)
            class and distillation token; () for models that pool the patches.
        positions: position embeddings of the patches, (patches, hidden), or None, and then `no_positions` says why.
        prediction: the best class and its score.
    """

    source: str
    form: str
    pixels: np.ndarray
    attentions: tuple[np.ndarray, ...]
    grid: tuple[int, int]
    readout: tuple[int, ...]
    positions: np.ndarray | None
    no_positions: str | None
    prediction: Prediction

    def __repr__(self) -> str:
        return f"<Inside of {self.source}, {self.form}: {len(self.attentions)} layers, {self.prediction.label}>"

    @property
    def special_tokens(self) -> int:
        """Tokens in front of the patches: class, distillation, registers."""
        return int(self.attentions[0].shape[-1] - self.grid[0] * self.grid[1])

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return self.pixels.shape[0] // self.grid[0], self.pixels.shape[1] // self.grid[1]

    @property
    def looking(self) -> str:
        """Whose attention it is, for captions."""
        return {0: "all patches on average", 1: "the class token"}.get(
            len(self.readout), "the class and the distillation token"
        )


def check_attention(attentions: Sequence[np.ndarray], grid: tuple[int, int], name: str) -> None:
    """Refuse what rollout does not hold for.

    Args:
        attentions: softmax outputs for one image, (1, heads, tokens, tokens) each.

    Raises:
        ModelError: there are none, or they are of windows or of other tokens than one grid of patches.
    """
    works = "ViT, DeiT, DINOv2 (with and without registers), BEiT and SigLIP classifiers can be explained"
    if not attentions:
        raise ModelError(f"{name} has no attention to show: no layer of it is a softmax over tokens", hint=works)
    shapes = sorted({array.shape for array in attentions})
    if any(len(shape) != 4 or shape[0] != 1 for shape in shapes) or len({shape[-2:] for shape in shapes}) > 1:
        raise ModelError(
            f"{name} attends inside windows, or over tokens that change from layer to layer (softmax shapes"
            f" {', '.join(map(str, shapes[:3]))}), so its layers can't be multiplied into one map",
            hint=works,
        )
    rows, tokens = shapes[0][-2:]
    if rows != tokens or tokens < grid[0] * grid[1]:
        raise ModelError(
            f"{name} attends over {tokens} tokens, but cuts the image into {grid[0]}x{grid[1]} patches", hint=works
        )


def readout_of(architecture: str, special_tokens: int) -> tuple[int, ...]:
    """Which tokens make the logits of a transformers class."""
    if special_tokens == 0 or architecture in _POOLS_PATCHES:
        return ()
    return (0, 1) if architecture == _TWO_HEADS else (0,)


def undo_normalisation(values: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Pixel values (3, height, width) -> uint8 (height, width, 3), as the model sees the image."""
    pixels = values.astype(np.float64)
    if spec.channels == "bgr":
        pixels = pixels[::-1]
    if spec.std is not None:
        pixels = pixels * np.array(spec.std).reshape(3, 1, 1)
    if spec.mean is not None:
        pixels = pixels + np.array(spec.mean).reshape(3, 1, 1)
    if spec.rescale is not None:
        pixels = pixels / spec.rescale
    return np.ascontiguousarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0))
