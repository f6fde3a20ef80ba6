"""What changes learning: rates by layer, weight decay, augmentation, stochastic depth, averages, frozen layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.training import DIGITS, weights_of
from vitdeploy.core.errors import InputError, ModelError
from vitdeploy.data import load_dataset
from vitdeploy.models.checkpoints import load_checkpoint, open_folder
from vitdeploy.training import FinetuneConfig, FinetuneResult, create_vit, finetune
from vitdeploy.training.augment import Augmenter, Mixer, RandAugmenter
from vitdeploy.training.data import Batcher, EpochSampler, Rows
from vitdeploy.training.models import load_trainable
from vitdeploy.training.objective import CrossEntropy
from vitdeploy.training.parameters import encoder_layers, freeze, parameter_counts, parameter_groups
from vitdeploy.training.regularise import MovingAverage, add_stochastic_depth

Short = Callable[..., FinetuneConfig]
Whole = Callable[..., tuple[Path, FinetuneResult]]


@pytest.fixture
def module(scratch: Path) -> Any:
    return load_checkpoint(scratch).module


def test_learning_rates_fall_from_layer_to_layer(module: Any) -> None:
    """Two layers: the head learns at the full rate, then 0.5, 0.25, and the embeddings at 0.125 of it."""
    groups = parameter_groups(module, learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert set(rates) == {name for name, _ in module.named_parameters()}
    layers, _ = encoder_layers(module)
    for name, rate in rates.items():
        expected = 0.125 if "embeddings." in name else 1.0
        expected = {f"{layers}.0.": 0.25, f"{layers}.1.": 0.5}.get(name[: len(layers) + 3], expected)
        assert rate == expected, name
    assert groups[0]["lr"] == 1.0  # what the Trainer logs
    same = parameter_groups(module, learning_rate=1.0, layer_decay=1.0, weight_decay=0.1)
    assert {group["lr"] for group in same} == {1.0} and len(same) == 2


def test_biases_norms_tokens_and_positions_do_not_decay(module: Any) -> None:
    groups = parameter_groups(module, learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            spared = parameter.ndim == 1 or name.endswith(("cls_token", "position_embeddings"))
            assert group["weight_decay"] == (0.0 if spared else 0.1), name
    names = [name for group in groups if group["weight_decay"] == 0 for name in group["names"]]
    assert any("layernorm" in name for name in names) and any(name.endswith("bias") for name in names)


def test_wrapped_models_get_the_same_groups(module: Any) -> None:
    """As DDP names them."""
    import torch

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.module = inner

    plain, wrapped = (
        parameter_groups(each, learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
        for each in (module, Wrapper(module))
    )
    assert [group["names"] for group in plain] == [group["names"] for group in wrapped]


@pytest.mark.parametrize("kind", ["DeiT", "Dinov2", "Beit"])
def test_other_models_of_the_family(kind: str) -> None:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    module = getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(**small))
    groups = parameter_groups(module, learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    assert sorted({group["lr"] for group in groups}) == [0.125, 0.25, 0.5, 1.0]
    freeze(module, 1)
    total, learning = parameter_counts(module)
    assert 0 < learning < total


def test_frozen_layers_stay_as_they_were(short: Short, scratch: Path, tmp_path: Path) -> None:
    finetune(short(freeze=1, learning_rate=1e-2))
    before, after = weights_of(scratch), weights_of(tmp_path / "out")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and not any("embeddings" in name or ".0." in name for name in changed)
    assert any(".1." in name for name in changed) and "classifier.weight" in changed
    with pytest.raises(InputError, match="2 layers, so 3 can't be frozen"):
        finetune(short("none", freeze=3))


def test_stochastic_depth_leaves_out_whole_branches(module: Any) -> None:
    """At rate 0.5 the last layer passes an image on unchanged where both branches are left out; in evaluation never."""
    import torch

    torch.manual_seed(0)
    add_stochastic_depth(module, 0.5)
    _, layers = encoder_layers(module)
    tokens = torch.randn(400, 5, 48)
    with torch.inference_mode():
        whole = layers[1].eval()(tokens)
        dropped = layers[1].train()(tokens)
        first = layers[0].train()(tokens)
    unchanged = (dropped == tokens).all(dim=(1, 2)).float().mean()
    assert 0.18 < unchanged < 0.33  # a quarter of 400; further off is beyond three deviations
    assert not bool((whole == tokens).all(dim=(1, 2)).any())
    assert not bool((first == tokens).all(dim=(1, 2)).any())  # the first layer's rate is 0
    assert torch.allclose(dropped.mean(), whole.mean(), atol=0.02)  # what is kept is scaled up


def test_models_with_a_rate_of_their_own_are_given_it(tmp_path: Path) -> None:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**small)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}'
    )
    model = load_trainable(open_folder(tmp_path), ("a", "b"), image_size=None, seed=0, drop_path=0.3)
    rates = [part.drop_prob for part in model.module.modules() if type(part).__name__ == "Dinov2DropPath"]
    assert max(rates) == pytest.approx(0.3)


def test_models_without_a_place_for_stochastic_depth() -> None:
    import torch

    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"num_hidden_layers": 1, "model_type": "bare"})()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    with pytest.raises(ModelError, match="no place for stochastic depth"):
        add_stochastic_depth(Bare(), 0.1)


def test_moving_average_is_the_recurrence(module: Any) -> None:
    import torch

    average = MovingAverage(module, 0.5)
    shadow = module.classifier.weight.detach().clone()
    for step in (1, 2, 3):
        with torch.no_grad():
            module.classifier.weight += step
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        shadow = decay * shadow + (1 - decay) * module.classifier.weight.detach()
    last = module.classifier.weight.detach().clone()
    with average.applied():
        assert torch.allclose(module.classifier.weight, shadow, atol=1e-6)
    assert torch.equal(module.classifier.weight, last)


def test_what_is_kept_is_the_average(short: Short, whole: Whole, tmp_path: Path) -> None:
    """With a decay near 1 the kept weights lie between the first and the last."""
    folder, usual = whole(validation=0)
    averaged = finetune(short("ema", validation=0, ema=0.999))
    assert usual.curve.train == averaged.curve.train  # the run itself is the same
    kept, last = (weights_of(each)["classifier.weight"] for each in (tmp_path / "ema", folder))
    assert not np.array_equal(kept, last)


def test_accumulated_batches_are_one_large_batch(short: Short, tmp_path: Path) -> None:
    """Four batches of 5 or one of 20: the same images; float32 sums in another order, which Adam makes larger."""
    large = finetune(short("large", batch_size=20, limit_train=100, validation=0))
    small = finetune(short("small", batch_size=5, accumulate=4, limit_train=100, validation=0))
    assert large.steps == small.steps == 4
    left, right = ([point["loss"] for point in result.curve.train] for result in (large, small))
    np.testing.assert_allclose(left, right, atol=1e-4)
    other = finetune(short("other", batch_size=5, limit_train=100, validation=0))  # negative twin
    assert abs(other.curve.train[-1]["loss"] - large.curve.train[-1]["loss"]) > 1e-3


def test_worker_processes_see_the_same_images(short: Short) -> None:
    alone = finetune(short("alone", augment="flip-shift"))
    helped = finetune(short("helped", augment="flip-shift", workers=2))
    assert alone.curve == helped.curve


def test_every_epoch_has_every_image_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(50, seed=3)
    first, again = list(sampler), list(sampler)
    sampler.epoch = 1
    second = list(sampler)
    assert first == again and [index for index, _ in first] != [index for index, _ in second]
    assert sorted(index for index, _ in second) == list(range(50)) and {epoch for _, epoch in second} == {1}
    assert list(EpochSampler(50, seed=4)) != first


def test_draws_depend_on_image_and_epoch_alone(scratch: Path) -> None:
    import torch

    train = load_dataset("digits", "train", limit=12)
    batcher = Batcher(load_checkpoint(scratch).processor, train, Augmenter("flip-shift", 0))
    rows = Rows(train)
    together = batcher([rows[(index, 2)] for index in range(12)])["pixel_values"]
    apart = torch.cat([batcher([rows[(index, 2)]])["pixel_values"] for index in reversed(range(12))]).flip(0)
    assert torch.equal(together, apart)
    assert not torch.equal(together, batcher([rows[(index, 3)] for index in range(12)])["pixel_values"])


def test_randaugment_stays_in_range_and_leaves_randomness_alone() -> None:
    import torch

    pytest.importorskip("kornia")
    mean, deviation = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    raw = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    pixels = (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
    draws = [(0, index) for index in range(6)]
    state = torch.get_rng_state()
    changed = RandAugmenter(9, 0, mean, deviation)(pixels, draws)
    assert torch.equal(state, torch.get_rng_state())
    back = changed * torch.tensor(deviation).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    assert float(back.min()) >= -1e-5 and float(back.max()) <= 1 + 1e-5
    assert not torch.allclose(changed, pixels, atol=0.05)
    assert torch.equal(changed, RandAugmenter(9, 0, mean, deviation)(pixels, draws))
    for other in (RandAugmenter(9, 1, mean, deviation), RandAugmenter(25, 0, mean, deviation)):
        assert not torch.equal(changed, other(pixels, draws))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_say_what_is_in_the_image(mixup: float, cutmix: float) -> None:
    """Each class is an image of one constant, so the mean of a mixed image is that of its target: to a pixel's area."""
    import torch

    pytest.importorskip("kornia")
    labels = torch.arange(8) % 4
    pixels = labels.float().view(8, 1, 1, 1).expand(8, 3, 32, 32).clone()
    mixer = Mixer(mixup, cutmix, classes=4, seed=0)
    boxed = 0
    for epoch in range(6):
        mixed, targets = mixer(pixels, labels, (epoch, 0))
        assert targets.shape == (8, 4) and torch.allclose(targets.sum(1), torch.ones(8))
        expected = targets @ torch.arange(4.0)
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), expected, atol=1e-4)
        boxed += int(all(float(image.frac().abs().max()) == 0 for image in mixed))  # boxes of whole values
    assert boxed == {(0.8, 0.0): 0, (0.0, 1.0): 6}.get((mixup, cutmix), boxed)
    if mixup and cutmix:
        assert 0 < boxed < 6  # some batches of either kind


