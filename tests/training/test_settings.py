"""Settings from a file, the dry run, and what a finished run leaves for people to read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.core.errors import InputError
from vitdeploy.core.machine import BusyMeter
from vitdeploy.models.checkpoints import load_checkpoint
from vitdeploy.training import FinetuneConfig, dry_run, estimate, finetune, read_settings
from vitdeploy.training.card import model_card
from vitdeploy.training.confusion import count_confusion, draw_confusion
from vitdeploy.training.curve import draw_curve
from vitdeploy.training.loop import make_plan
from vitdeploy.training.objective import CrossEntropy
from vitdeploy.training.parameters import parameter_counts
from vitdeploy.training.result import Curve
from vitdeploy.training.settings import to_toml

Short = Callable[..., FinetuneConfig]


def test_a_file_gives_defaults_and_the_command_line_wins(
    scratch: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    (tmp_path / "run.toml").write_text(
        'dataset = "digits"\nmax-steps = 3\nlimit_train = 60\nlimit_test = 20\nlabel_smoothing = 0.2\n'
        'threads = 1\nseed = 5\nlinear-probe = true\naugment = "none"\n'
    )
    options = ("--seed", 7, "--no-linear-probe", "--augment", "shift", "--output", tmp_path / "out")
    outcome = cli("finetune", scratch, "--config", tmp_path / "run.toml", *options)
    assert outcome.exit_code == 0, outcome.stderr
    saved = json.loads((tmp_path / "out" / "finetune.json").read_text())["settings"]
    assert (saved["max_steps"], saved["limit_train"], saved["label_smoothing"]) == (3, 60, 0.2)
    assert (saved["seed"], saved["linear_probe"], saved["augment"]) == (7, False, "shift")


def test_the_file_beside_a_checkpoint_makes_it_again(
    short: Short, scratch: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """The resolved settings, read back, give the same weights."""
    finetune(short("first", label_smoothing=0.1, augment="shift"))
    settings = read_settings(tmp_path / "first" / "finetune.toml")
    assert settings["epochs"] == 3.0 and settings["learning_rate"] == 5e-5  # defaults, filled in
    file = tmp_path / "first" / "finetune.toml"
    outcome = cli("finetune", scratch, "--config", file, "--output", tmp_path / "again")
    assert outcome.exit_code == 0, outcome.stderr
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again"))
    assert first == again


def test_the_file_alone_repeats_a_run_on_local_folders(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    """From any folder; the card names no path."""
    for name, colour in (("cat", 40), ("dog", 200)):
        for part, count in (("train", 12), ("test", 4)):
            folder = tmp_path / "data" / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (16, 16), (colour, index, 0)).save(folder / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    options = ("--max-steps", 1, "--threads", 1, "--validation", 0)
    outcome = cli("finetune", scratch, "--dataset", "data/photos", "--output", "runs/photos", *options)
    assert outcome.exit_code == 0, outcome.stderr
    text = (tmp_path / "runs" / "photos" / "finetune.toml").read_text()
    assert 'dataset = "../../data/photos"' in text and 'output = "runs/photos"' in text
    for name in ("README.md", "finetune.json"):
        assert str(tmp_path) not in (tmp_path / "runs/photos" / name).read_text()
        assert "data/photos" not in (tmp_path / "runs/photos" / name).read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = cli("finetune", "--config", tmp_path / "runs/photos/finetune.toml", "--output", "again")
    assert outcome.exit_code == 0, outcome.stderr
    again = tmp_path / "elsewhere" / "again" / "model.safetensors"
    assert again.read_bytes() == (tmp_path / "runs" / "photos" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rte = 1e-4", "did you mean learning_rate"),
        ("resume = true", "there is no setting 'resume'"),
        ('batch_size = "32"', "give a whole number"),
        ("batch_size = true", "give a whole number"),
        ("seed = 1.5", "give a whole number"),
        ("epochs = ", "is not TOML"),
    ],
)
def test_files_that_say_nonsense(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(InputError) as error:
        read_settings(tmp_path / "run.toml")
    assert says in f"{error.value.message} {error.value.hint}"
    with pytest.raises(InputError, match="can't read"):
        read_settings(tmp_path / "nowhere.toml")


def test_toml_gives_back_what_was_put_in(tmp_path: Path) -> None:
    config = FinetuneConfig('a "model"', "owner/data", "out", learning_rate=3e-5, skip_bad=True, ema=0.9998, freeze=2)
    (tmp_path / "run.toml").write_text(to_toml(config.to_json(), "a run"))
    assert FinetuneConfig(**read_settings(tmp_path / "run.toml")) == config
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "run.toml").write_text('dataset = "../photos"')
    assert read_settings(tmp_path / "sub" / "run.toml") == {"dataset": str(tmp_path / "photos")}


def test_dry_run_says_what_would_happen_and_writes_nothing(short: Short, tmp_path: Path, scratch: Path) -> None:
    config = short(max_steps=None, epochs=4, accumulate=2, ema=0.9)
    plan = dry_run(config)
    assert list(tmp_path.iterdir()) == []
    assert plan.images == {"train": 108, "validation": 12, "test": 40}
    assert (plan.steps, plan.images_per_step) == (12, 40)  # three steps of two batches of 20 an epoch
    weights = sum(value.numel() for value in load_checkpoint(scratch).module.parameters())
    assert plan.parameters == plan.trainable == weights
    memory = plan.memory_bytes
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == (4 * weights, 4 * weights, 12 * weights)
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    larger = dry_run(dataclasses.replace(config, batch_size=40))
    assert larger.memory_bytes["activations"] == pytest.approx(2 * memory["activations"], rel=0.1)
    assert plan.seconds > plan.step_seconds * plan.steps > 0
    result = finetune(config)
    assert result.steps == plan.steps and len(result.curve.validation) == plan.evaluations


@pytest.mark.parametrize("validation", [12, 0])
def test_a_dry_run_expects_each_look_at_images(short: Short, monkeypatch: pytest.MonkeyPatch, validation: int) -> None:
    """With a second an image that is looked at and none for a step, the seconds are the images of a true run."""
    looked = []

    class Counting(CrossEntropy):
        def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
            looked.append(0 if module.training else len(batch["labels"]))
            return super().__call__(module, batch)

    asked: dict[str, Any] = {"max_steps": None, "epochs": 2, "validation": validation}
    finetune(short("run", **asked), objective=Counting())
    monkeypatch.setattr(estimate, "_measure", lambda run, objective: estimate._Measured(0.0, 0.0, 1.0, 0, "cpu"))
    assert dry_run(short("plan", **asked)).seconds == sum(looked) > 0


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_dry_run_on_a_busy_machine_says_so(
    share: float, scratch: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BusyMeter, "other_share", lambda meter: share)
    arguments = ("finetune", scratch, "--dataset", "digits", "--output", tmp_path / "out", "--threads", 1, "--dry-run")
    line = next(line for line in cli(*arguments).stdout.splitlines() if line.startswith("estimated time"))
    assert ("at most" in line) == ("other programs used 50% of it" in line) == bool(share)
    assert json.loads(cli(*arguments, "--json").stdout)["other_share"] == share


def test_what_a_dry_run_expects_grows_with_the_epochs(short: Short, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps' share by their number; no time to measure whole batches is made up for by smaller ones, and said."""
    for probe in (False, True):
        few, many = (dry_run(short(max_steps=None, epochs=epochs, linear_probe=probe)) for epochs in (1, 1000))
        assert many.steps == 1000 * few.steps and many.seconds > few.seconds and many.step_seconds > 0
        assert not any("scaled up" in note for note in few.notes)
    whole = dry_run(short(max_steps=None, epochs=1))
    monkeypatch.setattr("vitdeploy.training.estimate._TIMED_SECONDS", 0.0)
    quick = dry_run(short(max_steps=None, epochs=1))
    assert any("scaled up from a batch of 1 image" in note for note in quick.notes)
    assert quick.memory_bytes["activations"] == pytest.approx(whole.memory_bytes["activations"], rel=0.1)


