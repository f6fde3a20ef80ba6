"""A tiny ViT, the images and the bundle that tests are about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    image_size: int = 32,
    resample: int = 3,
    layers: int = 3,
    labels: tuple[str, ...] = LABELS,
    problem_type: str | None = None,
) -> Path:
    """A tiny ViT classifier with random weights and a ViT image processor, in Hugging Face's layout."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=image_size,
        patch_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=problem_type,
    )
    module = ViTForImageClassification(config)
    with torch.no_grad():  # weights of 0.02 make logits that differ in the third digit only: nothing to compare
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    module.save_pretrained(folder)
    ViTImageProcessor(
        size={"height": image_size, "width": image_size},
        resample=resample,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def write_images(root: Path) -> Path:
    """Class folders of 40 small PNG files of two sizes: noise over a gradient that depends on the class."""
    from PIL import Image

    generator = np.random.default_rng(3)
    for index, label in enumerate(LABELS):
        (root / label).mkdir(parents=True)
        for number in range(4):
            height, width = (24, 40) if number % 2 else (36, 30)
            ramp = np.linspace(0, 25 * index, width)[np.newaxis, :, np.newaxis] + np.zeros((height, 1, 3))
            pixels = np.clip(ramp + generator.integers(0, 120, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


def write_bundle(path: Path, checkpoint: Path, images: Path, precisions: tuple[str, ...] = ("fp16", "int8")) -> Path:
    """The bundle of a tiny checkpoint with those forms, INT8 calibrated on 24 of the images."""
    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.export import export
    from vitdeploy.compiler.quantization.recipe import Recipe

    export(checkpoint, path)
    build(path, precisions, target="onnx", recipe=Recipe(dataset=str(images), count=24))
    return path


def copy_frozen_bundle(path: Path) -> Path:
    """A bundle as `write_bundle` makes it, from the one that is kept frozen: it needs no PyTorch."""
    frozen = Path(__file__).parents[1] / "frozen" / "schema-1" / "plain"
    manifest = json.loads((frozen / "manifest.json").read_text())
    kept = [artifact for artifact in manifest["artifacts"] if artifact["kind"] in ("onnx", "half-plan", "calibration")]
    kept = [artifact for artifact in kept if artifact["precision"] != "bf16"]
    path.mkdir(parents=True)
    for artifact in kept:
        shutil.copy(frozen / artifact["path"], path)
    (path / "manifest.json").write_text(json.dumps({**manifest, "artifacts": kept, "choice": None}))
    return path


def copy_frozen_bundle_with_selftest(path: Path) -> Path:
    """`copy_frozen_bundle`, and what today's build adds to it: the selftest, with what its FP32 graph answers."""
    from vitdeploy.compiler.build import build

    build(copy_frozen_bundle(path), ("fp32", "fp16", "int8"), target="onnx")
    return path