def test_mixups_shares_follow_alpha() -> None:
    """A small alpha leaves most images nearly as they are."""
    import torch

    pytest.importorskip("kornia")
    labels = torch.arange(64) % 4
    pixels = torch.zeros(64, 3, 8, 8)

    def mixing(alpha: float) -> float:
        _, targets = Mixer(alpha, 0.0, classes=4, seed=0)(pixels, labels, (0, 0))
        return float((1 - targets.max(dim=1).values).mean())

    assert mixing(0.05) < 0.08 < 0.15 < mixing(5.0)


def test_without_kornia_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, short: Short) -> None:
    import sys

    from vitdeploy.core.errors import DependencyError

    for name in ("kornia", "kornia.augmentation", "kornia.augmentation.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    for change in ({"mixup": 0.8}, {"randaugment": 9}):
        with pytest.raises(DependencyError) as error:
            finetune(short(**change))
        assert "kornia" in str(error.value.hint)


def test_gradient_checkpointing_changes_nothing(short: Short, tmp_path: Path) -> None:
    class Peek(CrossEntropy):
        """How much autograd keeps for one batch."""

        kept = 0

        def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
            import torch

            sizes: list[int] = []
            hooks = torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
            )
            with hooks:
                answer = super().__call__(module, batch)
            self.kept = max(self.kept, sum(sizes))
            return answer

    usual, saved = Peek(), Peek()
    first = finetune(short("usual"), objective=usual)
    second = finetune(short("saved", gradient_checkpointing=True), objective=saved)
    left, right = ([point["loss"] for point in result.curve.train] for result in (first, second))
    np.testing.assert_allclose(left, right, atol=1e-6)
    assert saved.kept < usual.kept / 2


