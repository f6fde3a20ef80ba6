"""`vitdeploy finetune` as users see it: what it prints, its errors, its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from tests.tools.command_names import parsed
from vitdeploy.cli.finetune import command
from vitdeploy.training import AUGMENTATIONS, PRECISIONS, FinetuneConfig, create_vit

SHORT = ("--dataset", "digits", "--max-steps", 4, "--limit-train", 100, "--limit-test", 30)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = [str(digit) for digit in range(10)]
    folder = tmp_path_factory.mktemp("scratch") / "vit"
    return create_vit(folder, labels=labels, image_size=16, patch_size=8, hidden_size=32, layers=1, heads=2)


def test_prints_the_evaluation_and_one_prediction(scratch: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    outcome = cli("finetune", scratch, *SHORT, "--output", tmp_path / "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "of 30 images of digits/test" in outcome.stdout
    assert "one test image" in outcome.stdout and "predicted '" in outcome.stdout
    assert f"vitdeploy export {tmp_path / 'run'} --output bundles/run" in outcome.stdout
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_dry_run_tells_the_memory_and_its_parts(scratch: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    asked = ("finetune", scratch, *SHORT, "--output", tmp_path / "run", "--dry-run")
    memory = json.loads(cli(*asked, "--json").stdout)["memory_bytes"]
    line = next(line for line in cli(*asked).stdout.splitlines() if line.startswith("estimated memory"))
    whole, _, parts = line.partition(":")
    assert [part.split()[0] for part in parts.split(", ")] == [name for name in memory if name != "total"] != []
    assert "total" not in line and whole.split()[2].isdecimal()


def test_json_and_every_option(scratch: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Each option with a value that is not its default arrives in the settings that are saved."""
    options = {
        "epochs": 7.0,
        "max_steps": 3,
        "batch_size": 10,
        "learning_rate": 0.002,
        "weight_decay": 0.2,
        "warmup_ratio": 0.3,
        "label_smoothing": 0.1,
        "augment": "shift",
        "image_size": 24,
        "limit_train": 60,
        "limit_test": 20,
        "validation": 15,
        "seed": 4,
        "threads": 1,
    }
    flat = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    outcome = cli("finetune", scratch, "--dataset", "digits", "--output", tmp_path / "run", "--json", *flat)
    assert outcome.exit_code == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert (result["steps"], result["data"]["validation"]["count"], result["data"]["test"]["count"]) == (3, 15, 20)
    saved = json.loads((tmp_path / "run" / "finetune.json").read_text())["settings"]
    assert {name: saved[name] for name in options} == options
    assert json.loads((tmp_path / "run" / "config.json").read_text())["image_size"] == 24


def test_options_and_settings_agree() -> None:
    """The command has an option for each setting, with the same default."""
    defaults = {name: field.default for name, field in FinetuneConfig.__dataclass_fields__.items()}
    given = parsed("finetune", ["m", "--dataset", "d", "--output", "o"]).params
    for name in ("as_json", "dry_run", "qat"):
        given.pop(name)
    assert set(given) == set(defaults)
    for name in set(defaults) - {"model", "dataset", "output"}:
        assert given[name] == defaults[name], name
    for name, choices in (("augment", AUGMENTATIONS), ("precision", PRECISIONS)):
        option = next(parameter for parameter in command.params if parameter.name == name)
        assert isinstance(option.type, click.Choice) and tuple(option.type.choices) == choices


def test_errors(scratch: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    output = tmp_path / "run"
    assert cli("finetune", scratch, *SHORT, "--output", output).exit_code == 0
    again = cli("finetune", scratch, *SHORT, "--output", output)
    assert again.exit_code == 1 and "already exists" in again.stderr and "--overwrite" in again.stderr
    assert cli("finetune", scratch, *SHORT, "--output", output, "--overwrite").exit_code == 0
    unknown = cli("finetune", scratch, "--dataset", "digitz", "--output", tmp_path / "x")
    assert unknown.exit_code == 1 and "did you mean digits" in unknown.stderr
    missing = cli("finetune", tmp_path / "none", *SHORT, "--output", tmp_path / "x")
    assert missing.exit_code == 1 and "no checkpoint at" in missing.stderr
    assert cli("finetune", scratch, "--output", tmp_path / "x").exit_code == 2
    assert cli("finetune", scratch, *SHORT, "--output", tmp_path / "x", "--augment", "spin").exit_code == 2
    assert not (tmp_path / "x").exists()


def test_unreachable_hub(tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    outcome = cli("finetune", "google/vit-base-patch16-224-in21k", *SHORT, "--output", tmp_path / "x")
    assert outcome.exit_code == 1 and "can't be reached" in outcome.stderr and "local folder" in outcome.stderr


def test_help_has_an_example(cli: Callable[..., Any]) -> None:
    outcome = cli("finetune", "--help")
    assert outcome.exit_code == 0
    example = " ".join(outcome.stdout.replace("\\\n", " ").split())
    assert "vitdeploy finetune google/vit-base-patch16-224-in21k --dataset cifar10 --output runs/vit" in example
