"""A budget of an embedding, the calibration that it starts from, and what its layers cost: judged by the vectors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.command_line import invoke
from tests.tools.files import snapshot
from tests.tools.quantization import PLAIN, calibrated, with_outlier_channels
from tests.tools.towers import write_tower
from vitdeploy import Bundle, build, export, load_dataset
from vitdeploy.compiler.quantization.arithmetic import E4M3, INT8, Numbers
from vitdeploy.compiler.quantization.budget import Outcome, meet_budget
from vitdeploy.compiler.quantization.calibration import Calibration, calibrate
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.int8 import analyze
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.sensitivity import LayerReport, analyze_layers
from vitdeploy.core.errors import DatasetError, InputError, ModelError
from vitdeploy.core.storage import sha256
from vitdeploy.data import ImageDataset
from vitdeploy.evaluation.batches import answers_of, open_session
from vitdeploy.evaluation.judges import KeptVectors
from vitdeploy.evaluation.limits import Limits
from vitdeploy.evaluation.paired import Truth
from vitdeploy.evaluation.vectors import Comparison, Kept, Neighbours, VectorQuality
from vitdeploy.models.tasks import cosines

RECIPE = replace(PLAIN, dataset="digits", count=16)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an embedding, with outlier channels that a plain calibration can't quantise."""
    root = tmp_path_factory.mktemp("fragile")
    bundle = export(write_tower("dinov2", root / "checkpoint"), root / "bundle")
    with bundle.edit() as editor:
        graph = with_outlier_channels(bundle.path / "model.onnx", root / "outliers.onnx", factor=100)
        editor.path_for("model.onnx").write_bytes(graph.read_bytes())
        old = bundle.find(kind="onnx", precision="fp32")
        assert old is not None
        editor.add("model.onnx", kind="onnx", precision="fp32", target=old.target, built_with=old.built_with)
    return bundle.path


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("digits", "train", limit=300)


@pytest.fixture(scope="module")
def naive(fragile: Path, digits: ImageDataset) -> Calibration:
    return calibrated(fragile, PLAIN, [digits.image(index) for index in range(24)])


@pytest.fixture(scope="module")
def exact(fragile: Path, digits: ImageDataset) -> np.ndarray:
    return answers_of(open_session(fragile / "model.onnx"), digits)


def rounded(fragile: Path, calibration: Calibration, images: ImageDataset) -> np.ndarray:
    import onnx_ir as ir

    model = ir.load(fragile / "model.onnx")
    quantize(model, calibration, scheme=calibration.coarser)
    return answers_of(open_session(model), images)


def kept(outcome: Outcome) -> tuple[KeptVectors, KeptVectors]:
    """With the search's choice, and with everything rounded."""
    result, everything = outcome.result.kept, outcome.everything.kept
    assert isinstance(result, KeptVectors) and isinstance(everything, KeptVectors)
    return result, everything


@pytest.mark.parametrize("name", ["min_cosine", "min_recall", "max_drop"])
def test_the_budget_leaves_out_what_it_must(
    name: str, fragile: Path, naive: Calibration, digits: ImageDataset, exact: np.ndarray
) -> None:
    truth = Truth.of_vectors(digits)
    bare = Comparison(rounded(fragile, naive, digits), exact, truth.classes, 10).bounds(0.95)
    assert bare.drop is not None
    limits = {
        "min_cosine": Limits(min_cosine=(1 + bare.cosine) / 2),
        "min_recall": Limits(min_recall=(0.95 + bare.recall) / 2),
        "max_drop": Limits(max_drop=100 * bare.drop * 0.75),
    }[name]
    fitted, outcome = meet_budget(fragile / "model.onnx", naive, truth, limits)
    result, everything = kept(outcome)
    assert outcome.result.met and not outcome.everything.met
    assert 0 < len(fitted.left_out) < len(naive.names)
    assert set(fitted.left_out) == {report.layer for report in outcome.left_out}
    assert result.quality.count == len(digits) // 2 < everything.quality.count == len(digits)
    again = Comparison(rounded(fragile, fitted, digits), exact, truth.classes, 10).quality
    assert again.cosine is not None and result.quality.cosine is not None and everything.quality.cosine is not None
    assert again.cosine.value == pytest.approx(result.quality.cosine.value, abs=0.05)
    assert again.cosine.value > everything.quality.cosine.value
    assert str(limits) in outcome.describe()[0] and any("left out" in line for line in outcome.describe())
    assert fitted.budget is not None and fitted.budget[name] == getattr(limits, name)


