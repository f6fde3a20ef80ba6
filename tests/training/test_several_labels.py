"""Several labels an image from end to end: fine-tuned, exported, in INT8, measured, and predicted by a threshold."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitdeploy
from tests.tools.command_line import invoke
from tests.tools.drawn import COLOURS, draw, write_tagged
from vitdeploy import Bundle, FinetuneConfig, FinetuneResult, InputError, ModelError, Recipe, finetune
from vitdeploy.core.errors import DatasetError
from vitdeploy.data import load_dataset
from vitdeploy.models.checkpoints import load_checkpoint
from vitdeploy.models.tasks import sigmoid
from vitdeploy.report.records import BenchReport
from vitdeploy.training import create_vit
from vitdeploy.training.card import model_card
from vitdeploy.training.objective import BinaryCrossEntropy

LABELS = tuple(COLOURS)
Made = tuple[Path, FinetuneResult]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagged(tmp_path_factory.mktemp("tagged") / "photos", {"train": 240, "test": 80})


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of one class an image with these very classes, untrained."""
    folder = tmp_path_factory.mktemp("start") / "vit"
    return create_vit(folder, labels=LABELS, image_size=16, patch_size=8, hidden_size=48, layers=2, heads=4)


def settings(start: Path, photos: Path, output: Path, **changes: Any) -> FinetuneConfig:
    usual: dict[str, Any] = {"max_steps": 4, "batch_size": 24, "learning_rate": 3e-3, "threads": 1, "layer_decay": 1.0}
    return FinetuneConfig(start, photos, output, **{**usual, **changes})


