"""A run that is interrupted, however, and taken up again ends as the one that never was: bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.commands import Command
from tests.tools.training import weights_of
from vitdeploy.core.errors import BundleError, InputError, OutputExistsError, VitdeployError
from vitdeploy.training import FinetuneConfig, FinetuneResult, finetune
from vitdeploy.training.objective import CrossEntropy

Short = Callable[..., FinetuneConfig]
Whole = Callable[..., tuple[Path, FinetuneResult]]


class FailsAt:
    """Cross-entropy that fails, like a power cut, in the training step that follows `step` others."""

    def __init__(self, step: int, error: BaseException, smoothing: float = 0.0) -> None:
        self._left, self._error, self._inner = step, error, CrossEntropy(smoothing)

    def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        if module.training:
            if self._left == 0:
                raise self._error
            self._left -= 1
        return self._inner(module, batch)


def same(whole: tuple[Path, FinetuneResult], again: Path, other: FinetuneResult) -> None:
    first, one = whole
    assert one.curve == other.curve
    weights, resumed = weights_of(first), weights_of(again)
    assert all(np.array_equal(weights[name], resumed[name]) for name in weights)
    assert (one.test_accuracy, one.confusion, one.sample) == (other.test_accuracy, other.confusion, other.sample)


EVERYTHING: dict[str, Any] = {"augment": "flip-shift", "drop_path": 0.2, "ema": 0.9, "label_smoothing": 0.1}


@pytest.mark.parametrize(
    ("changes", "stop"),
    [
        ({}, 5),  # in an epoch
        ({}, 6),  # at the very end of one
        (EVERYTHING, 8),
        ({"mixup": 0.8, "cutmix": 1.0, "randaugment": 9}, 8),
        ({"accumulate": 2, "max_steps": 9, "patience": 4}, 11),
        ({"validation": 0, "save_every": 4}, 7),
        ({"linear_probe": True}, 7),
        ({"freeze": 1, "precision": "bf16"}, 5),
    ],
    ids=str,
)
def test_taken_up_again_is_bit_for_bit_the_same(
    short: Short, whole: Whole, changes: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    if {"mixup", "randaugment"} & set(changes):
        pytest.importorskip("kornia")
    settings = {"max_steps": 14, "learning_rate": 3e-3, **changes}
    broken = short("broken", **settings)
    smoothing = settings.get("label_smoothing", 0.0)
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(broken, objective=FailsAt(stop, RuntimeError("power cut"), smoothing))
    assert not (tmp_path / "broken").exists()
    resumed = finetune(replace(broken, resume=True))
    assert len(resumed.resumed_from) == 1 and 0 < resumed.resumed_from[0] <= stop
    same(whole(**settings), tmp_path / "broken", resumed)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_negative_twin_without_its_optimizer_it_is_another_run(short: Short, whole: Whole, tmp_path: Path) -> None:
    """What is compared above notices a checkpoint that has lost something."""
    import torch

    broken = short("broken", max_steps=14, learning_rate=3e-3)
    with pytest.raises(RuntimeError):
        finetune(broken, objective=FailsAt(7, RuntimeError("power cut")))
    (last,) = [max((tmp_path / "broken.training").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))]
    state = torch.load(last / "optimizer.pt")
    for entry in state["state"].values():
        entry["exp_avg"].zero_()
    torch.save(state, last / "optimizer.pt")
    assert finetune(replace(broken, resume=True)).curve != whole(max_steps=14, learning_rate=3e-3)[1].curve


def test_interrupted_twice_and_after_training(
    short: Short, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.training import run

    # --resume where nothing is there yet starts at the beginning
    broken = short("broken", max_steps=14, learning_rate=3e-3, resume=True)
    for stop in (4, 5):
        with pytest.raises(RuntimeError):
            finetune(broken, objective=FailsAt(stop, RuntimeError("power cut")))

    def looks(trainer: Any, data: Any, what: str, *more: Any, look: Any = run.look) -> Any:
        if what == "test":
            raise RuntimeError("during the test")
        return look(trainer, data, what, *more)

    with monkeypatch.context() as patch:
        patch.setattr(run, "look", looks)
        with pytest.raises(RuntimeError, match="during the test"):
            finetune(broken)
    resumed = finetune(broken, objective=FailsAt(0, AssertionError("trains again")))
    assert resumed.resumed_from == (4, 8, 14)
    same(whole(max_steps=14, learning_rate=3e-3), tmp_path / "broken", resumed)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_killed_at_any_moment(how: int, short: Short, whole: Whole, scratch: Path, tmp_path: Path) -> None:
    """The process dies at a moment that only the clock decides, three times; nothing of the outcome shows it."""
    settings = {"max_steps": 150, "save_every": 24, "augment": "shift", "limit_train": None}
    arguments: list[object] = ["finetune", scratch, "--dataset", "digits", "--output", tmp_path / "killed"]
    arguments += ["--max-steps", 150, "--save-every", 24, "--resume"]
    arguments += ["--limit-test", 40, "--batch-size", 20, "--augment", "shift", "--threads", 1]
    work = tmp_path / "killed.training"
    for _ in range(2):
        before = len(list(work.glob("checkpoint-*"))) and max(steps_of(work))
        command = Command(tmp_path, arguments)
        command.wait_until(lambda: bool(steps_of(work)) and max(steps_of(work)) > before)  # noqa: B023
        assert command.send(how) == (-signal.SIGKILL if how == signal.SIGKILL else 130), command.said
        assert not (tmp_path / "killed").exists() and steps_of(work)
        if how == signal.SIGINT:
            assert "--resume goes on from there" in command.said and "Traceback" not in command.said
    resumed = finetune(short("killed", **settings, resume=True))
    assert len(resumed.resumed_from) == 2
    same(whole(**settings), tmp_path / "killed", resumed)
    assert not work.exists()


def steps_of(work: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in work.glob("checkpoint-*")]


@pytest.mark.parametrize("largest_file", [100_000, 400_000], ids=["weights do not fit", "optimizer does not fit"])
def test_a_full_disk_loses_neither_the_output_nor_the_best(
    largest_file: int, short: Short, whole: Whole, scratch: Path, tmp_path: Path
) -> None:
    """No new file may grow beyond a limit in the second session; what the first one kept is there, and goes on."""
    old = finetune(short("out", max_steps=2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    config = short("out", max_steps=14, overwrite=True)
    with pytest.raises(RuntimeError):
        finetune(config, objective=FailsAt(9, RuntimeError("power cut")))
    kept = set(steps_of(tmp_path / "out.training"))
    arguments: list[object] = ["finetune", scratch, "--dataset", "digits", "--output", tmp_path / "out"]
    arguments += ["--max-steps", 14, "--limit-train", 120, "--limit-test", 40, "--batch-size", 20, "--threads", 1]
    arguments += ["--overwrite", "--resume"]
    command = Command(tmp_path, arguments, file_limit=largest_file)
    code, said = command.wait(), command.said
    assert code == 1 and "no space left" in said and "--resume goes on" in said, said
    assert "Traceback" not in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert set(steps_of(tmp_path / "out.training")) == kept
    resumed = finetune(replace(config, resume=True))
    same(whole(max_steps=14), tmp_path / "out", resumed)
    assert resumed.curve != old.curve


def test_last_and_best_are_kept(short: Short, tmp_path: Path) -> None:
    """The best checkpoint stays, however many follow."""
    config = short(max_steps=40, learning_rate=3e-2, save_every=1)  # far too high a rate: it gets worse again
    with pytest.raises(RuntimeError):
        finetune(config, objective=FailsAt(38, RuntimeError("power cut")))
    work = tmp_path / "out.training"
    steps = steps_of(work)
    state = json.loads((work / f"checkpoint-{max(steps)}" / "trainer_state.json").read_text())
    assert set(steps) == {38, state["best_global_step"]}
    result = finetune(replace(config, resume=True))
    best = max(point["accuracy"] for point in result.curve.validation)
    assert result.validation_accuracy == pytest.approx(best, abs=1e-6)


def test_an_interrupted_run_is_not_dropped_by_accident(short: Short, tmp_path: Path) -> None:
    config = short(max_steps=14)
    with pytest.raises(RuntimeError):
        finetune(config, objective=FailsAt(7, RuntimeError("power cut")))
    with pytest.raises(OutputExistsError, match="interrupted at step") as error:
        finetune(config)
    assert "--resume" in str(error.value.hint)
    for change in ({"learning_rate": 1e-3}, {"seed": 1}, {"limit_train": 100}, {"drop_path": 0.1}):
        with pytest.raises(InputError, match=next(iter(change))):
            finetune(replace(config, resume=True, **change))
    assert finetune(replace(config, resume=True, workers=0, tensorboard=False)).resumed_from  # these may differ
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(RuntimeError):
        finetune(config, objective=FailsAt(7, RuntimeError("power cut")))
    again = finetune(replace(config, overwrite=True, learning_rate=1e-3))
    assert again.resumed_from == () and not (tmp_path / "out.training").exists()


def test_other_images_are_noticed(short: Short, tiny_images: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for split in ("train", "test"):
        shutil.copytree(tiny_images, photos / split)
    config = short(dataset=photos, limit_train=None, limit_test=None, max_steps=14, batch_size=4)
    with pytest.raises(RuntimeError):
        finetune(config, objective=FailsAt(7, RuntimeError("power cut")))
    (photos / "train" / "one" / "2.png").rename(tmp_path / "2.png")
    with pytest.raises(InputError, match="had 36 training images, and there are 35 now") as error:
        finetune(replace(config, resume=True))
    assert "the dataset as it was" in str(error.value.hint)
    (photos / "train" / "one" / "3.png").rename(photos / "train" / "one" / "9.png")
    (tmp_path / "2.png").rename(photos / "train" / "one" / "2.png")
    with pytest.raises(InputError, match="images, and some are others now"):
        finetune(replace(config, resume=True))
    (photos / "train" / "one" / "9.png").rename(photos / "train" / "one" / "3.png")
    (photos / "test" / "one" / "2.png").unlink()  # what is tested on decides no weight
    (photos / "test" / "two" / "2.png").write_bytes(b"damaged")
    resumed = finetune(replace(config, resume=True, skip_bad=True, limit_test=30))
    assert resumed.resumed_from and resumed.data["test"]["count"] == 30


def test_two_runs_of_one_output(short: Short) -> None:
    class Second:
        def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
            with pytest.raises(BundleError, match="another command is writing"):
                finetune(short(resume=True))
            raise VitdeployError("seen")

    with pytest.raises(VitdeployError, match="seen"):
        finetune(short(), objective=Second())


def test_a_changed_label_is_noticed(short: Short, tiny_images: Path, tmp_path: Path) -> None:
    """The images are where they were, and one of them is called by another class: no checkpoint has learnt that."""
    photos = tmp_path / "photos"
    for split in ("train", "test"):
        shutil.copytree(tiny_images, photos / split)
        rows = [
            f"{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(photos.glob(f"{split}/*/*.png"))
        ]
        (photos / split / "metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    usual = {"limit_train": None, "limit_test": None, "batch_size": 4, "validation": 0}
    config = short(dataset=photos, max_steps=14, save_every=4, **usual)
    with pytest.raises(RuntimeError):
        finetune(config, objective=FailsAt(7, RuntimeError("power cut")))
    table = photos / "train" / "metadata.csv"
    table.write_text(table.read_text().replace("one/2.png,one", "one/2.png,two"))
    with pytest.raises(InputError, match="had 40 training images, and some are others now"):
        finetune(replace(config, resume=True))
    table.write_text(table.read_text().replace("one/2.png,two", "one/2.png,one"))
    assert finetune(replace(config, resume=True)).resumed_from == (4,)
