"""The tune from end to end, on digits: badly calibrated INT8 comes back, and the bundle is whole at any time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.files import snapshot
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.core.errors import BundleError, DatasetError, InputError, ModelError, OutputExistsError
from vitdeploy.core.storage import locked
from vitdeploy.models.checkpoints import load_checkpoint
from vitdeploy.qat import QatConfig, QatResult, rebuild, run, tune
from vitdeploy.training import FinetuneConfig, create_vit, finetune

DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small digits ViT, and its bundle with an INT8 that cuts a tenth of every activation off."""
    root = tmp_path_factory.mktemp("qat")
    create_vit(root / "new", labels=DIGITS, image_size=32, patch_size=8, hidden_size=32, layers=2, heads=2)
    settings: dict[str, Any] = {"epochs": 10, "limit_test": 60, "learning_rate": 3e-3, "threads": 1}
    finetune(FinetuneConfig(root / "new", "digits", root / "made", **settings))
    export(root / "made", root / "bundle", outputs=("logits", "scores"))
    bad = Recipe(dataset="digits", count=16, method="percentile", percentile=70, smoothing=False, attention=True)
    build(root / "bundle", ["fp16", "int8"], target="onnx", recipe=replace(bad, bias_correction=False), force=True)
    return root / "made", root / "bundle"


def config(trained: tuple[Path, Path], folder: Path, **changes: Any) -> QatConfig:
    bundle = folder / "bundle"
    if not bundle.exists():
        shutil.copytree(trained[1], bundle)
    usual: dict[str, Any] = {"max_steps": 40, "learning_rate": 3e-4, "scale_learning_rate": 0.05, "threads": 1}
    usual.update(limit_train=700, validation=100)
    return QatConfig(trained[0], bundle, "digits", folder / "out", **{**usual, **changes})


FEW: dict[str, Any] = {"max_steps": 10, "limit_train": 240, "validation": 60, "limit_test": 60}  # it ends in vain