@pytest.fixture(scope="module")
def trained(start: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    output = tmp_path_factory.mktemp("runs") / "colours"
    return output, finetune(settings(start, photos, output, max_steps=None, epochs=12))


@pytest.fixture(scope="module")
def bundle(trained: Made, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = vitdeploy.export(trained[0], tmp_path_factory.mktemp("bundles") / "colours")
    recipe = Recipe(dataset=str(photos), count=32)
    return vitdeploy.build(made, ["int8"], target="onnx", recipe=recipe).bundle.path


def test_what_it_learned_is_what_the_saved_checkpoint_gives(trained: Made, photos: Path) -> None:
    import torch

    metrics = pytest.importorskip("sklearn.metrics")
    output, result = trained
    found = result.multi_label
    assert found is not None and found.mean_average_precision > 0.9, "the labels' own share is 0.45"
    checkpoint, test = load_checkpoint(output), load_dataset(photos, "test")
    assert checkpoint.task.name == "multi_label" and checkpoint.labels == LABELS == result.labels
    assert checkpoint.threshold == result.threshold == found.threshold
    batch = checkpoint.processor([image for image, _ in test], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        scores = sigmoid(checkpoint.module(batch).logits.numpy())
    has = test.label_sets
    assert has is not None and has.shape == scores.shape
    assert found.mean_average_precision == pytest.approx(metrics.average_precision_score(has, scores), abs=1e-4)
    said = scores >= checkpoint.threshold
    assert found.f1_micro == pytest.approx(metrics.f1_score(has, said, average="micro"), abs=0.02)
    assert result.test_accuracy == found.exact_match == pytest.approx((has == said).all(axis=1).mean(), abs=0.02)
    assert result.metrics["test_exact_match"] == pytest.approx(found.exact_match)
    assert result.metrics["test_f1_macro"] == pytest.approx(found.f1_macro)


def test_the_best_weights_are_those_of_the_highest_map(trained: Made) -> None:
    _, result = trained
    points = [point["mean_average_precision"] for point in result.curve.validation]
    assert result.metrics["validation_mean_average_precision"] == pytest.approx(max(points), abs=1e-6)
    assert points[0] < max(points), "step 0 is before the training"
    best = next(point for point in result.curve.validation if point["step"] == result.curve.best_step)
    assert best["mean_average_precision"] == max(points)


def test_what_is_written_names_the_threshold_and_the_numbers(trained: Made) -> None:
    output, result = trained
    names = {path.name for path in output.iterdir()}
    assert "labels.json" in names and not any("confusion" in name for name in names)
    config = json.loads((output / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["label_threshold"] == result.threshold
    assert result.multi_label is not None and result.threshold is not None
    labels = json.loads((output / "labels.json").read_text())
    assert labels["names"] == list(LABELS) and labels["threshold"] == result.threshold
    assert labels["per_label"] == list(result.multi_label.per_label)
    results = json.loads((output / "all_results.json").read_text())
    assert {"test_mean_average_precision", "test_f1_micro", "validation_exact_match"} <= results.keys()
    card = (output / "README.md").read_text()
    assert "**Validation mAP**: 100.00%" in card and result.validation_accuracy == 1  # which is the exact match
    other = replace(result, metrics={**result.metrics, "validation_mean_average_precision": 0.875})
    shown = model_card(settings(output, output, output), other, model_is_local=True)
    assert f"**Validation mAP**: 87.50% of {result.data['validation']['count']} images carved" in shown
    assert f"from a score of {result.threshold:.4g}" in card and "micro F1 is highest on the validation" in card
    assert "confusion_matrix" not in card and "mAP, %" in (output / "training_curve.svg").read_text()
    assert re.search(r"type: mean_average_precision", card) and not re.search(r"type: accuracy", card)
    json.dumps(result.to_json())


def test_the_bundle_answers_with_the_labels_of_the_stored_threshold(
    bundle: Path, trained: Made, tmp_path: Path
) -> None:
    from PIL import Image

    threshold = trained[1].threshold
    assert Bundle.open(bundle).manifest.threshold == threshold is not None
    images, has = draw(40, 9)
    for precision in ("fp32", "int8"):
        with vitdeploy.load(bundle, "onnxruntime", precision, threads=1) as model:
            assert model.threshold == model.describe()["threshold"] == threshold
            answers = model.predict(images)
            scores = sigmoid(model.logits(images))
        for answer, row in zip(answers, scores, strict=True):
            reached = [int(place) for place in np.argsort(-row, kind="stable") if row[place] >= threshold]
            assert [score.index for score in answer.labels] == reached
        names = [{score.label for score in answer.labels} for answer in answers]
        right = [
            found == {LABELS[place] for place in np.flatnonzero(row)} for found, row in zip(names, has, strict=True)
        ]
        assert np.mean(right) > 0.7
    with vitdeploy.load(bundle, "onnxruntime", "fp32", threads=1, threshold=1e-4) as model:
        assert all(len(answer.labels) == 3 for answer in model.predict(images))
    photo = tmp_path / "a.png"
    Image.fromarray(images[0]).save(photo)
    form = ("--backend", "onnxruntime", "--precision", "fp32", "--threads", 1)
    said = json.loads(invoke("predict", bundle, photo, *form, "--json").stdout)["predictions"][0]
    with vitdeploy.load(bundle, "onnxruntime", "fp32", threads=1) as model:
        assert said["labels"] == model.predict(photo).to_json()["labels"]
    every = json.loads(invoke("predict", bundle, photo, *form, "--threshold", 0.0001, "--json").stdout)["predictions"][
        0
    ]
    assert {score["label"] for score in every["labels"]} == set(LABELS)
    assert invoke("predict", bundle, photo, *form, "--threshold", 0.0001, "-k", 1).stdout.count("yes") == 3
    first = json.loads(invoke("predict", trained[0], photo, "--threads", 1, "--json").stdout)["predictions"][0]
    assert [score["label"] for score in first["labels"]] == [score["label"] for score in said["labels"]]
    assert f"{threshold:.4g}" in invoke("inspect", bundle).stdout


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_files_of_results_have_the_labels(suffix: str, bundle: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / f"rows.{suffix}"
    with vitdeploy.load(bundle, "onnxruntime", "fp32", threads=1) as model:
        vitdeploy.predict_files(model, [photos / "test"], output, top_k=2)
        wanted = [
            [score.label for score in model.predict(photos / "test" / name).labels] for name in ("0.png", "1.png")
        ]
    if suffix == "csv":
        with open(output, newline="") as file:
            found = {Path(row["image"]).name: json.loads(row["labels"]) for row in csv.DictReader(file)}
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        found = {Path(row["image"]).name: [score["label"] for score in row["labels"]] for row in rows}
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = parquet.read_table(output).to_pylist()
        found = {Path(row["image"]).name: [score["label"] for score in row["labels"]] for row in rows}
    assert [found["0.png"], found["1.png"]] == wanted and len(found) == 80


def test_rows_of_another_threshold_are_not_gone_on_with(bundle: Path, photos: Path, tmp_path: Path) -> None:
    from vitdeploy.bulk.run import job_of
    from vitdeploy.bulk.sources import find_images

    images = find_images([str(photos / "test")])
    jobs = []
    for threshold in (None, 0.3):
        with vitdeploy.load(bundle, "onnxruntime", "fp32", threads=1, threshold=threshold) as model:
            jobs.append(job_of(model.describe(), model.labels, ["photos"], images, 5))
    assert jobs[0]["threshold"] != jobs[1]["threshold"] == 0.3


def test_bench_judges_every_form_at_the_stored_threshold(
    bundle: Path, trained: Made, photos: Path, tmp_path: Path
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "html", "md", "csv")}
    command = ("bench", bundle, "--dataset", photos, "--backend", "onnxruntime", "--no-latency", "--threads", 1)
    written = ("--json", files["json"], "--report", files["html"], "--markdown", files["md"], "--csv", files["csv"])
    done = invoke(*command, *written, "--no-save", "--baseline", trained[0], "--device", "cpu", "--max-drop", 20)
    assert done.exit_code == 0, done.stderr
    report = BenchReport.read(files["json"])
    assert report.settings.threshold == trained[1].threshold
    data = load_dataset(photos, "test")
    for key in ("fp32/onnxruntime", "int8/onnxruntime"):
        found = report.row(key).multi_label
        assert found is not None and found.threshold == trained[1].threshold
        with vitdeploy.load(bundle, "onnxruntime", key.partition("/")[0], threads=1) as model:
            logits = model.logits([data.image(index) for index in range(len(data))])
        said = sigmoid(logits) >= found.threshold
        assert found.mean_average_precision == pytest.approx(
            metrics.average_precision_score(data.label_sets, logits), abs=1e-3
        )
        for average, value, interval in (
            ("micro", found.f1_micro, found.f1_micro_ci95),
            ("macro", found.f1_macro, found.f1_macro_ci95),
        ):
            assert value == pytest.approx(metrics.f1_score(data.label_sets, said, average=average), abs=0.01)
            assert interval is not None and value is not None and interval[0] <= value <= interval[1]
    page = files["html"].read_text()
    assert "Label by label" in page and "macro F1" in page and "top-1" not in page
    assert "macro F1" in files["md"].read_text()
    (line,) = [row for row in csv.DictReader(files["csv"].open()) if row["key"] == "int8/onnxruntime"]
    assert float(line["f1_macro_low"]) <= float(line["f1_macro"]) <= float(line["f1_macro_high"])
    assert float(line["threshold"]) == trained[1].threshold


@pytest.mark.parametrize(
    "changes", [{"mixup": 0.4, "cutmix": 1.0}, {"label_smoothing": 0.1, "ema": 0.9}, {"linear_probe": True}]
)
def test_the_recipe_s_other_parts_learn_several_labels(
    changes: dict[str, Any], start: Path, photos: Path, tmp_path: Path
) -> None:
    if "mixup" in changes:
        pytest.importorskip("kornia")
    more = {"layer_decay": 0.85} if "linear_probe" in changes else {}
    result = finetune(settings(start, photos, tmp_path / "out", **changes, **more, max_steps=12))
    losses = [point["loss"] for point in result.curve.train]
    assert np.isfinite(losses).all() and losses[-1] < losses[0] * 1.05
    assert result.multi_label is not None


def test_mixed_images_have_the_labels_of_both() -> None:
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("kornia")
    from vitdeploy.training.augment import Mixer

    pixels = torch.linspace(0, 1, 6 * 3 * 8 * 8).reshape(6, 3, 8, 8)
    sets = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0]], dtype=torch.float32)
    ids = torch.arange(6)
    _, mixed = Mixer(0.8, 0.0, classes=3, seed=1)(pixels, sets, (0, 3))
    _, shares = Mixer(0.8, 0.0, classes=6, seed=1)(pixels, ids, (0, 3))  # of each image: whose share is how much
    torch.testing.assert_close(mixed, shares @ sets)
    assert not torch.equal(mixed, sets)


def test_the_loss_is_binary_cross_entropy_with_targets_smoothed_to_a_half() -> None:
    torch = pytest.importorskip("torch")
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    wanted = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])

    class Fixed(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, pixel_values: Any) -> Any:
            return type("Output", (), {"logits": logits})

    module, objective, batch = Fixed(), BinaryCrossEntropy(0.2), {"pixel_values": None, "labels": wanted}
    p = torch.sigmoid(logits)
    smooth = wanted * 0.8 + 0.1
    expected = -(smooth * p.log() + (1 - smooth) * (1 - p).log()).mean()
    torch.testing.assert_close(objective(module.train(), batch)[0], expected)
    plain = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
    torch.testing.assert_close(objective(module.eval(), batch)[0], plain)


