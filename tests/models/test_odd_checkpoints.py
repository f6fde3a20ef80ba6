"""Checkpoints as people have them: what leaves no doubt is loaded, and said; what does is refused with its cause."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.command_line import invoke
from tests.tools.families import pyramid
from vitdeploy.compiler.preprocessing import spec_from_processor
from vitdeploy.core.errors import DependencyError, ModelError, VitdeployError
from vitdeploy.core.machine import has_module
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec
from vitdeploy.models.checkpoints import load_checkpoint, open_folder
from vitdeploy.models.processors import load_processor
from vitdeploy.models.tasks import TaskRequest
from vitdeploy.training.models import load_trainable

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 343268717\n"


@pytest.fixture
def odd(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may make odd."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "odd"))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr("vitdeploy.core.progress.note", said.append)
    return said


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rename_weights(folder: Path, rename: Any) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(folder / "model.safetensors")
    save_file({rename(key): value for key, value in stored.items()}, folder / "model.safetensors", {"format": "pt"})


def logits(folder: Path) -> np.ndarray:
    import torch

    checkpoint = load_checkpoint(folder)
    pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.inference_mode():
        found: np.ndarray = checkpoint.module(pixel_values=pixels).logits.numpy()
    return found


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "base_model.model.", "model."])
def test_names_that_a_wrapper_gave_the_weights_are_taken_off(
    prefix: str, odd: Path, tiny_checkpoint: Path, notes: list[str]
) -> None:
    rename_weights(odd, lambda key: prefix + key)
    np.testing.assert_array_equal(logits(odd), logits(tiny_checkpoint))
    assert any(repr(prefix) in note for note in notes)
    labels = tuple(json.loads((odd / "config.json").read_text())["id2label"].values())
    trainable = load_trainable(open_folder(odd), labels, image_size=None, seed=0)
    assert not any("new one" in note for note in trainable.notes)  # the head is found as well


def test_a_part_that_was_compiled_alone(odd: Path, tiny_checkpoint: Path) -> None:
    rename_weights(odd, lambda key: key.replace("vit.", "vit._orig_mod.", 1))
    np.testing.assert_array_equal(logits(odd), logits(tiny_checkpoint))


def test_another_models_weights_are_not_taken_for_renamed_ones(odd: Path) -> None:
    rename_weights(odd, lambda key: "module." + key.replace("layernorm", "norm"))
    with pytest.raises(ModelError, match="is incomplete"):
        load_checkpoint(odd)


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_3"},
        {"return_dict": False},
        {"output_hidden_states": True, "output_attentions": True},
        {"quantization_config": {"load_in_8bit": True}},
        {"image_size": [32, 32]},
    ],
)
def test_how_a_model_is_run_does_not_stop_it(changes: dict[str, Any], odd: Path, tiny_checkpoint: Path) -> None:
    change(odd / "config.json", **changes)
    np.testing.assert_array_equal(logits(odd), logits(tiny_checkpoint))
    load_trainable(open_folder(odd), ("a", "b"), image_size=None, seed=0)


def test_quantised_weights_are_refused_by_the_method(odd: Path) -> None:
    from safetensors.torch import load_file, save_file

    change(odd / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    stored = load_file(odd / "model.safetensors")
    save_file({key: value.char() for key, value in stored.items()}, odd / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"quantised \(bitsandbytes\)") as error:
        load_checkpoint(odd)
    assert "dequantize" in str(error.value.hint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_channels": 1}, "images of 1 channel"),
        ({"id2label": {"0": "a", "1": "b"}}, "head of .* has 10 classes, and its config.json names 2"),
        ({"id2label": {str(n): None for n in range(10)}}, "class 0 has no name"),
        ({"id2label": {"a": "b"}}, "not numbers"),
        ({"model_type": "dinov3_vit"}, "is a dinov3_vit model, which is not an image classifier in .* no class of it"),
        ({"problem_type": "single_label_classification", "id2label": {"0": "a"}}, "num_labels"),
    ],
)
def test_the_right_cause_is_named(changes: dict[str, Any], message: str, odd: Path) -> None:
    change(odd / "config.json", **changes)
    with pytest.raises(ModelError, match=message) as error:
        load_checkpoint(odd)
    assert error.value.hint


@pytest.mark.parametrize("shape", [list, lambda names: {name: place for place, name in enumerate(names)}])
def test_class_names_in_a_list_or_the_wrong_way_round(shape: Any, odd: Path, tiny_checkpoint: Path) -> None:
    labels = load_checkpoint(tiny_checkpoint).labels
    change(odd / "config.json", id2label=shape(labels))
    assert load_checkpoint(odd).labels == labels


def test_a_head_that_is_left_out_is_said(odd: Path, notes: list[str]) -> None:
    """A class of one's own does not say whether it classifies, and its weights do."""
    change(odd / "config.json", architectures=["MyClassifier"])
    assert load_checkpoint(odd, request=TaskRequest()).labels == ()
    assert "is left out: --task classification takes it" in notes[-1]
    assert len(load_checkpoint(odd, request=TaskRequest("classification")).labels) > 1 and len(notes) == 1