def test_layers_are_judged_by_the_vectors(
    fragile: Path, naive: Calibration, digits: ImageDataset, exact: np.ndarray
) -> None:
    some = Truth.of_vectors(digits.subset(range(60)))
    reports = analyze_layers(fragile / "model.onnx", naive, some)
    assert {report.layer for report in reports} == set(naive.names)
    for report in reports[:3]:
        alone = rounded(fragile, naive.leaving_out(set(naive.names) - {report.layer}), some.images)
        assert report.costs["cosine"] == pytest.approx(cosines(alone, exact[:60]).mean(), abs=1e-3)
        assert report.to_json()["recall"] is not None and report.to_json()["drop"] is not None
    bare = analyze_layers(fragile / "model.onnx", naive, Truth(some.images, None))
    assert [report.costs["drop"] for report in bare] == [None] * len(bare)
    assert [report.damage for report in bare] == [report.damage for report in reports]


@pytest.mark.parametrize("numbers", [INT8, E4M3], ids=["int8", "fp8"])
def test_what_calibration_searches_for_lessens_the_error_of_the_vectors(
    numbers: Numbers, fragile: Path, digits: ImageDataset, exact: np.ndarray
) -> None:
    """Each layer's choices are made by its own output; what they are for is the vector, on images that did not
    calibrate."""
    pictures, others = [digits.image(index) for index in range(48)], digits.subset(range(100, 300))

    def error(recipe: Recipe) -> float:
        calibration = calibrate(
            fragile / "model.onnx", "hash", pictures, len(pictures), recipe, {"name": "digits"}, None, numbers
        )
        return float(1 - cosines(rounded(fragile, calibration, others), exact[100:]).mean())

    whole, plain = error(Recipe()), error(replace(PLAIN, adaptive_rounding=False))
    assert whole < plain / 2
    without_smoothing = error(Recipe(smoothing=False))
    assert whole < without_smoothing
    if numbers is INT8:
        assert error(Recipe(smoothing=False, bias_correction=False)) < plain, "ranges, and shifts of one-sided values"
    else:
        assert error(Recipe(adaptive_rounding=False)) > whole


def copied(fragile: Path, folder: Path) -> Path:
    return Path(shutil.copytree(fragile, folder / "bundle"))


def budget_of(bundle: Bundle, kind: str = "calibration") -> Any:
    found = bundle.find(kind=kind)
    assert found is not None
    return found.built_with["budget"]


def test_the_bundle_keeps_its_budget_and_another_one_makes_other_forms(fragile: Path, tmp_path: Path) -> None:
    path = copied(fragile, tmp_path)
    wanted: dict[str, Any] = {"target": "onnx", "recipe": RECIPE, "validation_images": 200}
    # force: a plain calibration of this model would fail its check, and nothing would be left to search for
    first = build(path, ["int8", "fp8"], **wanted, min_cosine=0.9, force=True)
    for kind in ("calibration", "fp8-calibration"):
        budget = budget_of(first.bundle, kind)
        assert budget["min_cosine"] == 0.9 and "max_drop" not in budget and budget["validation"]["count"] == 200
        assert budget["result"]["cosine"]["value"] > budget["result"]["bounds"]["cosine"] >= 0.9
    assert not build(path, ["int8", "fp8"], **wanted, min_cosine=0.9).built
    stricter = build(path, ["int8"], **wanted, min_cosine=0.99)
    assert {"calibration.json", "model.int8-cpu.onnx"} <= {artifact.path for artifact in stricter.built}
    assert len(budget_of(stricter.bundle)["left_out"]) > len(budget_of(first.bundle)["left_out"])
    both = build(path, ["int8"], **wanted, min_cosine=0.99, min_recall=0.1, neighbours=3)
    assert budget_of(both.bundle)["result"]["k"] == 3 and both.built
    assert build(path, ["int8"], **wanted, min_cosine=0.99).built, "recall is limited no more"
    shown = invoke("inspect", path)
    assert "Budget" in shown.stdout and "a mean cosine of 0.99" in " ".join(shown.stdout.split())
    data = json.loads(invoke("inspect", path, "--json").stdout)
    assert data["calibrations"]["int8"]["budget"] == budget_of(Bundle.open(path))
    assert data["calibrations"]["fp8"]["budget"]["min_cosine"] == 0.9
    without = build(path, ["int8"], target="onnx", recipe=RECIPE, force=True)
    assert budget_of(without.bundle) is None
    assert json.loads(invoke("inspect", path, "--json").stdout)["calibration"]["budget"] == {}