def test_a_head_for_one_class_an_image_is_not_taken_for_several(start: Path, photos: Path, tmp_path: Path) -> None:
    result = finetune(settings(start, photos, tmp_path / "out"))
    assert any("gives one class an image" in note and "a new head" in note for note in result.notes)
    again = finetune(settings(tmp_path / "out", photos, tmp_path / "again"))
    assert not any("head" in note for note in again.notes), "the same labels, several an image: it is kept"


def test_without_validation_images_nothing_is_tuned(start: Path, photos: Path, tmp_path: Path) -> None:
    result = finetune(settings(start, photos, tmp_path / "out", validation=0))
    assert result.threshold is None and result.multi_label is not None and result.multi_label.threshold == 0.5
    assert any("count from a score of 0.5" in note for note in result.notes)
    assert "label_threshold" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert "the usual one" in (tmp_path / "out" / "README.md").read_text()
    made = vitdeploy.export(tmp_path / "out", tmp_path / "bundle")
    assert made.manifest.threshold is None
    with vitdeploy.load(made, "onnxruntime", threads=1) as model:
        assert model.threshold == 0.5


def test_what_is_not_supported_is_refused_before_training(
    start: Path, photos: Path, bundle: Path, trained: Made, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="teacher is not supported .* several labels") as error:
        finetune(settings(start, photos, tmp_path / "out", distill=start))
    assert error.value.hint == "leave --distill out"
    empty = write_tagged(tmp_path / "empty", {"train": 30, "test": 4})
    lines = [json.dumps({"file_name": f"{n}.png", "labels": []}) for n in range(4)]
    (empty / "test" / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match="none of the 4 images of empty/test has a label"):
        finetune(settings(start, empty, tmp_path / "out"))
    with pytest.raises(ModelError, match="budget of top-1 is not supported .* several labels") as budget:
        recipe = Recipe(dataset=str(photos), count=16)
        vitdeploy.build(bundle, ["int8"], target="onnx", recipe=recipe, max_drop=1.0)
    assert "vitdeploy bench" in str(budget.value.hint)
    with pytest.raises(InputError, match="a threshold is for several labels"):
        single = vitdeploy.export(start, tmp_path / "single")
        vitdeploy.load(single, threshold=0.4)
    with pytest.raises(InputError, match="the threshold is 1.5"):
        vitdeploy.load(bundle, threshold=1.5)
    assert not (tmp_path / "out").exists()