def test_two_classes_may_have_one_name(odd: Path) -> None:
    names = ["crane", "a", "crane", *"bcdefgh"]
    change(odd / "config.json", id2label=dict(enumerate(names)), label2id={"crane": 2})
    assert load_checkpoint(odd).labels == tuple(names)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 10**9, "id2label": None},
        {"num_hidden_layers": 10**6},
        {"hidden_size": 10**6},
        {"image_size": 10**7},
        {"vision_config": {"num_hidden_layers": 10**5}},
        {"depths": [10**5, 2]},
        {"intermediate_size": 10**12},
    ],
)
def test_an_absurd_configuration_is_refused_before_anything_is_made(changes: dict[str, Any], odd: Path) -> None:
    change(odd / "config.json", **changes)
    started = time.monotonic()
    for load in (load_checkpoint, lambda path: load_trainable(open_folder(path), ("a",), image_size=None, seed=0)):
        with pytest.raises(ModelError, match="no model that its weights could be of"):
            load(odd)
    assert time.monotonic() - started < 60


def test_numbers_that_are_none_of_layers_do_not_count_as_layers(odd: Path, tiny_checkpoint: Path) -> None:
    change(odd / "config.json", layer_rates=[0.5] * 100_001, layers_left=[-1] * 100_001)
    np.testing.assert_array_equal(logits(odd), logits(tiny_checkpoint))


def test_of_many_weights_that_are_missing_three_are_named(odd: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(odd / "model.safetensors")
    kept = {name: value for name, value in stored.items() if ".0." not in name}
    save_file(kept, odd / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="does not hold all of a ViTModel") as error:
        load_checkpoint(odd, request=TaskRequest("embedding"))
    assert len(stored) - len(kept) > 4 and error.value.message.count(".0.") == 3


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_git_lfs_pointer_is_called_one(name: str, odd: Path) -> None:
    (odd / name).write_text(POINTER)
    with pytest.raises(ModelError, match=f"{name} is a Git LFS pointer") as error:
        load_checkpoint(odd)
    assert "git lfs pull" in str(error.value.hint)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "no JSON"])
def test_a_damaged_list_of_shards_is_named(content: str, odd: Path) -> None:
    (odd / "model.safetensors").rename(odd / "model-00001-of-00001.safetensors")
    (odd / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model.safetensors.index.json.* can't be read") as error:
        open_folder(odd)
    assert "again" in str(error.value.hint)


def test_the_last_checkpoint_of_a_trainer_is_taken(tiny_checkpoint: Path, tmp_path: Path, notes: list[str]) -> None:
    for step in (500, 1000):
        shutil.copytree(tiny_checkpoint, tmp_path / "run" / f"checkpoint-{step}")
    change(tmp_path / "run" / "checkpoint-500" / "config.json", id2label=[str(n) for n in range(10)])
    (tmp_path / "run" / "checkpoint-1000" / "preprocessor_config.json").rename(
        tmp_path / "run" / "preprocessor_config.json"
    )
    checkpoint = load_checkpoint(tmp_path / "run")
    assert (checkpoint.labels[0], checkpoint.source) == ("zero", "run")
    assert any("checkpoint-1000" in note for note in notes)
    assert load_checkpoint(tmp_path / "run" / "checkpoint-1000").labels[0] == "zero"


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_says_what_it_is_where_peft_is_missing(
    with_config: bool, odd: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    (odd / "model.safetensors").rename(odd / "adapter_model.safetensors")
    (odd / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tiny_checkpoint)})
    )
    if not with_config:
        (odd / "config.json").unlink()
    with pytest.raises(ModelError, match=r"PEFT adapter \(LORA\)") as error:
        open_folder(odd)
    assert "pip install peft" in str(error.value.hint) and "merge_and_unload" in str(error.value.hint)


