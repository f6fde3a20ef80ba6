"""Checkpoints: what loads, and what is said of those that do not."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.core.errors import ModelError
from vitdeploy.core.storage import sha256
from vitdeploy.models.checkpoints import load_checkpoint, open_folder
from vitdeploy.models.processors import first_line


@pytest.fixture
def broken(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "broken"))


@pytest.fixture(autouse=True)
def _off_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def save_weights(folder: Path, keep: Any) -> None:
    """Write the weights again: `keep` gives the new tensor of a name, or None to leave it out."""
    from safetensors.torch import load_file, save_file

    weights = {name: keep(name, value) for name, value in load_file(folder / "model.safetensors").items()}
    kept = {name: value for name, value in weights.items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_classifier_loads_in_float32_and_eval_mode(tiny_checkpoint: Path) -> None:
    import torch

    checkpoint = load_checkpoint(tiny_checkpoint)
    assert checkpoint.labels[:2] == ("zero", "one") and len(checkpoint.labels) == 10
    assert {parameter.dtype for parameter in checkpoint.module.parameters()} == {torch.float32}
    assert not checkpoint.module.training
    assert checkpoint.sha256() == sha256(tiny_checkpoint / "model.safetensors")
    assert (checkpoint.source, checkpoint.is_local, checkpoint.revision) == ("checkpoint", True, None)
    pixels = checkpoint.processor(np.zeros((5, 7, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert checkpoint.module(pixels).logits.shape == (1, 10)


def test_half_precision_weights_become_float32(broken: Path) -> None:
    import torch

    save_weights(broken, lambda _, value: value.half())
    change_config(broken, dtype="float16")
    assert load_checkpoint(broken).module.dtype == torch.float32


def test_weights_in_pickled_form_alone(broken: Path, tiny_checkpoint: Path) -> None:
    """Older checkpoints have pytorch_model.bin; only tensors are unpickled."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    state = load_checkpoint(broken).module.state_dict()
    whole = load_checkpoint(tiny_checkpoint).module.state_dict()
    assert all(bool((value == state[name]).all()) for name, value in whole.items())
    torch.save({"classifier.weight": print}, broken / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load_checkpoint(broken)


def test_sharded_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(tiny_checkpoint)
    whole.module.save_pretrained(tmp_path / "shards", max_shard_size="100kB")
    shutil.copy(tiny_checkpoint / "preprocessor_config.json", tmp_path / "shards")
    folder = open_folder(tmp_path / "shards")
    assert len(folder.weights) > 1
    shards = load_checkpoint(tmp_path / "shards")
    state = shards.module.state_dict()
    assert all(bool((value == state[name]).all()) for name, value in whole.module.state_dict().items())
    assert shards.sha256() not in ("", whole.sha256())
    folder.weights[0].unlink()
    with pytest.raises(ModelError, match=f"incomplete: {folder.weights[0].name} missing"):
        load_checkpoint(tmp_path / "shards")


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_truncated_weights(broken: Path, fraction: float) -> None:
    file = broken / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ModelError, match="can't be read") as error:
        load_checkpoint(broken)
    assert "truncated" in str(error.value.hint)


def test_a_backbone_without_a_trained_head(broken: Path) -> None:
    save_weights(broken, lambda name, value: None if name.startswith("classifier") else value)
    with pytest.raises(ModelError, match="no trained classification head") as error:
        load_checkpoint(broken)
    assert f"vitdeploy finetune {broken}" in str(error.value.hint)


