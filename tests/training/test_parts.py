"""The parts of fine-tuning: image size, batches, augmentation, the curve's picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitdeploy.core.errors import InputError, ModelError, OutputExistsError
from vitdeploy.data import load_dataset
from vitdeploy.models.checkpoints import load_checkpoint, open_folder
from vitdeploy.training import Curve, FinetuneConfig, create_vit, finetune
from vitdeploy.training.curve import draw_curve
from vitdeploy.training.data import Augmenter, Batcher, Rows
from vitdeploy.training.loop import _refuse_sharding, make_plan
from vitdeploy.training.models import load_trainable


def test_image_size_resizes_positions_as_transformers_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Against the model's own interpolate_pos_encoding at 48 px; both are float32, so 1e-5 is rounding."""
    import torch

    folder = open_folder(tiny_checkpoint)
    original = load_checkpoint(tiny_checkpoint)
    resized = load_trainable(folder, original.labels, image_size=48, seed=0)
    assert resized.module.config.image_size == 48
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 48, 48)).astype(np.float32))
    with torch.inference_mode():
        expected = original.module(pixels, interpolate_pos_encoding=True).logits
        assert torch.allclose(resized.module.eval()(pixels).logits, expected, atol=1e-5)
        positions = next(value for name, value in resized.module.named_parameters() if "position_emb" in name)
        positions[:, 1:] = positions[:, 1:].flip(1)  # negative twin: the grid turned round must be noticed
        assert not torch.allclose(resized.module(pixels).logits, expected, atol=1e-3)
    resized = load_trainable(folder, original.labels, image_size=48, seed=0)
    resized.module.save_pretrained(tmp_path)
    resized.processor.save_pretrained(tmp_path)
    again = load_checkpoint(tmp_path)
    assert again.processor(np.zeros((9, 7, 3), np.uint8), return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 48)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"height": 48, "width": 48}
    assert torch.allclose(again.module(pixels).logits, expected, atol=1e-5)


def test_image_sizes_that_can_not_be(tiny_checkpoint: Path) -> None:
    folder = open_folder(tiny_checkpoint)
    with pytest.raises(InputError, match="not a multiple of the patch size 8") as error:
        load_trainable(folder, ("a", "b"), image_size=50, seed=0)
    assert "--image-size 48" in str(error.value.hint)


def test_processor_with_a_centre_crop_keeps_its_proportion(tmp_path: Path) -> None:
    """DeiT's processor: resize to 256, crop 224. At 112 it must resize to 128."""
    from transformers import AutoImageProcessor

    from vitdeploy.training.models import _fit_processor

    settings = {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    same, notes = _fit_processor(processor, 224)
    assert same is processor and notes == []
    fitted, notes = _fit_processor(processor, 112)
    assert dict(fitted.size)["height"] == 128
    assert fitted(np.zeros((50, 40, 3), np.uint8), return_tensors="pt")["pixel_values"].shape == (1, 3, 112, 112)
    assert "112x112" in notes[0]


def test_deit_and_dinov2_can_be_tuned_at_another_size(tmp_path: Path) -> None:
    """Two special tokens, and a model that interpolates by itself."""
    import torch
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    for kind in ("DeiT", "Dinov2"):
        folder = tmp_path / kind
        config = getattr(transformers, f"{kind}Config")(**small)
        getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}})
        )
        made = load_trainable(open_folder(folder), ("a", "b", "c"), image_size=64, seed=0)
        assert made.module.eval()(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 3)


def test_models_without_a_patch_size_are_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not supported for .*, a resnet model: .* no image_size"):
        load_trainable(open_folder(tmp_path), ("a", "b"), image_size=None, seed=0)
    # Before an image is looked for: to decode a large dataset once takes minutes.
    with pytest.raises(ModelError, match="a resnet model"):
        finetune(FinetuneConfig(model=str(tmp_path), dataset="nowhere", output=str(tmp_path.with_name("out"))))


