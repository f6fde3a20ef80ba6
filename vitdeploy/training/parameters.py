"""Which weights learn, how fast, and which of them decay.

Layer-wise decay of the learning rate, as BEiT fine-tunes (https://arxiv.org/abs/2106.08254, appendix): with n encoder
layers, embeddings are layer 0, encoder layer i is layer i + 1, final norm and head are layer n + 1; layer l learns at
rate * decay ** (n + 1 - l). Weight decay leaves out biases, norms (https://arxiv.org/abs/1812.01187, section 3.1), and,
as timm and BEiT do, tokens and position embeddings.
"""

from __future__ import annotations

import re
from typing import Any

from vitdeploy.core.errors import InputError, ModelError, require

__all__ = ["encoder_layers", "freeze", "parameter_counts", "parameter_groups"]

_WRAPPERS = re.compile(r"(^|\.)(module|_orig_mod)(?=\.)")
_NOT_DECAYED = re.compile(r"(position_embeddings|relative_position_bias_table|_token|_tokens|lambda1)$")


def encoder_layers(module: Any) -> tuple[str, Any]:
    """The name and the ModuleList of a ViT's encoder layers.

    Raises:
        ModelError: there is no list of that many layers.
    """
    torch = require("torch", extra="build")
    count = module.config.num_hidden_layers
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.ModuleList) and len(child) == count:
            return name, child
    raise ModelError(
        f"the encoder layers of this {module.config.model_type} model were not found",
        hint="fine-tune a model of the ViT family with --layer-decay 1, --freeze 0 and --drop-path 0",
    )


def freeze(module: Any, layers: int) -> None:
    """Let the embeddings and the first `layers` encoder layers keep their weights.

    Raises:
        InputError: it has not that many layers.
    """
    name, found = encoder_layers(module)
    if layers > len(found):
        raise InputError(
            f"the model has {len(found)} layers, so {layers} can't be frozen",
            hint="freeze fewer, or train the head alone with --linear-probe",
        )
    for key, parameter in module.named_parameters():
        if _depth(key, name, len(found)) <= layers:
            parameter.requires_grad_(False)


def parameter_groups(
    module: Any, *, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups of the weights that learn, the one with the full rate first.

    Groups have `params`, `lr`, `weight_decay`, and `names` of what is in them.
    """
    name, count = ("", 0) if layer_decay == 1 else _layers_of(module)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for wrapped, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        key = _WRAPPERS.sub(r"\1", wrapped).replace("..", ".").lstrip(".")
        above = count + 1 - _depth(key, name, count) if name else 0
        decays = parameter.ndim > 1 and not _NOT_DECAYED.search(key)
        group = groups.setdefault(
            (above, decays),
            {
                "params": [],
                "names": [],
                "lr": learning_rate * layer_decay**above,
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(key)
    return [groups[key] for key in sorted(groups)]


def parameter_counts(module: Any) -> tuple[int, int]:
    """How many weights there are, and how many of them learn."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def _layers_of(module: Any) -> tuple[str, int]:
    inner = module
    while not hasattr(inner, "config"):  # DDP holds the model as `module`
        inner = inner.module
    name, layers = encoder_layers(inner)
    return _WRAPPERS.sub(r"\1", name).replace("..", ".").lstrip("."), len(layers)


def _depth(key: str, layers: str, count: int) -> int:
    """0: embeddings; 1 to count: encoder layers; count + 1: what comes after them."""
    if key.startswith(f"{layers}."):
        return int(key[len(layers) + 1 :].partition(".")[0]) + 1
    return 0 if "embeddings." in key else count + 1
