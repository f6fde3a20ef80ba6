"""A randomly initialised ViT on the disk, for `finetune` to start from; and the settings that suit the digits.

The digits preset: 8x8 images resized to 32 (bicubic), patches of 8 (16 tokens and the class token), 4 layers of width
64, 0.2 million parameters; 80 epochs with shifts, label smoothing, stochastic depth and averaged weights give about
98 % on the 360 test images, whatever the seed (docs/results). The last weights are kept: the few images that could be
set aside to choose by are worth more in training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitdeploy.core.errors import InputError, require
from vitdeploy.core.storage import holds_only, staged_folder
from vitdeploy.models import hub
from vitdeploy.training.config import FinetuneConfig

__all__ = ["create_digits_vit", "create_vit", "digits_config"]

_PIL_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def create_vit(
    folder: str | os.PathLike[str],
    *,
    labels: Sequence[str],
    image_size: int,
    patch_size: int,
    hidden_size: int,
    layers: int,
    heads: int,
    mlp_ratio: int = 4,
    resample: str = "bicubic",
    overwrite: bool = False,
    seed: int = 0,
) -> Path:
    """Write a ViTForImageClassification with random weights, and its image processor, to `folder`.

    The processor resizes to `image_size` pixels a side with Pillow's filter `resample`, scales to 0..1 and
    normalises with mean 0.5 and deviation 0.5 per channel, as ViT's own does.

    Raises:
        InputError: sizes that do not divide.
        OutputExistsError: `folder` exists and may not be replaced.

    Example:
        create_vit("scratch", labels=["cat", "dog"], image_size=32, patch_size=8, hidden_size=48, layers=3, heads=4)
    """
    if image_size % patch_size or hidden_size % heads:
        raise InputError(
            f"image size {image_size} must be a multiple of patch size {patch_size},"
            f" and hidden size {hidden_size} of {heads} heads",
            hint="choose sizes that divide without a remainder",
        )
    if resample not in _PIL_FILTERS:
        raise InputError(f"there is no filter {resample!r}", hint=f"choose one of {', '.join(_PIL_FILTERS)}")
    torch = require("torch", extra="build")
    transformers = require("transformers", extra="build")
    config = transformers.ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp_ratio * hidden_size,
        initializer_range=hidden_size**-0.5,  # 0.02 is for a width of 768; narrow models hardly start with it
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]), hub.quiet_libraries():
        torch.manual_seed(seed)
        module = transformers.ViTForImageClassification(config)
        with staged_folder(Path(folder), overwrite=overwrite, ours=_is_checkpoint, what="checkpoint") as staging:
            module.save_pretrained(staging)
            processor = _processor(image_size, _PIL_FILTERS[resample])
            (staging / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    return Path(folder)


def _is_checkpoint(folder: Path) -> bool:
    names = {"config.json", "preprocessor_config.json", "model.safetensors"}
    return holds_only(folder, names.__contains__) and all((folder / name).is_file() for name in names)


def _processor(image_size: int, resample: int) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def create_digits_vit(folder: str | os.PathLike[str], *, overwrite: bool = False, seed: int = 0) -> Path:
    """The randomly initialised ViT of the digits preset."""
    return create_vit(
        folder,
        labels=[str(digit) for digit in range(10)],
        image_size=32,
        patch_size=8,
        hidden_size=64,
        layers=4,
        heads=4,
        overwrite=overwrite,
        seed=seed,
    )


def digits_config(model: str | os.PathLike[str], output: str | os.PathLike[str], **changes: Any) -> FinetuneConfig:
    """How to train the model of `create_digits_vit` on the digits; `changes` are other fields of FinetuneConfig."""
    settings: dict[str, Any] = {
        "epochs": 80,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "layer_decay": 1.0,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "drop_path": 0.1,
        "ema": 0.99,
        "validation": 0,
        "augment": "shift",
        "threads": 1,
        **changes,
    }
    return FinetuneConfig(model=model, dataset="digits", output=output, **settings)