@pytest.fixture(scope="module")
def tuned(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> QatResult:
    folder = tmp_path_factory.mktemp("tuned")
    asked = config(trained, folder)
    with Bundle.open(asked.bundle).edit() as editor:  # what belongs to the old weights
        editor.path_for("bench/report.json").write_text("{}")
        editor.add("bench/report.json", kind="bench")
    return tune(asked)


def test_at_least_half_of_the_loss_comes_back(tuned: QatResult) -> None:
    assert tuned.loss > 0.05, "the case is not bad enough to show anything"
    assert tuned.recovered is not None and tuned.recovered >= 0.5
    assert tuned.int8_after <= 1 and tuned.test_images == 360
    assert tuned.best_step > 0 and tuned.validation[0]["step"] == 0


def test_all_forms_hold_the_tuned_weights(tuned: QatResult) -> None:
    bundle, checkpoint = Bundle.open(tuned.bundle), load_checkpoint(tuned.output)
    bundle.verify()
    assert bundle.manifest.model["weights_sha256"] == checkpoint.sha256()
    graph, calibration = bundle.find(kind="onnx", precision="fp32"), bundle.find(kind="calibration")
    assert graph is not None and calibration is not None
    forms = bundle.select(kind="onnx")
    assert {form.path for form in forms} == {
        *("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx")
    }
    assert all(form.built_from == graph.sha256 for form in forms if form.path != "model.onnx")
    assert all(
        form.built_with["calibration_sha256"] == calibration.sha256 for form in forms if form.precision == "int8"
    )
    assert bundle.find(kind="bench") is None and not (tuned.bundle / "bench").exists()
    assert [spec.name for spec in bundle.manifest.outputs] == ["logits", "scores"]
    assert bundle.manifest.provenance["qat"]["best_step"] == tuned.best_step
    assert build(bundle, ["fp16", "int8"], target="onnx").built == ()  # all is up to date
    assert tuned.checks[0]["passed"] and tuned.checks[0]["value"] < 0.02


def test_scales_were_tuned_and_corrections_are_in_the_biases(tuned: QatResult, trained: tuple[Path, Path]) -> None:
    before, after = (json.loads((path / "calibration.json").read_text()) for path in (trained[1], tuned.bundle))
    assert after["recipe"] == before["recipe"] and after["model_sha256"] != before["model_sha256"]
    for old, new in zip(before["groups"], after["groups"], strict=True):
        assert old["name"] == new["name"] and new["scale"] != old["scale"] and new["bias"] == {}
    gained = [new["sqnr_db"] - old["sqnr_db"] for old, new in zip(before["groups"], after["groups"], strict=True)]
    assert np.median(gained) > 0
    assert [p["query"] for p in before["attention"]] != [p["query"] for p in after["attention"]]


def test_a_failed_check_leaves_the_bundle(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(trained, tmp_path, **FEW)
    before = snapshot(tmp_path / "bundle")
    monkeypatch.setattr(rebuild, "INT8_TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="is not what was tuned"):
        tune(asked)
    assert snapshot(tmp_path / "bundle") == before
    assert load_checkpoint(tmp_path / "out").labels == DIGITS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out"]


def test_a_tune_that_does_not_help_changes_nothing(trained: tuple[Path, Path], tmp_path: Path) -> None:
    asked = config(trained, tmp_path, max_steps=2, learning_rate=10.0)
    before = snapshot(tmp_path / "bundle")
    with pytest.raises((ModelError, InputError), match="no step of the tune|the loss became"):
        tune(asked)
    assert snapshot(tmp_path / "bundle") == before and not (tmp_path / "out").exists()


def test_a_bundle_that_is_being_written_is_left_alone(trained: tuple[Path, Path], tmp_path: Path) -> None:
    asked = config(trained, tmp_path, **FEW)
    before = snapshot(tmp_path / "bundle")
    with locked(tmp_path / "bundle" / ".lock"), pytest.raises(BundleError, match="another command"):
        tune(asked)
    assert snapshot(tmp_path / "bundle") == before


def test_a_bundle_that_changed_meanwhile_is_left_alone(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(trained, tmp_path, **FEW)
    compare = run.compare_logits

    def change_it(*arguments: Any) -> Any:
        """As if the bundle were exported again while the tune runs."""
        with Bundle.open(asked.bundle).edit() as editor:
            editor.path_for("model.onnx").write_bytes(b"another")
            editor.add("model.onnx", kind="onnx", precision="fp32")
        return compare(*arguments)

    monkeypatch.setattr(run, "compare_logits", change_it)
    with pytest.raises(BundleError, match="during the tune"):
        tune(asked)
    assert (tmp_path / "bundle" / "model.onnx").read_bytes() == b"another"


def test_refusals_come_before_the_tune(trained: tuple[Path, Path], tmp_path: Path, tiny_checkpoint: Path) -> None:
    for changes, kind, words in (
        ({"merge_qkv": True}, ModelError, "qkv_proj"),
        ({"image_size": (48, 48)}, InputError, "is for 48x48 pixels, the checkpoint for 32x32"),
    ):
        export(trained[0], tmp_path / "other", overwrite=True, **changes)
        with pytest.raises(InputError, match="has no INT8 form"):
            tune(replace(config(trained, tmp_path), bundle=tmp_path / "other"))
        build(tmp_path / "other", ["int8"], target="onnx", recipe=Recipe(dataset="digits", count=4))
        with pytest.raises(kind, match=words):
            tune(replace(config(trained, tmp_path), bundle=tmp_path / "other"))
    with pytest.raises(OutputExistsError):
        tune(replace(config(trained, tmp_path), output=tmp_path / "other"))
    with pytest.raises(DatasetError, match="digits/train would be used for train and for test"):
        tune(config(trained, tmp_path, test_split="train"))
    for wrong in (
        {"learning_rate": 0.0},
        {"test_split": "all"},
        {"distill_weight": 2.0},
        {"warmup_ratio": 1.0},
        {"validation": 0},
    ):
        with pytest.raises(InputError):
            config(trained, tmp_path, **wrong)


def test_the_command(cli: Callable[..., Any], trained: tuple[Path, Path], tmp_path: Path) -> None:
    config(trained, tmp_path)
    arguments = ("finetune", trained[0], "--dataset", "digits", "--output", tmp_path / "out")
    refused = cli(*arguments, "--qat", tmp_path / "bundle", "--augment", "shift")
    assert refused.exit_code == 2 and "--augment has no effect with --qat" in refused.stderr
    done = cli(
        *(*arguments, "--qat", tmp_path / "bundle", "--max-steps", 20, "--limit-train", 400, "--limit-test", 60),
        *("--learning-rate", 1e-3, "--threads", 1, "--json"),
    )
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["steps"] == 20 and facts["test_images"] == 60
    assert np.isclose(facts["loss"], facts["fp32_before"] - facts["int8_before"])
    stored = json.loads((tmp_path / "out" / "qat.json").read_text())["settings"]
    assert stored["learning_rate"] == 1e-3 and stored["scale_learning_rate"] == 0.02  # the tune's own default