def test_missing_weights_are_no_matter_of_the_head(broken: Path) -> None:
    save_weights(broken, lambda name, value: None if "layers.1." in name or ".layer.1." in name else value)
    with pytest.raises(ModelError, match=r"is incomplete: \d+ weights are missing"):
        load_checkpoint(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "other shapes than its config.json"),
        ({"num_hidden_layers": 5}, "is incomplete"),
        ({"model_type": "gpt2"}, "gpt2 model, which is not an image classifier"),
        ({"model_type": "nonsense"}, "nonsense"),
        ({"hidden_act": "nonsense"}, "can't be loaded"),
        ({"id2label": {str(index + 1): f"class {index}" for index in range(10)}}, "names classes"),
    ],
)
def test_a_config_that_does_not_fit(broken: Path, changes: dict[str, Any], message: str) -> None:
    change_config(broken, **changes)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(broken)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "can't be read"),
        ("config.json", "{}", "no model_type"),
        ("config.json", None, "it has no config.json"),
        ("preprocessor_config.json", "{", "image processor .* can't be loaded"),
        ("preprocessor_config.json", '{"image_processor_type": "Nonsense"}', "image processor .* can't be loaded"),
        ("preprocessor_config.json", None, "has no preprocessor_config.json"),
        ("model.safetensors", None, "has no weights"),
    ],
)
def test_files_that_are_missing_or_damaged(broken: Path, name: str, content: str | None, message: str) -> None:
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_text(content)
    with pytest.raises(ModelError, match=message) as error:
        load_checkpoint(broken)
    assert error.value.hint


def test_names_that_lead_nowhere(tiny_checkpoint: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError, match="can't be reached") as error:
        load_checkpoint("google/vit-base-patch16-224")
    assert "local folder" in str(error.value.hint)
    assert time.monotonic() - started < 60  # the Hub's own client retries for longer: offline must not wait for it
    with pytest.raises(ModelError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelError, match="neither a local path nor a Hub id"):
        load_checkpoint("two words/x")
    with pytest.raises(ModelError, match="is a file"):
        load_checkpoint(tiny_checkpoint / "config.json")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="not a checkpoint") as error:
        load_checkpoint(tmp_path)
    assert "it is a bundle" in str(error.value.hint)


def test_the_shared_checkpoints(test_data: Path) -> None:
    checkpoint = load_checkpoint(test_data / "models" / "vit-small-patch14-112-cifar10")
    assert checkpoint.labels[0] == "airplane"
    with pytest.raises(ModelError, match="no trained classification head"):
        load_checkpoint(test_data / "models" / "vit-small-patch14-224-backbone")


def test_the_preprocessing_of_a_timm_model_is_in_its_config(tmp_path: Path) -> None:
    """timm resizes the shorter edge to size / crop_pct, rounded down, and cuts the centre."""
    from vitdeploy.compiler.preprocessing import spec_from_processor
    from vitdeploy.models.checkpoints import CheckpointFolder, load_processor

    settings = {"input_size": [3, 224, 224], "crop_pct": 0.9, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}

    def folder(**changes: object) -> CheckpointFolder:
        config = {"model_type": "timm_wrapper", "pretrained_cfg": {**settings, "interpolation": "bicubic", **changes}}
        return CheckpointFolder(tmp_path, "timm/vit", "timm/vit", False, None, config, ())

    spec = spec_from_processor(load_processor(folder()))
    assert spec.resize is not None and (spec.resize.shortest_edge, spec.resize.resample) == (248, "bicubic")
    assert (spec.crop, spec.mean, spec.std) == ((224, 224), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    squashed = spec_from_processor(load_processor(folder(crop_mode="squash", crop_pct=1.0)))
    assert squashed.resize is not None and (squashed.resize.height, squashed.resize.width) == (224, 224)
    for wrong, message in (
        ({"crop_mode": "border"}, "border"),
        ({"interpolation": "random"}, "random"),
        ({"input_size": [3, 224, 192]}, "224x192"),
        ({"crop_pct": "most"}, "most"),
    ):
        with pytest.raises(ModelError, match=rf"preprocessing of timm/vit is not .*{message}"):
            load_processor(folder(**wrong))


def test_an_error_is_told_in_one_line_of_it_or_by_its_name() -> None:
    assert first_line(ValueError("\n  no such layer\n at all\n")) == "no such layer"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("Field 'size':\n   no int\nmore")) == "Field 'size': no int"
    assert first_line(ValueError("heading:\n")) == "heading:"
    assert first_line(ValueError("x" * 301)) == "x" * 297 + "..." and first_line(ValueError("x" * 300)) == "x" * 300
