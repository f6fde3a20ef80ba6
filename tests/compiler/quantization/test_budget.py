"""Layers judged one by one, and the budget that leaves out as few of them as it can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tools.quantization import PLAIN, calibrated, int8, with_outlier_channels
from tests.tools.running import load_benchmark
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.quantization.budget import meet_budget
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.int8 import analyze
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.sensitivity import analyze_layers
from vitdeploy.compiler.settings import BuildSettings
from vitdeploy.core.errors import InputError, ModelError
from vitdeploy.data import load_dataset
from vitdeploy.evaluation.batches import answers_of, open_session
from vitdeploy.evaluation.limits import Limits
from vitdeploy.evaluation.paired import PairedDrop, Truth, compare_answers


@pytest.fixture(scope="module")
def truth(tiny_bundle: Path) -> Truth:
    """Digits with FP32's own answers as classes: the drop is how often INT8 differs, less nothing."""
    images = load_dataset("digits", "train", limit=300)
    logits = answers_of(open_session(tiny_bundle / "model.onnx"), images)
    return Truth(images, logits.argmax(axis=1))


@pytest.fixture(scope="module")
def fragile(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function as tiny_bundle's FP32 graph, with outlier channels that min-max can't quantise."""
    folder = tmp_path_factory.mktemp("fragile")
    with_outlier_channels(tiny_bundle / "model.onnx", folder / "model.onnx", factor=300)
    return folder


@pytest.fixture(scope="module")
def naive(fragile: Path) -> Calibration:
    return calibrated(fragile, PLAIN)


def test_walking_from_cut_to_cut_gives_the_logits_of_the_whole_graph(tiny_bundle: Path, truth: Truth) -> None:
    calibration = calibrated(tiny_bundle, Recipe(attention=True, patch_embedding=True, classifier=True))
    few = truth.spread(40)
    reference = answers_of(open_session(tiny_bundle / "model.onnx"), few.images)
    reports = analyze_layers(tiny_bundle / "model.onnx", calibration, few)
    assert {report.layer for report in reports} == set(calibration.names)
    assert {report.kind for report in reports} == {"linear", "attention", "patch_embedding", "classifier"}
    assert sum(report.macs_share for report in reports) == pytest.approx(1)
    for report in reports:
        alone = int8(tiny_bundle, calibration.leaving_out(set(calibration.names) - {report.layer}))
        logits = answers_of(open_session(alone), few.images)
        noise = float(np.square(logits - reference, dtype=np.float64).mean())
        signal = float(np.square(reference - reference.mean(), dtype=np.float64).mean())
        # Batches of another shape may round a value to the next step now and then.
        assert report.logits_db == pytest.approx(10 * np.log10(signal / noise), abs=1.0)


def test_the_layers_with_outliers_are_blamed(fragile: Path, naive: Calibration, truth: Truth) -> None:
    reports = analyze_layers(fragile / "model.onnx", naive, truth.spread(64))
    worst = sorted(reports, key=lambda report: report.logits_db)[:6]
    assert all("q_proj" in report.layer or "fc1" in report.layer for report in worst)


def test_the_budget_leaves_out_what_it_must(fragile: Path, naive: Calibration, truth: Truth) -> None:
    fitted, outcome = meet_budget(fragile / "model.onnx", naive, truth, Limits(20.0))
    result, everything = outcome.result.kept, outcome.everything.kept
    assert isinstance(result, PairedDrop) and isinstance(everything, PairedDrop)
    assert everything.drop_bound > 20 >= result.drop_bound
    assert 0 < len(fitted.left_out) < len(naive.names)
    assert set(fitted.left_out) == {report.layer for report in outcome.left_out}
    reference = answers_of(open_session(fragile / "model.onnx"), truth.images)
    again = answers_of(open_session(int8(fragile, fitted)), truth.images)
    # Judged on the half that had no part in the choice; on all images it is as good, as far as half of them can tell.
    assert result.count == len(truth.images) // 2 < everything.count == len(truth.images)
    assert truth.classes is not None
    assert compare_answers(again, reference, truth.classes).drop == pytest.approx(result.drop, abs=4)
    assert any("left out" in line for line in outcome.describe())


def test_a_generous_budget_leaves_out_nothing(tiny_bundle: Path, truth: Truth) -> None:
    fitted, outcome = meet_budget(tiny_bundle / "model.onnx", calibrated(tiny_bundle, Recipe()), truth, Limits(50.0))
    assert fitted.left_out == () and outcome.result == outcome.everything


def test_a_budget_that_images_can_not_show_says_so(tiny_bundle: Path, truth: Truth) -> None:
    with pytest.raises(ModelError, match="the best found, with") as caught:
        meet_budget(tiny_bundle / "model.onnx", calibrated(tiny_bundle, Recipe()), truth.spread(50), Limits(0.5))
    assert "50 images can't show less than" in str(caught.value.hint)


def test_the_bound_covers_the_truth() -> None:
    """Of 400 samples of 500 images with a true drop of 1 point, about 95 % have a bound above it."""
    generator = np.random.default_rng(0)
    reference = np.eye(3, dtype=np.float32)[np.zeros(500, dtype=np.int64)]
    covered = 0
    for _ in range(400):
        draw = generator.random(500)
        answers = np.where(draw < 0.02, 1, 0)  # lost with 2 %
        truth = np.where(draw > 0.99, 1, 0)  # FP32 wrong with 1 %, and INT8 right there
        answers = np.where(draw > 0.99, 1, answers)
        judged = compare_answers(np.eye(3, dtype=np.float32)[answers], reference, truth)
        covered += judged.drop_bound >= 1.0
    assert 0.92 * 400 <= covered <= 0.99 * 400


def test_what_a_budget_prints_is_below_the_truth_in_at_most_one_of_twenty_trials() -> None:
    assert all(claim.holds for claim in load_benchmark("audit").searches(300))


def test_the_simulation_sees_a_bound_that_is_too_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.compiler.quantization.budget._CONFIDENCE", 0.8)
    bound, *_ = load_benchmark("audit").searches(100)
    assert bound.share > 0.1 and not bound.holds


def test_a_bundle_keeps_its_budget_and_its_layers(tiny_bundle_copy: Path, tiny_images: Path) -> None:
    recipe = Recipe(dataset="digits", count=16)
    wanted = {"target": "onnx", "recipe": recipe}
    # force: no images are enough for the check of this model, whose weights are random
    result = build(tiny_bundle_copy, ["int8"], **wanted, max_drop=60, validation_images=60, force=True)
    cached = result.bundle.find(kind="calibration")
    assert cached is not None and cached.built_with["budget"]["max_drop"] == 60
    assert cached.built_with["budget"]["validation"]["count"] == 60
    again = build(tiny_bundle_copy, ["int8"], **wanted, max_drop=60, validation_images=60)
    assert not again.built
    without = build(tiny_bundle_copy, ["int8"], **wanted, force=True)
    cached = without.bundle.find(kind="calibration")
    assert cached is not None and cached.built_with["budget"] is None


def test_a_budget_that_can_not_be_met_changes_nothing(tiny_bundle_copy: Path) -> None:
    from tests.tools.files import snapshot

    before = snapshot(tiny_bundle_copy)
    with pytest.raises(ModelError, match="can't be kept within"):
        build(
            tiny_bundle_copy,
            ["int8"],
            target="onnx",
            recipe=Recipe(dataset="digits", count=16),
            max_drop=0.01,
            validation_images=40,
            force=True,
        )
    assert snapshot(tiny_bundle_copy) == before


def test_requests_that_make_no_sense_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="needs images to measure"):
        BuildSettings(limits=Limits(0.5))
    for wrong in (-1, 0, 101):
        with pytest.raises(InputError, match=f"max_drop must be above 0 and at most 100, not {wrong}"):
            Limits(wrong)
    for name in ("min_cosine", "min_recall"):
        for share in (0, 1, 95):
            with pytest.raises(InputError, match=f"{name} must be between 0 and 1, not {share}"):
                Limits(**{name: share})
    with pytest.raises(InputError, match="neighbours alone limit nothing"):
        Limits(neighbours=5)
    with pytest.raises(InputError, match="validation images"):
        BuildSettings(recipe=Recipe(dataset="digits"), limits=Limits(1), validation_images=0)


def test_the_analysis_stays_in_the_bundle(tiny_bundle_copy: Path) -> None:
    analysis = analyze(tiny_bundle_copy, Recipe(dataset="digits", count=16), count=32)
    bundle = Bundle.open(tiny_bundle_copy)
    bundle.verify()
    kept = json.loads((tiny_bundle_copy / "analysis.json").read_text())
    assert kept == analysis.to_json() and kept["schema_version"] == 1 and kept["data"]["count"] == 32
    assert len(kept["rows"]) == 12
    assert {"layer", "kind", "macs_share", "sqnr_db", "drop", "agreement"} <= set(kept["rows"][0])


def test_a_bundle_without_int8_has_nothing_to_analyse(tiny_bundle: Path, tmp_path: Path) -> None:
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    data["artifacts"] = [a for a in data["artifacts"] if a["path"] == "model.onnx"]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    (tmp_path / "model.onnx").write_bytes((tiny_bundle / "model.onnx").read_bytes())
    with pytest.raises(InputError, match="no INT8 to analyse"):
        analyze(tmp_path, Recipe(dataset="digits"))


@pytest.mark.parametrize("made_by", [{"algorithm": 99}, {"code": "0" * 16}, {"code": "unknown"}, {}])
def test_a_cache_of_another_or_of_no_known_version_is_made_again_where_there_are_images(
    made_by: dict[str, object], tiny_bundle_copy: Path, tiny_images: Path
) -> None:
    bundle = Bundle.open(tiny_bundle_copy)
    data = json.loads((tiny_bundle_copy / "calibration.json").read_text())
    del data["algorithm"]
    data |= made_by
    with bundle.edit() as editor:
        editor.path_for("calibration.json").write_text(json.dumps(data))
        old = bundle.find(kind="calibration")
        assert old is not None
        editor.add("calibration.json", kind="calibration", built_from=old.built_from, built_with=old.built_with)
    recipe = Recipe(dataset=str(tiny_images), count=24)
    built = build(tiny_bundle_copy, ["int8"], target="onnx", recipe=recipe).built
    assert "calibration.json" in {artifact.path for artifact in built}


def test_entropy_ranges_lie_between_nothing_and_all(tiny_bundle: Path) -> None:
    clips = [group.clip for group in calibrated(tiny_bundle, replace(PLAIN, method="entropy")).groups]
    assert all(0 < clip <= 1 for clip in clips) and min(clips) < 1
