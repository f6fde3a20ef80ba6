"""Stochastic depth, and the moving average of the weights.

Stochastic depth (https://arxiv.org/abs/1603.09382): in training a residual branch is left out for a share p of the
images and scaled by 1 / (1 - p) for the others; p grows linearly from 0 at the first layer. Moving average:
s <- d s + (1 - d) w after each step t, with d = min(decay, (1 + t) / (10 + t)), as TensorFlow and timm warm it up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitdeploy.core.errors import ModelError, require
from vitdeploy.training.parameters import encoder_layers

__all__ = ["MovingAverage", "add_stochastic_depth", "takes_drop_path_rate"]

_FILE = "average.safetensors"


def takes_drop_path_rate(config: Any) -> bool:
    """Whether the model has stochastic depth of its own, set by its config before it is built (DINOv2, BEiT)."""
    return hasattr(config, "drop_path_rate")


def add_stochastic_depth(module: Any, rate: float) -> None:
    """Give each encoder layer's two residual branches stochastic depth, up to `rate` at the last layer.

    transformers' ViT puts a Dropout at the end of each branch, with nothing to save in it; it is replaced.

    Raises:
        ModelError: the layers have no such place.
    """
    torch = require("torch", extra="build")

    class DropPath(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, probability: float, dropout: Any) -> None:
            super().__init__()
            self.probability, self.dropout = probability, dropout

        def forward(self, branch: Any) -> Any:
            branch = self.dropout(branch)  # (batch, tokens, hidden)
            if not self.training or not self.probability:
                return branch
            keep = 1 - self.probability
            mask = torch.rand(len(branch), 1, 1, device=branch.device) < keep
            return branch * mask / keep

    _, layers = encoder_layers(module)
    for index, layer in enumerate(layers):
        places = _ends_of_branches(layer)
        if places is None:
            raise ModelError(
                f"a {module.config.model_type} model has no place for stochastic depth", hint="leave --drop-path out"
            )
        for owner in places:
            owner.dropout = DropPath(rate * index / max(1, len(layers) - 1), owner.dropout)


def _ends_of_branches(layer: Any) -> list[Any] | None:
    """The modules whose `dropout` ends a residual branch."""
    if hasattr(layer, "dropout"):  # one for both branches
        return [layer]
    attention = getattr(getattr(layer, "attention", None), "output", None)  # older transformers, other models
    feed_forward = getattr(layer, "output", None)
    places = [attention, feed_forward]
    return places if all(hasattr(place, "dropout") for place in places) else None


class MovingAverage:
    """An exponential moving average of a module's weights, kept beside it."""

    def __init__(self, module: Any, decay: float) -> None:
        self._torch = require("torch", extra="build")
        self._module, self._decay = module, decay
        self._shadow = {name: value.detach().clone() for name, value in self._learning()}

    def _learning(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in self._module.named_parameters() if value.requires_grad]

    def update(self, step: int) -> None:
        """Take in the weights as they are after optimizer step `step` (from 1)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        weights = [value.detach() for _, value in self._learning()]
        self._torch._foreach_lerp_(list(self._shadow.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averaged weights inside the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, value in self._learning():
            value.data, self._shadow[name] = self._shadow[name], value.data

    def save(self, folder: Path) -> None:
        """Write the averaged weights."""
        safetensors = require("safetensors.torch", extra="build")
        safetensors.save_file({name: value.contiguous() for name, value in self._shadow.items()}, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Read them back."""
        safetensors = require("safetensors.torch", extra="build")
        for name, value in safetensors.load_file(folder / _FILE).items():
            self._shadow[name].copy_(value)

    def settle(self) -> None:
        """Make the averaged weights the module's own, for good."""
        self._exchange()
