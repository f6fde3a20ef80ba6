"""Fake quantisation against the arithmetic of the compiler, and against the INT8 graph that ONNX Runtime runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.quantization.arithmetic import fake_quantize
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.core.errors import ModelError
from vitdeploy.models.checkpoints import Checkpoint, load_checkpoint
from vitdeploy.qat.fake import FakeQuantized, Quantizer, fake_quantized
from vitdeploy.qat.rebuild import compare_logits
from vitdeploy.qat.rounding import plan_rounding
from vitdeploy.qat.run import _calibration

IMAGES = [np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8) for seed in range(12)]
# Measured: below 1e-6 of the logits' range where no value lies on a rounding edge, up to 0.008 where one does.
SAME = 0.012


@pytest.mark.parametrize("shift", [0, 90])
def test_values_are_those_of_quantize_and_dequantize(shift: int) -> None:
    import torch

    values = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)
    quantizer = Quantizer(0.03125, shift)
    assert quantizer.scale == 0.03125
    given = quantizer(torch.from_numpy(values)).detach().numpy()
    assert np.array_equal(given, fake_quantize(values, 0.03125, shift).astype(np.float32))


def test_gradients_pass_inside_the_range_and_pull_at_the_scale_outside() -> None:
    import torch

    quantizer = Quantizer(0.125)  # -16 .. 15.875
    values = torch.tensor([0.3, -5.0, 20.0, -30.0], requires_grad=True)
    quantizer(values).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [1, 1, 0, 0]
    wide = torch.full((4,), 40.0)
    quantizer.logarithm.grad = None
    (quantizer(wide) - wide).square().sum().backward()
    assert float(quantizer.logarithm.grad) < 0  # descent makes the scale larger: too much was cut


def bundle_of(checkpoint: Path, folder: Path, images: Path, **recipe: Any) -> Bundle:
    """A bundle whose softmax outputs have the symmetric steps that a tune has and leaves: the same on every target."""
    export(checkpoint, folder)
    bundle = build(folder, ["int8"], target="onnx", recipe=Recipe(dataset=str(images), count=24, **recipe)).bundle
    _, calibration = _calibration(bundle)
    signed = tuple(replace(one, unsigned=None, unsigned_bias=None) for one in calibration.attention)
    return built_from(bundle, replace(calibration, attention=signed))


def built_from(bundle: Bundle, calibration: Calibration) -> Bundle:
    """The bundle with its INT8 built again from another calibration."""
    with bundle.edit() as editor:
        artifact = bundle.find(kind="calibration")
        assert artifact is not None
        editor.path_for("calibration.json").write_text(calibration.dumps())
        editor.add("calibration.json", kind="calibration", built_from=artifact.built_from)
    return build(bundle.path, ["int8"], target="onnx").bundle


def rounded(checkpoint: Checkpoint, bundle: Bundle) -> Any:
    graph, calibration = _calibration(bundle)
    return fake_quantized(checkpoint.module, plan_rounding(graph, calibration, checkpoint.module))


def logits(checkpoint: Checkpoint) -> np.ndarray:
    import torch

    with torch.inference_mode():
        values = checkpoint.processor(IMAGES, return_tensors="pt", input_data_format="channels_last")
        result: np.ndarray = checkpoint.module(**values).logits.numpy()
    return result


def agree(checkpoint: Checkpoint, bundle: Bundle) -> tuple[float, float]:
    """(distance of the INT8 graph from fake quantisation, from FP32), of the logits' range."""
    exact = logits(checkpoint)
    with rounded(checkpoint, bundle) as state:
        state.add_corrections()
        check = compare_logits(state, checkpoint.processor, bundle, IMAGES)
        effect = float(np.abs(logits(checkpoint) - exact).max() / (exact.max() - exact.min()))
    return check.value, effect


def test_the_graph_and_pytorch_round_alike(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """The default recipe: smoothing, shifted GELU, corrected biases."""
    bundle, checkpoint = Bundle.open(tiny_bundle), load_checkpoint(tiny_checkpoint)
    distance, effect = agree(checkpoint, bundle)
    assert distance < SAME < effect  # INT8 is further from FP32 than the two are from each other


def test_all_that_can_be_rounded(tiny_checkpoint: Path, tiny_images: Path, tmp_path: Path) -> None:
    everything = {"attention": True, "patch_embedding": True, "classifier": True}
    bundle, checkpoint = bundle_of(tiny_checkpoint, tmp_path / "b", tiny_images, **everything), load_checkpoint
    with rounded(checkpoint(tiny_checkpoint), bundle) as state:
        assert len(state.groups) == 14 and len(state.attention) == 3
        assert len(state.parameters()) == 14 + 3 * 4
    distance, effect = agree(checkpoint(tiny_checkpoint), bundle)
    assert distance < SAME < effect


def test_layers_that_are_left_out(tiny_bundle_copy: Path, tiny_checkpoint: Path) -> None:
    """What the budget keeps out of INT8 is not rounded, in the graph or here."""
    bundle = Bundle.open(tiny_bundle_copy)
    _, calibration = _calibration(bundle)
    smaller = calibration.leaving_out([group.name for group in calibration.groups[:6]])
    bundle = built_from(bundle, smaller)
    checkpoint = load_checkpoint(tiny_checkpoint)
    with rounded(checkpoint, bundle) as state:
        assert len(state.groups) == len(calibration.groups) - 6
    distance, effect = agree(checkpoint, bundle)
    assert distance < SAME < effect


def test_negative_twin_a_scale_that_is_off_is_seen(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    import torch

    bundle, checkpoint = Bundle.open(tiny_bundle), load_checkpoint(tiny_checkpoint)
    with rounded(checkpoint, bundle) as state:
        state.add_corrections()
        with torch.no_grad():
            for quantizer in state.groups.values():
                quantizer.logarithm += 0.15
        assert compare_logits(state, checkpoint.processor, bundle, IMAGES).value > SAME


def test_the_module_is_left_as_it_was(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    before, names = logits(checkpoint), list(checkpoint.module.state_dict())
    with rounded(checkpoint, Bundle.open(tiny_bundle)) as state:
        assert isinstance(state, FakeQuantized) and list(checkpoint.module.state_dict()) == names
        assert not np.array_equal(logits(checkpoint), before)
    assert np.array_equal(logits(checkpoint), before)


def test_another_model_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    from tests.tools.tiny import write_checkpoint

    other = load_checkpoint(write_checkpoint(tmp_path / "other", seed=1))
    with pytest.raises(ModelError, match="are not those in the bundle"), rounded(other, Bundle.open(tiny_bundle)):
        pass
    fewer = load_checkpoint(write_checkpoint(tmp_path / "fewer", layers=1))
    with pytest.raises(ModelError), rounded(fewer, Bundle.open(tiny_bundle)):
        pass


@pytest.mark.parametrize("family", ["DeiTForImageClassification", "Dinov2WithRegistersForImageClassification"])
def test_other_families(family: str, tiny_images: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    others = {"image_size": 32, "patch_size": 8, "num_labels": 10, "initializer_range": 0.1}
    config = getattr(transformers, family.partition("For")[0] + "Config")(**sizes, **others)
    getattr(transformers, family)(config).save_pretrained(tmp_path / "model")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    bundle = bundle_of(tmp_path / "model", tmp_path / "b", tiny_images, attention=True)
    distance, effect = agree(load_checkpoint(tmp_path / "model"), bundle)
    assert distance < SAME < effect
