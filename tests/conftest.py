"""Fixtures that many tests share: a seeded tiny ViT, the bundle exported from it, the larger test data."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitdeploy.machine import kernels_obstacle

# A shell starts background jobs with Ctrl-C ignored; tests that send it need Python's own way.
signal.signal(signal.SIGINT, signal.default_int_handler)

CPU_BACKENDS = [
    "onnxruntime",
    "openvino",
    pytest.param("native", marks=pytest.mark.skipif(bool(kernels_obstacle()), reason=str(kernels_obstacle()))),
]
"""What runs INT8 on a CPU."""
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_checkpoint(folder: Path, *, seed: int = 0, image_size: int = 32, resample: int = 3, layers: int = 3) -> Path:
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
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
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


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a seeded tiny ViT: hidden 48, 3 layers, 4 heads, image 32, patch 8, 10 classes. Read-only."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


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


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `write_images`. Read-only."""
    return write_images(tmp_path_factory.mktemp("images"))


def write_bundle(path: Path, checkpoint: Path, images: Path, precisions: tuple[str, ...] = ("fp16", "int8")) -> Path:
    """The bundle of a tiny checkpoint with those forms, INT8 calibrated on 24 of the images."""
    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.export import export
    from vitdeploy.compiler.recipe import Recipe

    export(checkpoint, path)
    build(path, precisions, target="onnx", recipe=Recipe(dataset=str(images), count=24))
    return path


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_checkpoint` with FP32, FP16 and both INT8 graphs. Read-only: copy it to change it.

    A device without PyTorch takes one that `python -m tests.gpu.make_bundle` wrote elsewhere: VITDEPLOY_TINY_BUNDLE.
    """
    made = os.environ.get("VITDEPLOY_TINY_BUNDLE")
    if made:
        return Path(made)
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return write_bundle(path, request.getfixturevalue("tiny_checkpoint"), request.getfixturevalue("tiny_images"))


@pytest.fixture
def tiny_bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle` that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The larger test data: a folder with cifar10/ and models/."""
    value = os.environ.get("VITDEPLOY_TEST_DATA")
    if not value:
        pytest.skip("VITDEPLOY_TEST_DATA names no folder with the larger test data")
    return Path(value)


@pytest.fixture
def cli() -> Callable[..., object]:
    """Run the command line in this process: `cli("inspect", path)` -> an Outcome, errors rendered as users see them."""
    from tests.command_line import invoke

    return invoke


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that our own INT8 kernels are not for."""
    from vitdeploy.runtime import selection

    monkeypatch.setattr(selection, "kernels_obstacle", lambda: ("this processor is none for them", "take another"))
