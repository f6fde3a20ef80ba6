"""Fine-tuning end to end on real digits, small: accuracy rises, each option has its effect, failures leave no trace."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.training import DIGITS, short_run, weights_of
from vitdeploy.core.errors import DatasetError, InputError, ModelError, OutputExistsError, VitdeployError
from vitdeploy.data import load_dataset
from vitdeploy.models.checkpoints import load_checkpoint
from vitdeploy.training import FinetuneConfig, FinetuneResult, create_digits_vit, digits_config, finetune

Short = Callable[..., FinetuneConfig]
Whole = Callable[..., tuple[Path, FinetuneResult]]


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits of the real data, 30 a class for training and 10 for test, as PNG files with names of classes."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photos") / "photos"
    for split, count in (("train", 30), ("test", 10)):
        data = load_dataset("digits", split)
        for label, name in ((0, "null"), (1, "one"), (7, "seven")):
            (root / split / name).mkdir(parents=True)
            for number, index in enumerate(np.flatnonzero(data.label_ids == label)[:count]):
                Image.fromarray(data.image(int(index))).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinetuneResult]:
    """A run long enough to learn the digits fairly."""
    output = tmp_path_factory.mktemp("runs") / "digits"
    config = FinetuneConfig(
        model=scratch, dataset="digits", output=output, epochs=12, batch_size=32, learning_rate=3e-3, validation=150
    )
    return output, finetune(config)


def test_accuracy_rises_and_is_what_the_saved_checkpoint_gives(trained: tuple[Path, FinetuneResult]) -> None:
    import torch

    output, result = trained
    # chance is 10 %; seeds and machines move the outcome of this short run by a few points
    assert result.test_accuracy > 0.75
    assert result.curve.validation[0]["step"] == 0 and result.curve.validation[0]["accuracy"] < 0.3
    assert result.curve.train[-1]["loss"] < result.curve.train[0]["loss"] / 2
    checkpoint, test = load_checkpoint(output), load_dataset("digits", "test")
    assert checkpoint.labels == tuple(DIGITS) == result.labels
    batch = checkpoint.processor([image for image, _ in test], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        predicted = checkpoint.module(batch).logits.argmax(-1).numpy()
    # one image may fall the other way where batches are cut differently
    assert abs((predicted == test.label_ids).mean() - result.test_accuracy) <= 1.01 / 360
    assert result.sample.label == DIGITS[int(test.label_ids[0])]
    assert result.sample.predicted == DIGITS[int(predicted[0])] and 0 < result.sample.score <= 1


def test_best_weights_are_kept(trained: tuple[Path, FinetuneResult]) -> None:
    _, result = trained
    best = max(point["accuracy"] for point in result.curve.validation)
    assert result.validation_accuracy == pytest.approx(best, abs=1e-6)  # the same images, the same weights
    at_best = next(point for point in result.curve.validation if point["step"] == result.curve.best_step)
    assert at_best["accuracy"] == best


def test_everything_is_saved(trained: tuple[Path, FinetuneResult]) -> None:
    output, result = trained
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "all_results.json",
        "config.json",
        "confusion_matrix.json",
        "confusion_matrix.svg",
        "finetune.json",
        "finetune.toml",
        "model.safetensors",
        "preprocessor_config.json",
        "test_results.json",
        "train_results.json",
        "trainer_state.json",
        "training_curve.json",
        "training_curve.svg",
        "validation_results.json",
    ]
    assert not list(output.parent.glob(".*"))
    everything = json.loads((output / "all_results.json").read_text())
    assert everything["test_accuracy"] == result.test_accuracy
    curve = json.loads((output / "training_curve.json").read_text())
    assert curve == json.loads(json.dumps(result.curve.to_json()))
    ElementTree.parse(output / "training_curve.svg")
    saved = json.loads((output / "finetune.json").read_text())
    assert saved["settings"]["learning_rate"] == 3e-3
    assert saved["data"]["train"]["count"] + saved["data"]["validation"]["count"] == 1437
    json.dumps(result.to_json())
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1  # who may read one may read all
    for path in output.glob("*.json"):
        assert str(output.parent) not in path.read_text(), f"{path.name} holds a path of this machine"


def test_negative_twin_shuffled_labels_teach_nothing(scratch: Path, tmp_path: Path) -> None:
    """The same images with classes dealt at random: what is measured above comes from the labels."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    for split, shuffle in (("train", True), ("test", False)):
        data = load_dataset("digits", split)
        labels = np.random.default_rng(0).permutation(data.label_ids) if shuffle else data.label_ids
        images = [png(image) for image, _ in data]
        pq.write_table(pa.table({"image": images, "label": labels.tolist()}), tmp_path / f"{split}.parquet")
    config = FinetuneConfig(
        model=scratch, dataset=tmp_path, output=tmp_path / "out", epochs=4, learning_rate=3e-3, validation=150
    )
    assert finetune(config).test_accuracy < 0.35  # chance is 10 %