def test_new_head_depends_on_the_seed_only(tiny_checkpoint: Path) -> None:
    import torch

    folder = open_folder(tiny_checkpoint)
    first, again, other = (load_trainable(folder, ("a", "b"), image_size=None, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.module.classifier.weight, again.module.classifier.weight)
    assert not torch.equal(first.module.classifier.weight, other.module.classifier.weight)


def test_batches_are_the_processors_own_cached_or_not(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from vitdeploy.training import data

    processor = load_checkpoint(tiny_checkpoint).processor
    train = load_dataset("digits", "train", limit=12)
    rows = Rows(train)
    expected = processor([train.image(index) for index in (3, 5, 3)], return_tensors="pt")["pixel_values"]
    for limit in (1 << 20, 0):
        monkeypatch.setattr(data, "_CACHE_LIMIT_BYTES", limit)
        batcher = Batcher(processor, train, Augmenter("none", 0))
        for _ in range(2):
            batch = batcher([rows[3], rows[5], rows[3]])
            assert torch.equal(batch["pixel_values"], expected)
            assert batch["labels"].tolist() == [train.label_ids[index] for index in (3, 5, 3)]
        assert len(batcher._cache) == (2 if limit else 0)


def test_only_training_images_are_augmented(tiny_checkpoint: Path) -> None:
    import torch

    processor = load_checkpoint(tiny_checkpoint).processor
    train, test = (load_dataset("digits", split, limit=12) for split in ("train", "test"))
    batcher = Batcher(processor, train, Augmenter("shift", 0))
    plain = Batcher(processor, train, Augmenter("none", 0))
    for dataset, changed in ((train, True), (test, False)):
        rows = [Rows(dataset)[index] for index in range(8)]
        assert torch.equal(batcher(rows)["pixel_values"], plain(rows)["pixel_values"]) is not changed


def test_augmentations_do_what_they_say() -> None:
    import torch

    image = torch.arange(16.0).repeat(1, 3, 16, 1)  # (1, 3, 16, 16), each column has its number
    many = image.expand(64, 3, 16, 16)
    draws = [(0, index) for index in range(64)]
    assert Augmenter("none", 0)(many, draws) is many
    shifted = Augmenter("shift", 0)(many, draws)
    offsets = shifted[:, 0, 0, 8] - 8
    assert sorted(set(offsets.tolist())) == [-2, -1, 0, 1, 2]  # an eighth of 16, both ways, each image on its own
    assert bool((shifted.diff(dim=-1) >= 0).all())  # never mirrored, edges repeated
    flipped = Augmenter("flip-shift", 0)(many, draws)
    mirrored = (flipped[:, 0, 0, 4] > flipped[:, 0, 0, 12]).float().mean()
    assert 0.25 < mirrored < 0.75  # half of 64: further off is beyond four deviations
    upright = image.transpose(-1, -2).expand(64, 3, 16, 16)
    assert bool((Augmenter("flip-shift", 0)(upright, draws).diff(dim=-2) >= 0).all())  # never upside down


def test_plan() -> None:
    config = FinetuneConfig(model="m", dataset="d", output="o", epochs=10, batch_size=32, warmup_ratio=0.1)
    plan = make_plan(config, 320)
    assert (plan.steps, plan.warmup_steps, plan.evaluate_every) == (100, 10, 10)
    short = make_plan(replace(config, epochs=1), 3200)
    assert (short.steps, short.evaluate_every) == (100, 20)  # at least five evaluations
    assert make_plan(replace(config, max_steps=1), 3200).warmup_steps == 0


def test_scratch_models(tmp_path: Path) -> None:
    import torch

    shape = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "layers": 1, "heads": 2}
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        create_vit(tmp_path / name, labels=["cat", "dog"], seed=seed, resample="bilinear", **shape)
    assert torch.equal(state, torch.get_rng_state())
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    checkpoint = load_checkpoint(tmp_path / "a")
    assert checkpoint.labels == ("cat", "dog")
    assert int(checkpoint.processor.resample) == 2
    with pytest.raises(OutputExistsError):
        create_vit(tmp_path / "a", labels=["x", "y"], **shape)
    create_vit(tmp_path / "a", labels=["x", "y"], overwrite=True, **shape)
    assert load_checkpoint(tmp_path / "a").labels == ("x", "y")
    with pytest.raises(InputError, match="multiple of patch size"):
        create_vit(tmp_path / "d", labels=["x", "y"], **{**shape, "image_size": 20})
    with pytest.raises(InputError, match="no filter"):
        create_vit(tmp_path / "d", labels=["x", "y"], resample="area", **shape)


def test_curve_is_drawn_within_its_frame() -> None:
    curve = Curve(
        train=tuple({"step": step, "epoch": 0.1, "loss": 2 / step} for step in range(1, 20)),
        validation=(
            {"step": 0, "epoch": 0, "loss": 2.3, "accuracy": 0.1},
            {"step": 19, "epoch": 1, "loss": 1, "accuracy": 0.9},
        ),
        best_step=19,
    )
    root = ElementTree.fromstring(draw_curve(curve, "digits & <more>"))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    lines = root.findall("{*}polyline")
    assert len(lines) == 3
    points = [tuple(map(float, pair.split(","))) for line in lines for pair in line.attrib["points"].split()]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert "digits & <more>" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    nothing = draw_curve(Curve((), (), None), "empty")
    assert "not measured" in nothing


def test_objective_smooths_targets_in_training_only() -> None:
    """Against the definition: (1 - e) * one-hot + e / classes; float32, so 1e-6 is rounding."""
    import torch

    from vitdeploy.training.objective import CrossEntropy

    class Fixed(torch.nn.Module):
        def forward(self, pixel_values: Any) -> Any:
            return SimpleNamespace(logits=pixel_values)

    logits, labels = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 1])
    hard = torch.nn.functional.one_hot(labels, 3).float()
    smooth = 0.7 * hard + 0.3 / 3
    log_scores = logits.log_softmax(-1)
    module, objective = Fixed(), CrossEntropy(0.3)
    for training, targets in ((True, smooth), (False, hard)):
        loss, output = objective(module.train(training), {"pixel_values": logits, "labels": labels})
        assert output.logits is logits
        assert loss.item() == pytest.approx(-(targets * log_scores).sum(-1).mean().item(), abs=1e-6)
    mixed, _ = objective(module.train(), {"pixel_values": logits, "labels": hard})  # as probabilities: the same
    assert mixed.item() == pytest.approx(-(smooth * log_scores).sum(-1).mean().item(), abs=1e-6)


def test_a_model_in_shards_is_refused() -> None:
    _refuse_sharding(False)
    with pytest.raises(InputError, match="FSDP is not supported"):
        _refuse_sharding(True)