def test_analyze_knows_embeddings(fragile: Path, tmp_path: Path) -> None:
    path = copied(fragile, tmp_path)
    build(path, ["int8"], target="onnx", recipe=RECIPE, force=True)
    asked = ("analyze", path, "--dataset", "digits", "--count", 40)
    rows = json.loads(invoke(*asked, "--json").stdout)["rows"]
    assert rows and all(0 < row["recall"] <= 1 and -1 <= row["cosine"] <= 1 and row["drop"] is not None for row in rows)
    words = invoke(*asked)
    assert words.exit_code == 0 and all(name in words.stdout for name in ("cosine", "recall", "drop", "agreement"))
    with pytest.raises(DatasetError, match="one image"):
        analyze(path, RECIPE, count=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images without classes."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for place in range(160):
        Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{place:03d}.png")
    return folder


def test_images_without_classes(fragile: Path, photos: Path, tmp_path: Path) -> None:
    path = copied(fragile, tmp_path)
    asked = ("build-engine", path, "--int8", "--target", "onnx", "--calibration-data", photos)
    recipe = Recipe(dataset=str(photos), count=16)
    done = build(path, ["int8"], target="onnx", recipe=recipe, min_recall=0.001, min_cosine=0.01, force=True)
    assert budget_of(done.bundle)["result"]["knn"] is None
    before = snapshot(path)
    drop: Callable[[], Any] = lambda: build(path, ["int8"], target="onnx", recipe=recipe, max_drop=1.0)  # noqa: E731
    with pytest.raises(DatasetError, match="no class an image, so what a classifier by neighbours loses"):
        drop()
    refused = invoke(*asked, "--min-cosine", 0.9)
    assert refused.exit_code == 1 and "all images of" in refused.stderr, "256 are asked for and all of them calibrate"
    assert snapshot(path) == before


def test_a_budget_that_can_not_be_met_changes_nothing(fragile: Path, tmp_path: Path) -> None:
    path = copied(fragile, tmp_path)
    before = snapshot(path)
    with pytest.raises(
        ModelError, match=r"can't be kept within a mean cosine of 0.99999999 of FP32; the best found"
    ) as error:
        build(
            path,
            ["int8"],
            target="onnx",
            recipe=RECIPE,
            min_cosine=0.99999999,
            validation_images=120,
            force=True,
        )
    assert "relax the budget" in str(error.value.hint)
    assert snapshot(path) == before


def test_limits_of_embeddings_are_refused_for_a_classifier(tiny_bundle: Path, tmp_path: Path) -> None:
    before = snapshot(tiny_bundle)
    done = invoke(
        *("build-engine", tiny_bundle, "--int8", "--target", "onnx", "--calibration-data", "digits"),
        *("--min-recall", 0.9, "--min-cosine", 0.9),
    )
    assert done.exit_code == 1 and "--min-cosine is for embeddings" in done.stderr and "--max-drop" in done.stderr
    with pytest.raises(InputError, match="needs images to measure what is lost on"):
        build(tiny_bundle, ["int8"], target="onnx", min_cosine=0.9)
    assert snapshot(tiny_bundle) == before


def test_hash_of_the_changed_graph_is_the_manifests(fragile: Path) -> None:
    single = Bundle.open(fragile).find(kind="onnx", precision="fp32")
    assert single is not None and single.sha256 == sha256(fragile / "model.onnx")


def test_a_layer_that_costs_nothing_costs_no_minus_nothing() -> None:
    one = Kept(1.0, (1.0, 1.0))
    knn = Neighbours(0.5, (0.4, 0.6), delta=0.0, delta_ci95=(0.0, 0.0), drop_bound=0.0)
    report = LayerReport("fc1", "mlp", 0.5, 40.0, 50.0, VectorQuality(10, 100, one, one, one, one, one, one, knn))
    assert f"{report.costs['drop']:+.2f}" == "+0.00"