def test_same_seed_same_weights_and_another_seed_others(scratch: Path, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune(short_run(scratch, tmp_path / name, seed=seed, augment="shift"))
    first, again, other = (weights_of(tmp_path / name) for name in "abc")
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["classifier.weight"], other["classifier.weight"])
    assert torch.equal(before, torch.get_rng_state())  # the caller's randomness is left alone


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-3},
        {"weight_decay": 0.9},
        {"warmup_ratio": 0.5},
        {"label_smoothing": 0.2},
        {"batch_size": 30},
        {"augment": "shift"},
        {"augment": "flip-shift"},
        {"limit_train": 90},
        {"validation": 30},
        {"clip_grad_norm": 0.1},
        {"layer_decay": 0.5},
        {"drop_path": 0.3},
        {"ema": 0.5},
        {"mixup": 0.8},
        {"cutmix": 1.0},
        {"randaugment": 9},
    ],
    ids=str,
)
def test_each_option_changes_the_weights(whole: Whole, short: Short, tmp_path: Path, change: dict[str, Any]) -> None:
    if {"mixup", "cutmix", "randaugment"} & set(change):
        pytest.importorskip("kornia")
    # without validation the last weights are kept, so that a difference can't hide in the choice
    usual, _ = whole(validation=0)
    finetune(short("changed", **{"validation": 0, **change}))
    before, after = weights_of(usual), weights_of(tmp_path / "changed")
    key = next(name for name in before if name.endswith("cls_token"))  # it gets gradients from everything
    assert set(before) == set(after) and not np.array_equal(before[key], after[key])


def test_lengths_and_limits(scratch: Path, tmp_path: Path) -> None:
    by_epochs = finetune(short_run(scratch, tmp_path / "a", max_steps=None, epochs=2, validation=20, limit_test=30))
    assert by_epochs.steps == 10  # 100 images in batches of 20, twice
    assert by_epochs.data["test"]["count"] == 30 and by_epochs.data["train"]["count"] == 100
    by_steps = finetune(short_run(scratch, tmp_path / "b", max_steps=3, epochs=50, validation=0))
    assert by_steps.steps == 3 == json.loads((tmp_path / "b" / "trainer_state.json").read_text())["global_step"]
    assert by_steps.validation_accuracy is None and by_steps.curve.validation == ()
    assert any("No validation images" in note for note in by_steps.notes)


def test_new_classes_get_a_new_head(trained: tuple[Path, FinetuneResult], class_folders: Path, tmp_path: Path) -> None:
    """A classifier of ten digits, tuned to three classes of image files."""
    config = short_run(trained[0], tmp_path / "out", dataset=class_folders, limit_train=None, max_steps=20)
    result = finetune(replace(config, learning_rate=1e-3))
    assert result.labels == ("null", "one", "seven")
    assert any("was for 10 other classes" in note for note in result.notes)
    assert result.test_accuracy > 0.6  # chance is 33 %
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["id2label"] == {"0": "null", "1": "one", "2": "seven"}
    assert saved["label2id"]["seven"] == 2
    assert load_checkpoint(tmp_path / "out").labels == result.labels


def test_same_classes_keep_their_head(trained: tuple[Path, FinetuneResult], tmp_path: Path) -> None:
    result = finetune(short_run(trained[0], tmp_path / "out", max_steps=1, learning_rate=1e-9, limit_test=None))
    assert not any("new one" in note for note in result.notes)
    assert result.test_accuracy == pytest.approx(trained[1].test_accuracy, abs=0.01)  # practically the same weights


