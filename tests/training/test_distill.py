"""Distillation: the losses against NumPy, what the teacher sees, and students that come to agree with it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitdeploy.core.errors import DatasetError, InputError, ModelError
from vitdeploy.data import load_dataset
from vitdeploy.models.checkpoints import load_checkpoint
from vitdeploy.training import FinetuneConfig, create_vit, dry_run, finetune
from vitdeploy.training.distill import Distillation, Settings, soft_loss, teacher_view

DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch") / "vit"
    return create_vit(folder, labels=DIGITS, image_size=16, patch_size=8, hidden_size=32, layers=2, heads=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another size and another normalisation than the student; trained for a moment."""
    root = tmp_path_factory.mktemp("teacher")
    create_vit(root / "new", labels=DIGITS, image_size=32, patch_size=8, hidden_size=32, layers=2, heads=2, seed=5)
    processor = json.loads((root / "new" / "preprocessor_config.json").read_text())
    processor["image_mean"], processor["image_std"] = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    (root / "new" / "preprocessor_config.json").write_text(json.dumps(processor))
    finetune(
        FinetuneConfig(root / "new", "digits", root / "made", epochs=6, limit_test=40, validation=0, learning_rate=3e-3)
    )
    return root / "made"


def settings(scratch: Path, output: Path, **changes: Any) -> FinetuneConfig:
    usual: dict[str, Any] = {"max_steps": 6, "limit_train": 120, "limit_test": 40, "batch_size": 20, "validation": 0}
    return FinetuneConfig(scratch, "digits", output, **{**usual, **changes})


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_soft_loss_is_the_divergence_of_the_softened_distributions() -> None:
    import torch

    generator = np.random.default_rng(0)
    student, taught = generator.normal(size=(2, 5, 4))
    p, q = softmax(taught / 3), softmax(student / 3)
    expected = 9 * float((p * np.log(p / q)).sum(axis=1).mean())
    assert float(soft_loss(torch.tensor(student), torch.tensor(taught), 3.0)) == pytest.approx(expected, abs=1e-9)
    assert float(soft_loss(torch.tensor(taught), torch.tensor(taught), 3.0)) == pytest.approx(0, abs=1e-9)


class Fixed:
    """A module that answers with given outputs."""

    def __init__(self, training: bool = True, **outputs: Any) -> None:
        self.training, self._outputs = training, outputs

    def __call__(self, pixel_values: Any) -> Any:
        return SimpleNamespace(**self._outputs)


def objective(answers: Any, **changes: Any) -> Distillation:
    import torch

    class Teacher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, pixel_values: Any) -> Any:
            return SimpleNamespace(logits=answers)

    return Distillation(Teacher(), list(range(3)), lambda pixels: pixels, Settings(**changes))


def test_the_distillation_token_answers_the_teacher_and_the_class_token_the_label() -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    own, taught, answers = (torch.randn(4, 3, generator=generator) for _ in range(3))
    batch = {"pixel_values": torch.zeros(4, 3, 8, 8), "labels": torch.tensor([0, 1, 2, 0])}
    student = Fixed(logits=(own + taught) / 2, cls_logits=own, distillation_logits=taught)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = 0.3 * cross_entropy(own, batch["labels"]) + 0.7 * cross_entropy(taught, answers.argmax(-1))
    loss, output = objective(answers, kind="hard", weight=0.7)(student, batch)
    assert torch.allclose(loss, expected) and output.logits is not None
    soft, _ = objective(answers, kind="soft", weight=0.7, temperature=2.0)(student, batch)
    assert torch.allclose(soft, 0.3 * cross_entropy(own, batch["labels"]) + 0.7 * soft_loss(taught, answers, 2.0))
    plain, _ = objective(answers, kind="soft", weight=0.7)(Fixed(logits=own), batch)
    assert torch.allclose(plain, 0.3 * cross_entropy(own, batch["labels"]) + 0.7 * soft_loss(own, answers, 3.0))
    evaluated, _ = objective(answers, weight=0.7)(Fixed(training=False, logits=own), batch)
    assert torch.allclose(evaluated, cross_entropy(own, batch["labels"]))


def test_the_teacher_sees_pixels_as_its_own_processor_makes_them(scratch: Path, teacher: Path) -> None:
    import torch

    mine, theirs = load_checkpoint(scratch).processor, load_checkpoint(teacher).processor
    image = load_dataset("digits", "test").image(0)
    seen = teacher_view(mine, theirs)(mine(image, return_tensors="pt")["pixel_values"])
    own = theirs(image, return_tensors="pt")["pixel_values"]
    assert seen.shape == own.shape == (1, 3, 32, 32)
    # the student's 16 pixels a side are enlarged, so the edges are softer; the levels are the teacher's
    assert float((seen - own).abs().mean()) < 0.25
    assert torch.allclose(seen.mean((0, 2, 3)), own.mean((0, 2, 3)), atol=0.02)
    same_size = type(theirs).from_dict({**theirs.to_dict(), "size": {"height": 16, "width": 16}})
    exact = teacher_view(mine, same_size)(mine(image, return_tensors="pt")["pixel_values"])
    assert torch.allclose(exact, same_size(image, return_tensors="pt")["pixel_values"], atol=1e-5)
    pixels = torch.rand(2, 3, 16, 16)
    assert teacher_view(mine, mine)(pixels) is pixels