def test_an_adapter_is_merged(tiny_checkpoint: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import torch

    module = load_checkpoint(tiny_checkpoint).module
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj", "query", "value"], modules_to_save=["classifier"]
    )
    adapted = peft.get_peft_model(module, settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).reshape(parameter.shape))
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_checkpoint)
    adapted.save_pretrained(tmp_path / "adapter")
    pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = adapted.eval()(pixel_values=pixels).logits.numpy()
    np.testing.assert_allclose(logits(tmp_path / "adapter"), wanted, atol=1e-5)  # merged: sums in another order
    assert not np.allclose(wanted, logits(tiny_checkpoint), atol=1e-2)


def test_a_processor_of_images_and_text(odd: Path, tiny_checkpoint: Path) -> None:
    settings = json.loads((odd / "preprocessor_config.json").read_text())
    (odd / "preprocessor_config.json").unlink()
    (odd / "processor_config.json").write_text(
        json.dumps({"image_processor": settings, "processor_class": "CLIPProcessor"})
    )
    spec = spec_from_processor(load_processor(open_folder(odd)))
    assert spec == spec_from_processor(load_processor(open_folder(tiny_checkpoint)))
    (odd / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    with pytest.raises(ModelError, match="has no preprocessor_config.json"):
        load_processor(open_folder(odd))


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": "bicubic"},
        {"resample": "PIL.Image.BICUBIC"},
        {"size": {"height": 32.0, "width": 32.0}},
        {"image_mean": [0.5], "image_std": [0.25]},
        {"image_mean": 0.5, "image_std": 0.25},
        {"image_processor_type": "DINOv3ViTImageProcessorFast"},
        {"image_processor_type": None},
    ],
)
def test_settings_that_can_mean_one_thing_only(changes: dict[str, Any], odd: Path) -> None:
    change(odd / "preprocessor_config.json", **changes)
    processor = load_processor(open_folder(odd))
    spec = spec_from_processor(processor)
    assert spec.resize is not None and spec.resize.resample == "bicubic"
    if "image_mean" in changes:
        assert (spec.mean, spec.std) == ((0.5,) * 3, (0.25,) * 3)
    pixels = processor(np.zeros((40, 52, 3), np.uint8), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)


def test_a_filter_that_is_not_named_is_what_transformers_takes(odd: Path, notes: list[str]) -> None:
    """Its two backends differ there: one takes bilinear, one raises."""
    change(odd / "preprocessor_config.json", resample=None)
    processor = load_processor(open_folder(odd))
    assert any("no filter (resample): it is bilinear" in note for note in notes)
    spec = spec_from_processor(processor)
    assert spec.resize is not None and spec.resize.resample == "bilinear"
    pixels = processor(np.zeros((40, 52, 3), np.uint8), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)


@pytest.mark.skipif(has_module("torchvision"), reason="torchvision is there")
def test_a_processor_that_needs_torchvision_says_so_unless_another_does_the_same(odd: Path) -> None:
    file = odd / "preprocessor_config.json"
    file.write_text(json.dumps({"image_processor_type": "Tipsv2ImageProcessor"}))
    spec = spec_from_processor(load_processor(open_folder(odd)))
    assert spec == PreprocessSpec(ResizeSpec("bilinear", height=448, width=448), None, 1 / 255, None, None)
    file.write_text(json.dumps({"image_processor_type": "PPLCNetImageProcessor"}))
    with pytest.raises(
        ModelError, match=r"PPLCNetImageProcessor\) needs torchvision, which is not installed"
    ) as caught:
        load_processor(open_folder(odd))
    assert "that fits your torch" in str(caught.value.hint)