def test_a_backbone_in_float16(trained: tuple[Path, FinetuneResult], tmp_path: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, ViTModel

    ViTModel.from_pretrained(trained[0], add_pooling_layer=False, dtype=torch.float16).save_pretrained(
        tmp_path / "half"
    )
    AutoImageProcessor.from_pretrained(trained[0]).save_pretrained(tmp_path / "half")
    result = finetune(short_run(tmp_path / "half", tmp_path / "out"))
    assert any("no classification head" in note for note in result.notes)
    assert any("16 bits" in note for note in result.notes)
    assert {value.dtype for value in weights_of(tmp_path / "out").values()} == {np.dtype(np.float32)}
    assert load_checkpoint(tmp_path / "out").labels == tuple(DIGITS)


def test_progress_is_reported(scratch: Path, tmp_path: Path) -> None:
    from contextlib import contextmanager

    from vitdeploy.core import progress

    seen: dict[str, Any] = {"tasks": [], "notes": [], "done": {}, "detail": ""}

    class Step:
        def advance(self, amount: float = 1) -> None:
            pass

        def update(self, *, completed: Any = None, total: Any = None, detail: Any = None) -> None:
            seen["done"][seen["tasks"][-1]] = completed
            seen["detail"] = detail or seen["detail"]

    class Reporter:
        @contextmanager
        def task(self, description: str, total: float | None, unit: str) -> Any:
            seen["tasks"].append(description)
            yield Step()

        def note(self, message: str) -> None:
            seen["notes"].append(message)

    with progress.use(Reporter()):
        finetune(short_run(scratch, tmp_path / "out"))
    assert seen["tasks"] == [
        "Decoding digits/test once",
        "Training",
        "Evaluating on digits/validation",
        "Evaluating on digits/test",
    ]
    assert list(seen["done"].values()) == [4, 12, 40]  # steps, images, images
    assert "4/4 steps, loss " in seen["detail"] and "validation " in seen["detail"]
    assert "12 of the 120 training images" in seen["notes"][0]


def test_nothing_is_printed(scratch: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    finetune(short_run(scratch, tmp_path / "out"))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_refusals_come_before_training(scratch: Path, class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for overwrite in (False, True):  # a folder that is not ours is never replaced
        with pytest.raises(OutputExistsError):
            finetune(short_run(scratch, tmp_path / "mine", overwrite=overwrite))
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(DatasetError, match="no dataset"):
        finetune(short_run(scratch, tmp_path / "out", dataset="digitz"))
    with pytest.raises(ModelError, match="no checkpoint at"):
        finetune(short_run(tmp_path / "nowhere", tmp_path / "out"))
    with pytest.raises(ModelError, match="is a local folder"):
        finetune(short_run(scratch, tmp_path / "out", revision="main"))
    with pytest.raises(DatasetError, match="the 8 images to train on have none of"):
        finetune(short_run(scratch, tmp_path / "out", limit_train=8, validation=0))
    with pytest.raises(VitdeployError, match="a file is in the place of one of its folders"):
        finetune(short_run(scratch, tmp_path / "mine" / "letter.txt" / "out"))
    with pytest.raises(DatasetError, match="leave none"):
        finetune(short_run(scratch, tmp_path / "out", validation=120))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"learning_rate": float("nan")},
        {"max_steps": 0},
        {"warmup_ratio": 1.5},
        {"label_smoothing": -0.1},
        {"weight_decay": -1},
        {"validation": -1},
        {"seed": -1},
        {"seed": 2**32},
        {"augment": "rotate"},
    ],
    ids=str,
)
def test_settings_out_of_range(scratch: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change)) if "augment" not in change else "rotate"):
        short_run(scratch, tmp_path / "out", **change)


def test_a_launch_in_shards_is_refused_without_a_gpu_too(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `accelerate launch --use_fsdp` says it to its processes; accelerate itself would ask for a GPU first."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="FSDP is not supported"):
        finetune(short_run(scratch, tmp_path / "out"))


def test_a_loss_that_explodes_is_an_error(scratch: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="loss became") as error:
        finetune(short_run(scratch, tmp_path / "out", learning_rate=1e38, max_steps=30, warmup_ratio=0))
    assert "--learning-rate" in str(error.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_class_without_training_images_is_named(scratch: Path, class_folders: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(class_folders, tmp_path / "photos"))
    shutil.rmtree(copy / "train" / "one")
    with pytest.raises(DatasetError, match="no image of one"):
        finetune(short_run(scratch, tmp_path / "out", dataset=copy))


def test_damaged_weights(scratch: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(scratch, tmp_path / "copy"))
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="can't be read"):
        finetune(short_run(copy, tmp_path / "out"))


@pytest.mark.full
def test_digits_from_scratch(tmp_path: Path) -> None:
    """The demo's settings; how long it takes is measured by benchmarks/digits.py."""
    start = create_digits_vit(tmp_path / "start")
    result = finetune(digits_config(start, tmp_path / "out"))
    assert result.test_accuracy >= 0.97


@pytest.mark.full
def test_the_shared_backbone_learns_cifar10(test_data: Path, tmp_path: Path) -> None:
    result = finetune(
        FinetuneConfig(
            model=test_data / "models" / "vit-small-patch14-224-backbone",
            dataset=test_data / "cifar10",
            output=tmp_path / "out",
            image_size=56,
            limit_train=1500,
            limit_test=400,
            epochs=2,
            batch_size=32,
            learning_rate=1e-4,
            augment="flip-shift",
        )
    )
    assert result.test_accuracy > 0.25  # chance is 10 %; 33 % after 2,250 images once
    assert result.curve.validation[-1]["accuracy"] > result.curve.validation[0]["accuracy"] + 0.1
