"""`vitdeploy` alone says what to do next in this folder, and that can be done."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from tests.tools.command_line import invoke
from tests.tools.small_bundle import write_small_bundle
from vitdeploy.bundle import Bundle
from vitdeploy.inspection.next_step import next_steps

REPORT = Path(__file__).parents[2] / "docs" / "results" / "cifar10-vit-small.json"


def commands(folder: Path) -> list[str]:
    return [step.command for step in next_steps(folder)]


def test_an_empty_folder_gets_ways_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke()
    assert done.exit_code == 0 and "vitdeploy demo" in done.stdout and "--help" in done.stdout


def test_each_state_of_a_bundle_has_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_small_bundle(Path("bundles") / "vit", engine=False)
    assert commands(Path()) == ["vitdeploy bench bundles/vit --dataset DATASET"]
    with Bundle.open(path).edit() as editor:
        shutil.copy(REPORT, editor.path_for("bench/report.json"))
        editor.add("bench/report.json", kind="bench")
    assert commands(Path()) == ["vitdeploy predict bundles/vit IMAGE"]
    assert "measured" in invoke().stdout
    (path / "manifest.json").write_text("{")
    assert commands(Path()) == ["vitdeploy inspect bundles/vit"]
    assert "can't be opened" in invoke().stdout


def test_vectors_are_asked_for_by_embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_small_bundle(Path("vectors"), engine=False, embedding=True)
    with Bundle.open(path).edit() as editor:
        shutil.copy(REPORT, editor.path_for("bench/report.json"))
        editor.add("bench/report.json", kind="bench")
    assert commands(Path()) == ["vitdeploy embed vectors IMAGE --output vectors.parquet"]


def test_a_checkpoint_is_exported_unless_a_bundle_of_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Path("runs") / "mean-colour"  # the model that the small bundle names
    checkpoint.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).touch()
    assert commands(Path()) == ["vitdeploy export runs/mean-colour --output runs/mean-colour-bundle"]
    write_small_bundle(Path("bundle"))
    assert commands(Path()) == ["vitdeploy bench bundle --dataset DATASET"]
    monkeypatch.chdir(checkpoint)
    assert commands(Path()) == ["vitdeploy export . --output ../mean-colour-bundle"]


@pytest.mark.full
def test_the_steps_lead_from_a_checkpoint_to_predictions(
    tiny_checkpoint: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "runs/vit digits")
    shutil.copytree(tiny_images, "images")
    taken = []
    for _ in range(4):
        (step,) = next_steps(Path())
        _, *words = shlex.split(step.command)
        taken.append(words[0])
        fill = {"DATASET": "images", "IMAGE": "images/one/0.png"}
        split = ("--split", "train", "--no-latency", "--no-memory") if words[0] == "bench" else ()
        done = invoke(*(fill.get(word, word) for word in words), *split)
        assert done.exit_code == 0, done.stderr
    assert taken == ["export", "build-engine", "bench", "predict"]


def test_a_command_that_is_mistyped_is_guessed() -> None:
    done = invoke("finetun", "runs/vit")
    assert done.exit_code == 2 and "No such command 'finetun'. Did you mean 'finetune'?" in done.stderr
    assert "Did you mean" not in invoke("xyz").stderr and "No such option" in invoke("--xyz").stderr