def test_classes_that_are_counted_and_not_named(odd: Path, tmp_path: Path) -> None:
    """As transformers 5.24 saves a PVT: the number alone; and named ones, whose number PVT must be told as well."""
    from transformers import PvtConfig, PvtForImageClassification

    checkpoint = tmp_path / "pvt"
    pyramid(PvtConfig, PvtForImageClassification).save_pretrained(checkpoint)
    shutil.copy(odd / "preprocessor_config.json", checkpoint)
    numbered = {str(index): f"LABEL_{index}" for index in range(4)}
    for names in (None, numbered):
        change(checkpoint / "config.json", id2label=names, num_labels=4)
        assert load_checkpoint(checkpoint).labels == tuple(numbered.values())


WITHIN = [{"size": {"height": 32, "width": 32}}, {"height": {"height": 32}}, [[32], 32], "32"]
NO_EDGES = [{"height": float("nan"), "width": 32}, {"shortest_edge": float("inf")}, 10**400, [-(10**400), 32]]


@pytest.mark.parametrize(
    "size", [{"size": {"height": 32, "width": 32}}, {"height": {"height": 32}}, [[32], 32], "32", *NO_EDGES]
)
def test_sizes_within_sizes_are_shown(size: Any, odd: Path) -> None:
    change(odd / "preprocessor_config.json", size=size)
    with pytest.raises(ModelError, match="has the size") as error:
        load_processor(open_folder(odd))
    assert '"height": 224' in str(error.value.hint)


def test_code_of_its_own_is_not_run_unasked_and_runs_when_asked(
    odd: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change(
        odd / "config.json",
        model_type="own_kind",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.OwnForImageClassification"},
    )
    (odd / "own.py").write_text(
        "from transformers import ViTConfig, ViTForImageClassification\n"
        "class OwnConfig(ViTConfig):\n    model_type = 'own_kind'\n"
        "class OwnForImageClassification(ViTForImageClassification):\n    config_class = OwnConfig\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked"))
    for load in (load_checkpoint, lambda path: load_trainable(open_folder(path), ("a", "b"), image_size=None, seed=0)):
        with pytest.raises(ModelError, match=r"code of its own \(own.py\)") as error:
            load(odd)
        assert "--trust-remote-code" in str(error.value.hint)
    refused = invoke("export", str(odd), "--output", str(tmp_path / "bundle"))
    assert refused.exit_code == 1 and "own.py" in refused.stderr
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    trusted = load_checkpoint(odd, trust_remote_code=True)
    assert type(trusted.module).__name__ == "OwnForImageClassification" and trusted.labels[0] == "zero"
    assert sys.path.count(str(tmp_path / "modules")) <= 1


def test_a_processor_with_code_of_its_own(odd: Path) -> None:
    change(
        odd / "preprocessor_config.json",
        image_processor_type="OwnProcessor",
        auto_map={"AutoImageProcessor": "someone/repo--own_processor.OwnProcessor"},
    )
    with pytest.raises(ModelError, match=r"own_processor.py of someone/repo"):
        load_checkpoint(odd)


def test_timms_own_layout(tmp_path: Path) -> None:
    settings = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.5] * 3}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "pretrained_cfg": {**settings, "std": [0.5] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):  # torchvision of another torch raises RuntimeError
        pass
    else:
        assert open_folder(tmp_path).config["model_type"] == "timm_wrapper"
        return
    with pytest.raises(DependencyError, match="model of timm") as error:
        open_folder(tmp_path)
    assert "pip install timm" in str(error.value.hint)


def test_a_config_that_is_no_object_or_too_deep(odd: Path) -> None:
    for text in ("[]", '{"model_type": 3}', "[" * 100_000, '{"model_type": "vit", "num_labels": 1e999}'):
        (odd / "config.json").write_text(text)
        with pytest.raises(VitdeployError):
            load_checkpoint(odd)
