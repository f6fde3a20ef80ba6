"""timm's own checkpoints, as timm saves them: the classes, vectors and pixels that timm itself makes of an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy import ModelError, export, load
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.compiler.passes.save import save
from vitdeploy.compiler.preprocessing import build_preprocessing, spec_from_processor
from vitdeploy.models.checkpoints import load_checkpoint
from vitdeploy.models.folders import CheckpointFolder, open_folder
from vitdeploy.models.processors import load_processor
from vitdeploy.models.tasks import TaskRequest, cosines

try:
    import timm
except (ImportError, RuntimeError) as error:  # torchvision of another torch raises RuntimeError
    pytest.skip(f"timm is not installed, or its torchvision does not fit this torch: {error}", allow_module_level=True)

SIZE = 32
_VIT = {"img_size": SIZE, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", _VIT),
    "deit": ("deit_tiny_patch16_224", _VIT),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", _VIT),
    "deit3": ("deit3_small_patch16_224", _VIT),
    "eva02": ("eva02_tiny_patch14_224", _VIT),
    "beit": ("beit_base_patch16_224", _VIT),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": SIZE, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)},
    ),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}),
    "dinov2": ("vit_small_patch14_dinov2", _VIT),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", _VIT),
    "dinov3": ("vit_small_patch16_dinov3", _VIT),
}
QUICK = {"vit", "eva02", "swin", "dinov3"}
LABELS = ["ant", "bee", "cat", "dog"]
PICTURES = ((SIZE, SIZE), (40, 61), (91, 33), (200, 150))
SETTINGS: dict[str, dict[str, Any]] = {
    "centre": {"crop_pct": 0.9, "interpolation": "bicubic"},
    "narrow": {"crop_pct": 0.875, "interpolation": "bilinear", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    "whole": {"crop_pct": 1.0, "interpolation": "bicubic"},
    "zeros around": {"crop_pct": 1.15, "interpolation": "bicubic"},
    "squashed": {"crop_pct": 0.95, "crop_mode": "squash", "interpolation": "bicubic"},
    "defaults": {"crop_pct": None, "interpolation": None, "mean": None, "std": None},
    "lanczos": {"crop_pct": 0.9, "interpolation": "lanczos"},
}


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    noise = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in PICTURES]
    return [pixels // (place + 1) for place, pixels in enumerate(noise)]


def saved(name: str, folder: Path, classes: int, **settings: Any) -> Any:
    """timm's own module, saved by timm."""
    import torch

    torch.manual_seed(0)
    architecture, arguments = MODELS[name]
    module = timm.create_model(architecture, num_classes=classes, **arguments).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():  # zeros hide what reads them
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.mul_(max(3.0, 0.1 / float(parameter.std())))  # answers that differ in the first digits
    config = {"label_names": LABELS} if classes else {}
    data = {"input_size": (3, SIZE, SIZE), **settings}
    timm.models.save_for_hf(
        module, str(folder), model_config=config, model_args=arguments, safe_serialization=True, data_config=data
    )
    return module


def timm_says(module: Any, folder: Path, images: list[np.ndarray]) -> np.ndarray:
    """With the transform that timm makes of the stored settings."""
    import torch
    from timm.data import create_transform, resolve_data_config

    stored = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=stored), is_training=False)
    with torch.inference_mode():
        return np.concatenate([module(transform(Image.fromarray(image))[None]).numpy() for image in images])


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in MODELS]
)
def test_a_classifier_gives_timms_logits_of_any_image(name: str, tmp_path: Path) -> None:
    module = saved(name, tmp_path / "checkpoint", len(LABELS))
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert bundle.manifest.labels == tuple(LABELS) and bundle.manifest.task == "single_label"
    wanted = timm_says(module, tmp_path / "checkpoint", pictures())
    with load(bundle, "onnxruntime", threads=1) as classifier:
        np.testing.assert_allclose(classifier.logits(pictures()), wanted, atol=2e-3 * np.ptp(wanted))
    assert np.ptp(wanted, axis=0).max() > 0.01 * np.ptp(wanted), "images are told apart"


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in MODELS]
)
def test_a_feature_extractor_gives_timms_vectors(name: str, tmp_path: Path) -> None:
    module = saved(name, tmp_path / "checkpoint", 0)
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle")
    wanted = timm_says(module, tmp_path / "checkpoint", pictures())
    spec = bundle.manifest.embedding
    assert spec is not None and (spec.dimensions, spec.normalized) == (wanted.shape[1], False)
    with load(bundle, "onnxruntime", threads=1) as model:
        found = model.embed(pictures())
    assert cosines(found, wanted).min() >= 0.99999
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.ptp(wanted))