def test_a_student_learns_what_its_teacher_says(scratch: Path, teacher: Path, tmp_path: Path) -> None:
    """A teacher that calls every digit by the next one's name: its student does so too, against the labels."""
    odd = Path(shutil.copytree(teacher, tmp_path / "odd"))
    config = json.loads((odd / "config.json").read_text())
    config["id2label"] = {str(index): DIGITS[(index + 1) % 10] for index in range(10)}
    config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    (odd / "config.json").write_text(json.dumps(config))
    changes: dict[str, Any] = {"max_steps": 100, "limit_train": 900, "learning_rate": 3e-3, "batch_size": 32}
    taught = finetune(settings(scratch, tmp_path / "taught", distill=odd, distill_weight=1.0, **changes))
    alone = finetune(settings(scratch, tmp_path / "alone", **changes))
    assert taught.test_accuracy < 0.1 and alone.test_accuracy > 0.5
    made, test = load_checkpoint(tmp_path / "taught"), load_dataset("digits", "test", limit=60)
    named = [int(made.module(**made.processor(image, return_tensors="pt")).logits.argmax()) for image, _ in test]
    next_digit = (test.label_ids + 1) % 10
    assert float(np.mean(next_digit == named)) > 0.5
    stored = json.loads((tmp_path / "taught" / "finetune.json").read_text())["settings"]
    assert stored["distill"] == "odd" and stored["distill_weight"] == 1.0


@pytest.mark.parametrize(
    "change", [{}, {"distill_kind": "hard"}, {"distill_temperature": 1.0}, {"distill_weight": 0.1}], ids=str
)
def test_each_option_changes_the_weights(scratch: Path, teacher: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    from safetensors.numpy import load_file

    with_change = {"distill": teacher, **change} if change else {}
    for name, changes in (("usual", {"distill": teacher}), ("changed", with_change)):
        finetune(settings(scratch, tmp_path / name, **changes))
    usual, changed = (load_file(tmp_path / name / "model.safetensors") for name in ("usual", "changed"))
    assert not np.array_equal(usual["classifier.weight"], changed["classifier.weight"])


def test_a_deit_student_with_its_distillation_token(teacher: Path, tmp_path: Path) -> None:
    import torch
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    torch.manual_seed(0)
    names: dict[str, Any] = {"id2label": dict(enumerate(DIGITS)), "label2id": {d: int(d) for d in DIGITS}}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = DeiTConfig(image_size=32, patch_size=8, initializer_range=0.18, **sizes, **names)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "deit")
    (tmp_path / "deit" / "preprocessor_config.json").write_text((teacher / "preprocessor_config.json").read_text())
    output = tmp_path / "out"
    finetune(
        settings(
            tmp_path / "deit",
            output,
            distill=teacher,
            max_steps=80,
            limit_train=600,
            learning_rate=3e-3,
            layer_decay=1.0,
        )
    )
    made = load_checkpoint(output)
    assert type(made.module) is DeiTForImageClassificationWithTeacher
    taught = load_checkpoint(teacher).module
    images = [load_dataset("digits", "test", limit=60).image(index) for index in range(60)]
    pixels = made.processor(images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        decided, answered = taught(pixels).logits.argmax(-1), made.module(pixels).distillation_logits.argmax(-1)
    assert float((decided == answered).float().mean()) > 0.4  # by chance 0.1


def test_the_dry_run_counts_the_teacher(scratch: Path, teacher: Path, tmp_path: Path) -> None:
    alone, taught = (dry_run(settings(scratch, tmp_path / "out", distill=who)) for who in (None, teacher))
    weights = sum(value.numel() for value in load_checkpoint(teacher).module.parameters())
    assert "teacher" not in alone.memory_bytes and taught.memory_bytes["teacher"] == 4 * weights
    assert taught.memory_bytes["total"] >= alone.memory_bytes["total"] + 4 * weights


def test_refusals_come_before_training(scratch: Path, teacher: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    other = create_vit(
        tmp_path / "other", labels=["cat", "dog"], image_size=16, patch_size=8, hidden_size=8, layers=1, heads=1
    )
    with pytest.raises(DatasetError, match="the teacher .* does not know 10 of the 10 classes of the dataset: '0'"):
        finetune(settings(scratch, tmp_path / "out", distill=other))
    with pytest.raises(ModelError, match="no checkpoint"):
        finetune(settings(scratch, tmp_path / "out", distill=tmp_path / "none"))
    for wrong in ({"distill_weight": 1.5}, {"distill_temperature": 0.0}, {"distill_kind": "loud"}):
        with pytest.raises(InputError):
            dataclasses.replace(settings(scratch, tmp_path / "out", distill=teacher), **wrong)
    for idle in ({"distill_weight": 0.9}, {"distill_temperature": 1.0}, {"distill_kind": "hard"}):
        with pytest.raises(InputError, match="no effect without a teacher"):
            dataclasses.replace(settings(scratch, tmp_path / "out"), **idle)
    with pytest.raises(DatasetError, match="does not know"):  # and a dry run refuses what the run would refuse
        dry_run(settings(scratch, tmp_path / "out", distill=other))
    assert not (tmp_path / "out").exists()
    done = cli(
        *("finetune", scratch, "--dataset", "digits", "--output", tmp_path / "cli", "--distill", teacher),
        *("--distill-kind", "hard", "--distill-weight", 0.8, "--max-steps", 2, "--limit-train", 40, "--limit-test", 20),
    )
    assert done.exit_code == 0, done.stderr
    stored = json.loads((tmp_path / "cli" / "finetune.json").read_text())["settings"]
    assert (stored["distill_kind"], stored["distill_weight"]) == ("hard", 0.8)