def test_a_damaged_threshold_is_named(trained: Made, bundle: Path, tmp_path: Path) -> None:
    import shutil

    from vitdeploy.bundle.migrations import from_json

    shutil.copytree(trained[0], tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "label_threshold": 7}))
    with pytest.raises(ModelError, match="label_threshold in config.json of .* is 7"):
        vitdeploy.export(tmp_path / "odd", tmp_path / "bundle")
    data = Bundle.open(bundle).manifest.to_json()
    with pytest.raises(ValueError, match="threshold is 2.0"):
        from_json({**data, "threshold": 2.0})
    shutil.copytree(bundle, tmp_path / "single")
    (tmp_path / "single" / "manifest.json").write_text(json.dumps({**data, "task": "single_label"}))
    with pytest.raises(InputError, match="a threshold is for several labels"):
        vitdeploy.load(tmp_path / "single", "onnxruntime", threads=1)


def test_labels_in_csv_are_lists_in_json(photos: Path, tmp_path: Path) -> None:
    as_csv = write_tagged(tmp_path / "photos", {"train": 20, "test": 8}, as_csv=True)
    as_lines = write_tagged(tmp_path / "again" / "photos", {"train": 20, "test": 8})
    one, other = (load_dataset(root, "train") for root in (as_csv, as_lines))
    assert one.labels == other.labels == LABELS
    assert one.label_sets is not None and np.array_equal(one.label_sets, other.label_sets)
    (as_csv / "train" / "metadata.csv").write_text("file_name,labels\n0.png,['red']\n1.png,[]\n")
    with pytest.raises(DatasetError, match=r"row 0 of .*metadata.csv has \"\['red'\]\" for its labels") as error:
        load_dataset(as_csv, "train")
    assert '["cat", "dog"]' in str(error.value.hint)