def test_a_classifier_gives_its_vectors_when_asked(tmp_path: Path) -> None:
    module = saved("vit", tmp_path / "checkpoint", len(LABELS))
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", task="embedding")
    module.reset_classifier(0)
    with load(bundle, "onnxruntime", threads=1) as model:
        wanted = timm_says(module, tmp_path / "checkpoint", pictures())
        assert cosines(model.embed(pictures()), wanted).min() >= 0.99999


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_are_those_of_timms_transform_to_one_level(name: str, tmp_path: Path) -> None:
    """Sizes whose crop has no middle among them, on both sides of an even pixel."""
    from timm.data import create_transform, resolve_data_config

    settings = {"input_size": [3, SIZE, SIZE], "mean": [0.5] * 3, "std": [0.5] * 3, **SETTINGS[name]}
    config = {"model_type": "timm_wrapper", "pretrained_cfg": settings}
    folder = CheckpointFolder(tmp_path, "timm/vit", "timm/vit", False, None, config, ())
    spec = spec_from_processor(load_processor(folder))
    data = resolve_data_config({}, pretrained_cfg=settings)
    transform = create_transform(**data, is_training=False)
    generator = np.random.default_rng(1)
    for height in (32, 35, 37, 53, 100):
        for width in (32, 39, 41, 43, 45, 60):
            image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            size = None if settings["interpolation"] in (None, "bilinear", "bicubic") else (height, width)
            save(build_preprocessing(spec, input_size=size), tmp_path / "pixels.onnx")
            with OnnxRuntimeRunner(tmp_path / "pixels.onnx") as runner:
                found = runner.infer({"image": image[np.newaxis]})["pixel_values"][0]
            wanted = transform(Image.fromarray(image)).numpy()
            levels = np.abs(found - wanted) * 255 * np.array(data["std"]).reshape(3, 1, 1)
            assert levels.max() <= 1.001, (height, width)
            assert (levels > 0.5).mean() < 0.02, (height, width)


def test_the_size_that_timm_tests_at_is_there_when_asked(tmp_path: Path) -> None:
    """validate.py takes test_input_size and test_crop_pct; resolve_model_data_config, as model cards do, does not."""
    from timm.data import resolve_data_config

    module = saved("convnext", tmp_path / "checkpoint", len(LABELS), crop_pct=0.875)
    file = tmp_path / "checkpoint" / "config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"] |= {"test_input_size": [3, 64, 64], "test_crop_pct": 1.0}
    file.write_text(json.dumps(config))
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert bundle.manifest.preprocess.crop == (SIZE, SIZE)
    tested = export(tmp_path / "checkpoint", tmp_path / "tested", image_size=(64, 64))
    spec, data = tested.manifest.preprocess, resolve_data_config({}, None, module, use_test_size=True)
    assert data is not None and spec.crop == (64, 64) and spec.resize is not None
    assert spec.resize.shortest_edge == 64  # 64 / test_crop_pct, where its crop_pct would make it 73
    other = export(tmp_path / "checkpoint", tmp_path / "other", image_size=(48, 48))
    assert other.manifest.preprocess.resize is not None and other.manifest.preprocess.resize.shortest_edge == 54


def test_a_feature_extractor_has_no_classes(tmp_path: Path) -> None:
    saved("vit", tmp_path / "checkpoint", 0)
    folder = open_folder(tmp_path / "checkpoint")
    assert folder.config["model_type"] == "timm_wrapper" and folder.weights[0].name == "model.safetensors"
    with pytest.raises(ModelError, match=r"has no classes") as caught:
        load_checkpoint(tmp_path / "checkpoint", request=TaskRequest("classification"))
    assert "--task" in str(caught.value.hint)


def test_an_architecture_that_this_timm_lacks_is_named(tmp_path: Path) -> None:
    saved("vit", tmp_path / "checkpoint", len(LABELS))
    file = tmp_path / "checkpoint" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architecture": "vit_of_tomorrow"}))
    with pytest.raises(ModelError, match="vit_of_tomorrow"):
        load_checkpoint(tmp_path / "checkpoint")