def test_mixed_precision_changes_the_computation_not_the_weights_type(
    short: Short, whole: Whole, tmp_path: Path
) -> None:
    import torch

    seen: set[Any] = set()

    class Peek(CrossEntropy):
        def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
            seen.add(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
            return super().__call__(module, batch)

    if torch.cuda.is_available():
        pytest.skip("on a GPU the default is no longer fp32")
    finetune(short("bf16", precision="bf16"), objective=Peek())
    usual, rounded = weights_of(whole()[0]), weights_of(tmp_path / "bf16")
    assert {value.dtype for value in rounded.values()} == {np.dtype(np.float32)}
    assert not np.array_equal(usual["classifier.weight"], rounded["classifier.weight"])
    with pytest.raises(InputError, match="fp16 training needs a GPU"):
        finetune(short("none", precision="fp16"))


def test_patience_stops_a_run_that_gets_no_better(short: Short) -> None:
    """At a rate of almost nothing the first evaluation is the best one."""
    config = short(max_steps=40, learning_rate=1e-12, batch_size=12)
    stopped = finetune(replace(config, patience=2))
    assert stopped.steps < 40 and len(stopped.curve.validation) <= 4
    assert finetune(replace(config, output=config.output.with_name("whole"), patience=None)).steps == 40  # type: ignore[union-attr]


@pytest.mark.full
def test_torch_compile(short: Short) -> None:
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    plain, compiled = finetune(short("plain")), finetune(short("compiled", compile=True))
    left, right = ([point["loss"] for point in result.curve.train] for result in (plain, compiled))
    np.testing.assert_allclose(left, right, atol=1e-3)  # fused operations round elsewhere


def test_linear_probe_gives_the_head_that_the_full_model_has(tmp_path: Path) -> None:
    """Only the head moves, the backbone runs once over each image, and the saved model does what the probe did."""
    import torch

    model = create_vit(tmp_path / "vit", labels=DIGITS, image_size=16, patch_size=8, hidden_size=48, layers=2, heads=4)
    passes = {"images": 0}
    forward = torch.nn.Conv2d.forward

    def counted(self: Any, pixels: Any) -> Any:
        passes["images"] += len(pixels)
        return forward(self, pixels)

    torch.nn.Conv2d.forward = counted  # type: ignore[method-assign]
    try:
        usual: dict[str, Any] = {"limit_train": 600, "epochs": 10, "threads": 1}
        config = FinetuneConfig(model, "digits", tmp_path / "out", linear_probe=True, **usual)
        result = finetune(config)
    finally:
        torch.nn.Conv2d.forward = forward  # type: ignore[method-assign]
    assert passes["images"] == 600 + 360  # every image once, over ten epochs
    before, after = weights_of(model), weights_of(tmp_path / "out")
    assert {name for name in before if not np.array_equal(before[name], after[name])} <= {
        "classifier.weight",
        "classifier.bias",
    }
    assert result.test_accuracy > 0.5  # a random backbone's features are worth something; chance is 10 %
    checkpoint, test = load_checkpoint(tmp_path / "out"), load_dataset("digits", "test")
    with torch.inference_mode():
        pixels = checkpoint.processor([image for image, _ in test], return_tensors="pt")["pixel_values"]
        predicted = checkpoint.module(pixels).logits.argmax(-1).numpy()
    assert abs((predicted == test.label_ids).mean() - result.test_accuracy) <= 1.01 / 360


def test_a_linear_probe_refuses_what_it_can_not_do() -> None:
    changes = {"augment": "shift", "mixup": 0.1, "freeze": 1, "drop_path": 0.1, "distill": "t", "layer_decay": 0.5}
    for change in ({name: value} for name, value in changes.items()):
        with pytest.raises(InputError, match=next(iter(change))):
            FinetuneConfig("m", "d", "o", linear_probe=True, **change)  # type: ignore[arg-type]
