"""What is read out of a bundle and of a checkpoint, compared with each other and with attention computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.compiler.preprocessing import reference
from vitdeploy.core.errors import InputError, ModelError
from vitdeploy.core.specs import PreprocessSpec
from vitdeploy.explain import Inside, look_inside
from vitdeploy.explain.inside import undo_normalisation
from vitdeploy.explain.module import look_inside_checkpoint
from vitdeploy.models.checkpoints import Checkpoint, load_checkpoint

IMAGE = np.random.default_rng(5).integers(0, 256, (28, 40, 3), dtype=np.uint8)  # wide: as each Pillow does


@pytest.fixture(scope="module")
def seen(tiny_bundle: Path) -> Inside:
    return look_inside(tiny_bundle, IMAGE)


def normalise(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    centred = rows - rows.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * weight + bias


def first_attention(checkpoint: Checkpoint) -> np.ndarray:
    """Layer 1's softmax (heads, tokens, tokens), from the weights alone."""
    state = {name: values.double().numpy() for name, values in checkpoint.module.state_dict().items()}
    config = checkpoint.module.config

    def linear(rows: np.ndarray, name: str) -> np.ndarray:
        [weight] = [values for key, values in state.items() if key.endswith(f"layers.0.attention.{name}.weight")]
        [bias] = [values for key, values in state.items() if key.endswith(f"layers.0.attention.{name}.bias")]
        return rows @ weight.T + bias

    pixels = checkpoint.processor(IMAGE, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    kernel = state["vit.embeddings.patch_embeddings.projection.weight"]
    size = kernel.shape[-1]
    patches = [
        (kernel * pixels[:, y : y + size, x : x + size]).sum(axis=(1, 2, 3))
        for y in range(0, pixels.shape[1], size)
        for x in range(0, pixels.shape[2], size)
    ]
    rows = np.stack(patches) + state["vit.embeddings.patch_embeddings.projection.bias"]
    rows = np.concatenate([state["vit.embeddings.cls_token"][0], rows]) + state["vit.embeddings.position_embeddings"][0]
    norm = "vit.layers.0.layernorm_before"
    rows = normalise(rows, state[f"{norm}.weight"], state[f"{norm}.bias"], config.layer_norm_eps)
    heads = config.num_attention_heads
    # (tokens, hidden) -> (heads, tokens, head_dim)
    query, key = (linear(rows, name).reshape(len(rows), heads, -1).swapaxes(0, 1) for name in ("q_proj", "k_proj"))
    scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]))
    return scores / scores.sum(axis=-1, keepdims=True)


def test_attention_is_what_the_weights_say(seen: Inside, tiny_checkpoint: Path) -> None:
    expected = first_attention(load_checkpoint(tiny_checkpoint))
    assert seen.attentions[0].shape == (4, 17, 17)
    assert np.abs(seen.attentions[0] - expected).max() < 1e-4  # float32 against float64
    assert np.abs(seen.attentions[1] - expected).max() > 1e-2


def test_a_bundle_and_its_checkpoint_show_the_same(seen: Inside, tiny_checkpoint: Path) -> None:
    other = look_inside(tiny_checkpoint, IMAGE)
    assert (seen.form, other.form) == ("fp32 graph", "PyTorch")
    assert seen.grid == other.grid == (4, 4) and seen.readout == other.readout == (0,)
    assert seen.special_tokens == 1 and seen.patch_size == (8, 8)
    for ours, theirs in zip(seen.attentions, other.attentions, strict=True):
        assert np.abs(ours - theirs).max() < 1e-4  # two float32 implementations
    assert seen.positions is not None and other.positions is not None
    assert np.array_equal(seen.positions, other.positions)
    assert seen.prediction.label == other.prediction.label
    assert seen.prediction.score == pytest.approx(other.prediction.score, abs=1e-4)


def test_pixels_are_those_after_resizing(seen: Inside, tiny_checkpoint: Path) -> None:
    from PIL import Image

    resized = np.asarray(Image.fromarray(IMAGE).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(seen.pixels.astype(int) - resized).max() <= 1  # see docs/preprocessing.md
    other = look_inside(tiny_checkpoint, IMAGE)
    assert np.abs(seen.pixels.astype(int) - other.pixels).max() <= 1


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_normalised_pixels_are_an_image_again(channels: Any) -> None:
    spec = PreprocessSpec(None, None, 1 / 255, (0.1, 0.5, 0.9), (0.25, 0.5, 1.0), channels=channels)
    np.testing.assert_array_equal(undo_normalisation(reference(spec, IMAGE), spec), IMAGE)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_forms_attend_a_little_differently(tiny_bundle: Path, seen: Inside, precision: str) -> None:
    other = look_inside(tiny_bundle, IMAGE, precision=precision)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(seen.attentions, other.attentions, strict=True))
    assert other.form == f"{precision} graph" and 0 < difference < 0.2
    assert other.positions is not None


def family(name: str, **changes: Any) -> Checkpoint:
    """A random classifier of another family, with a ViT image processor."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes.update({"intermediate_size": 96, "image_size": 32, "patch_size": 8, **changes})
    if name.startswith("Swin"):
        sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
        sizes["window_size"] = 4
    if name.startswith("ConvNext"):
        sizes = {"image_size": 32, "depths": [1] * 4, "hidden_sizes": [16] * 4}
    config = getattr(transformers, name.partition("For")[0] + "Config")
    made = config(vision_config=sizes) if name.startswith("Siglip") else config(**sizes)
    made.num_labels = 3
    module = getattr(transformers, name)(made).eval()
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return Checkpoint(module, processor, ("a", "b", "c"), name, str, True, None, Path())


@pytest.mark.parametrize(
    ("name", "special", "readout", "positions"),
    [
        ("DeiTForImageClassification", 2, (0,), True),
        ("DeiTForImageClassificationWithTeacher", 2, (0, 1), True),
        ("Dinov2ForImageClassification", 1, (0,), True),
        ("Dinov2WithRegistersForImageClassification", 5, (0,), True),
        ("BeitForImageClassification", 1, (), False),
        ("SiglipForImageClassification", 0, (), True),
    ],
)
def test_families(name: str, special: int, readout: tuple[int, ...], positions: bool) -> None:
    seen = look_inside_checkpoint(family(name), IMAGE)
    assert (seen.special_tokens, seen.readout, seen.positions is not None) == (special, readout, positions)
    assert all(np.allclose(heads.sum(axis=-1), 1, atol=1e-5) for heads in seen.attentions)
    assert (seen.no_positions is None) == positions


def test_positions_are_resized_as_the_model_does_it() -> None:
    seen = look_inside_checkpoint(family("Dinov2ForImageClassification", image_size=64), IMAGE)
    assert seen.grid == (4, 4) and seen.positions is not None and seen.positions.shape == (16, 48)


@pytest.mark.parametrize(
    ("name", "words"),
    [("SwinForImageClassification", "attends inside windows"), ("ConvNextForImageClassification", "no attention")],
)
def test_what_cannot_be_explained_says_why(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        look_inside_checkpoint(family(name), IMAGE)
    assert "DINOv2" in str(caught.value.hint)


def test_a_checkpoint_has_no_forms(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no forms"):
        look_inside(tiny_checkpoint, IMAGE, precision="int8")
    with pytest.raises(InputError, match="has no bf16 graph"):
        look_inside(tiny_bundle, IMAGE, precision="bf16")