def test_a_dry_run_looks_at_a_few_images_only(short: Short, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: the run itself looks at those it tests on before it trains."""
    from vitdeploy.data import ImageDataset

    seen: list[tuple[str, int]] = []
    decode = ImageDataset.image
    monkeypatch.setattr(ImageDataset, "image", lambda self, n: (seen.append((self.split, n)), decode(self, n))[1])
    plan = dry_run(short(limit_train=None, limit_test=None, batch_size=4))
    assert 0 < len(set(seen)) < 30 and any("decodes every test image" in note for note in plan.notes)
    seen.clear()
    finetune(short(max_steps=1))
    assert {n for split, n in seen if split == "test"} == set(range(40))


def test_dry_run_counts_what_learns(short: Short) -> None:
    whole = dry_run(short()).trainable
    assert dry_run(short(freeze=1)).trainable < whole
    assert dry_run(short(linear_probe=True)).trainable == 48 * 10 + 10


def test_dry_run_on_the_command_line(scratch: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    arguments = ("finetune", scratch, "--dataset", "digits", "--output", tmp_path / "out", "--threads", 1, "--dry-run")
    outcome = cli(*arguments)
    assert outcome.exit_code == 0, outcome.stderr
    for line in ("learning_rate = 5e-05", "1293 train, 144 validation, 360 test", "estimated time", "estimated memory"):
        assert line in outcome.stdout
    assert "Nothing was written." in outcome.stdout and not (tmp_path / "out").exists()
    assert json.loads(cli(*arguments, "--json").stdout)["steps"] == 123


def test_steps_of_several_processes_and_accumulation() -> None:
    config = FinetuneConfig("m", "d", "o", epochs=1, batch_size=10)
    assert make_plan(config, 400, processes=2).steps == 20
    assert make_plan(dataclasses.replace(config, accumulate=4), 400, processes=2).steps == 5
    plan = make_plan(dataclasses.replace(config, epochs=10, save_every=6), 400)
    assert plan.save_every % plan.log_every == 0 == plan.evaluate_every % plan.log_every


def test_confusion_matrix_counts_and_picture() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 2, 1, 1])
    counts = count_confusion(labels, predicted, 3)
    assert counts == ((2, 0, 1), (0, 1, 0), (0, 1, 0))
    root = ElementTree.fromstring(draw_confusion(counts, ["cat", "<dog>", "a very long name of a class"], "test"))
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "cat taken for a very long name of a class: 1 of 3" in words and len(words) == 9
    many = draw_confusion(count_confusion(labels, predicted, 200), [str(index) for index in range(200)], "test")
    assert len(many) < 6_000_000
    ElementTree.fromstring(many)


def test_the_confusion_matrix_is_of_the_test_images(short: Short, tmp_path: Path) -> None:
    result = finetune(short(max_steps=30, learning_rate=3e-3, limit_test=None))
    counts = np.array(result.confusion)
    assert counts.sum() == 360
    assert np.trace(counts) / 360 == pytest.approx(result.test_accuracy, abs=1e-6)
    assert counts.sum(axis=1).tolist() == list(result.data["test"]["class_counts"].values())
    saved = json.loads((tmp_path / "out" / "confusion_matrix.json").read_text())
    assert saved["counts"] == counts.tolist() and saved["labels"] == list(result.labels)


def test_model_card_is_what_the_hub_reads(short: Short, tmp_path: Path) -> None:
    import huggingface_hub

    result = finetune(short())
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "image-classification" and data["library_name"] == "transformers"
    (entry,) = card.data.eval_results
    assert entry.metric_value == pytest.approx(result.test_accuracy, abs=1e-6) and entry.dataset_split == "test"
    assert "datasets" not in data and "base_model" not in data  # digits and a local folder are not on the Hub
    assert f"{result.test_accuracy:.2%} of 40 images" in card.content and str(tmp_path) not in card.content
    best = f"{result.validation_accuracy:.2%} of 12 images"
    assert f"**Validation accuracy**: {best} carved out of train (best weights" in card.content
    named = dataclasses.replace(short(), validation_split="val")
    text = model_card(named, result, model_is_local=True)
    assert f"{best} of digits/validation (best weights" in text and "carved" not in text
    config = short(model="google/vit-base-patch16-224-in21k", dataset="cifar10")
    data = {**result.data, "test": {**result.data["test"], "name": "cifar10"}}
    text = model_card(config, dataclasses.replace(result, data=data), model_is_local=False)
    hub = huggingface_hub.ModelCard(text).data.to_dict()
    assert hub["base_model"] == "google/vit-base-patch16-224-in21k" and hub["datasets"] == ["uoft-cs/cifar10"]


def test_event_files_for_tensorboard(short: Short, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = finetune(short(tensorboard=True))
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "validation/loss", "validation/accuracy"} <= set(
        events.Tags()["scalars"]
    )
    for tag, points, key in (
        ("train/loss", result.curve.train, "loss"),
        ("validation/accuracy", result.curve.validation, "accuracy"),
    ):
        written = [(event.step, event.value) for event in events.Scalars(tag)]
        assert written == [(point["step"], pytest.approx(point[key], rel=1e-6)) for point in points]
    (final,) = events.Scalars("final/test_accuracy")
    assert final.value == pytest.approx(result.test_accuracy)


def test_parameter_counts() -> None:
    import torch

    module = torch.nn.Linear(3, 4)
    module.bias.requires_grad_(False)
    assert parameter_counts(module) == (16, 12)


def test_the_curves_axes_have_round_ticks() -> None:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten; a run of a single step has a picture too."""
    for steps in ((1,), (7, 14, 21, 137)):
        loss = tuple({"step": step, "loss": 2.3456 / step, "epoch": 1.0} for step in steps)
        picture = draw_curve(Curve(train=loss, validation=(), best_step=None), "a run")
        heights = [float(text) for text in re.findall(r'text-anchor="end">(-?[\d.]+)</text>', picture)]
        (step,) = {round(high - low, 9) for low, high in itertools.pairwise(heights)}
        assert f"{step:e}".partition("e")[0].rstrip("0").rstrip(".") in ("1", "2", "2.5", "5")
        assert all(abs(height / step - round(height / step)) < 1e-6 for height in heights)
