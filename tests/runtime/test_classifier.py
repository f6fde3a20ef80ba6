"""`load` and the classifier: any usual image in, labels and probabilities out."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.backends import needs_openvino
from tests.tools.batches import sizes_of_batches
from tests.tools.measured import keep_report
from tests.tools.notes import Notes
from tests.tools.tiny import LABELS
from vitdeploy import load
from vitdeploy.bundle import Bundle
from vitdeploy.core import progress
from vitdeploy.core.errors import (
    BundleError,
    DependencyError,
    EngineError,
    ImageError,
    InputError,
    ModelError,
    RunnerClosedError,
    VitdeployError,
)
from vitdeploy.core.machine import gpus
from vitdeploy.core.specs import Prediction
from vitdeploy.evaluation.statistics import softmax
from vitdeploy.runtime import scoring
from vitdeploy.runtime.classifier import Classifier
from vitdeploy.runtime.limits import BATCH
from vitdeploy.runtime.predictions import Namer

pytestmark = pytest.mark.usefixtures("no_kernels", "exact_products")  # the same order of forms on every machine
FLOAT32 = 2e-5  # sums in another order, see test_contract


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Iterator[Classifier]:
    with load(tiny_bundle, backend="onnxruntime", precision="fp32", threads=1) as opened:
        yield opened


def image(height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_the_example_of_the_readme(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png(image()))
    prediction = load(str(tiny_bundle), threads=1).predict(str(tmp_path / "cat.png"))
    assert prediction.label in LABELS
    assert prediction.label == LABELS[prediction.index] == prediction.top_k[0].label
    assert prediction.score == prediction.top_k[0].score
    assert len(prediction.top_k) == 5


def test_every_kind_of_source_gives_the_same(classifier: Classifier, tmp_path: Path) -> None:
    pixels = image()
    path = tmp_path / "image.png"
    path.write_bytes(png(pixels))
    expected = classifier.predict(pixels)
    for source in (str(path), path, png(pixels), io.BytesIO(png(pixels)), Image.fromarray(pixels)):
        assert classifier.predict(source) == expected
    assert classifier.predict(image(seed=1)) != expected


def test_one_gives_one_and_several_give_a_list(classifier: Classifier) -> None:
    pixels = image()
    one = classifier.predict(pixels)
    assert classifier.predict([pixels]) == [one]
    assert classifier.predict((pixels, pixels)) == [one, one]
    assert classifier.predict(np.stack([pixels, pixels])) == [one, one]
    assert classifier.predict([]) == []
    assert classifier.logits([]).shape == (0, 10)


def test_scores_are_softmax_of_the_logits(classifier: Classifier) -> None:
    logits = classifier.logits(image())
    assert logits.shape == (1, 10)
    assert logits.dtype == np.float32
    scores = np.exp(logits[0].astype(np.float64))
    scores /= scores.sum()
    prediction = classifier.predict(image(), top_k=10)
    assert [s.index for s in prediction.top_k] == list(np.argsort(-logits[0], kind="stable"))
    # float64 on both sides; only the shift by the maximum differs
    np.testing.assert_allclose([s.score for s in prediction.top_k], np.sort(scores)[::-1], rtol=1e-12)
    assert sum(s.score for s in prediction.top_k) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("top_k", [1, 3, 5, 6])
def test_of_equal_classes_the_first_comes_first(top_k: int) -> None:
    logits = np.array([1, 3, 2, 3, 3, 0], np.float32)
    best = Namer("abcdef", "a form").prediction(logits, top_k).top_k
    assert [score.index for score in best] == [1, 3, 4, 2, 0, 5][:top_k]


@pytest.mark.parametrize("classes", [1, 10, 64, 65, 1000])
@pytest.mark.parametrize("top_k", [1, 5, 16, 17, 2000])
def test_the_best_of_few_and_of_many_classes(classes: int, top_k: int) -> None:
    # whole numbers: many are equal
    logits = np.random.default_rng(classes).integers(-5, 6, classes).astype(np.float32)
    kept = logits.copy()
    best = Namer([f"class {index}" for index in range(classes)], "a form").prediction(logits, top_k)
    expected = np.argsort(-logits, kind="stable")[:top_k].tolist()
    assert [score.index for score in best.top_k] == expected
    assert [score.label for score in best.top_k] == [f"class {index}" for index in expected]
    assert (best.label, best.index, best.score) == (f"class {expected[0]}", expected[0], best.top_k[0].score)
    # float64 sums in another order
    np.testing.assert_allclose([score.score for score in best.top_k], softmax(logits)[expected], rtol=1e-13)
    assert all(type(score.score) is float and type(score.index) is int for score in best.top_k)
    np.testing.assert_array_equal(logits, kept)


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_scores_that_are_not_finite_are_refused(classes: int, wrong: float, place: int) -> None:
    namer = Namer([str(index) for index in range(classes)], "this form")
    logits = np.zeros(classes, np.float32)
    logits[3], logits[4] = 3e38, -3e38  # large is not infinite
    assert namer.prediction(logits, 1).index == 3
    assert namer.finite(logits) is logits
    logits[place] = wrong
    for refuses in (namer.finite, lambda scores: namer.prediction(scores, 1)):
        with pytest.raises(ModelError, match="this form gives numbers that are not finite"):
            refuses(logits)


def test_top_k_is_made_when_it_is_read_and_nobody_can_tell() -> None:
    logits = np.array([1, 3, 2, 3, 3, 0], np.float32)
    namer = Namer("abcdef", "a form")

    def fresh() -> Prediction:
        return namer.prediction(logits, 3)

    whole = Prediction(fresh().label, fresh().index, fresh().score, fresh().top_k)
    assert "top_k" not in vars(fresh())
    for made in (fresh(), copy.deepcopy(fresh()), pickle.loads(pickle.dumps(fresh()))):
        assert made == whole
    assert repr(fresh()) == repr(whole)
    assert hash(fresh()) == hash(whole)
    fields = dataclasses.asdict(fresh()) | {"top_k": whole.to_json()["top_k"]}
    unset = {"value": None, "labels": None}
    assert unset | fresh().to_json() == unset | whole.to_json() == fields
    assert dataclasses.replace(fresh(), score=0.5).top_k == whole.top_k
    one = fresh()
    assert one.top_k is one.top_k
    assert set(vars(one)) == {"label", "index", "score", "top_k"}  # the logits are let go
    with pytest.raises(AttributeError, match="topk"):
        fresh().topk  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(dataclasses.FrozenInstanceError):
        fresh().label = "b"  # type: ignore[misc]


def test_softmax_survives_large_logits() -> None:
    scores = softmax(np.array([3e38, 3e38, -3e38], np.float32))
    np.testing.assert_array_equal(scores, [0.5, 0.5, 0.0])


def test_mixed_sizes_keep_their_order(classifier: Classifier) -> None:
    pixels = [image(*size, seed=i) for i, size in enumerate([(32, 32), (40, 60), (32, 32), (20, 90), (40, 60)])]
    together = classifier.logits(pixels)
    alone = np.concatenate([classifier.logits(one) for one in pixels])
    np.testing.assert_allclose(together, alone, atol=FLOAT32, rtol=0)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(together, alone[::-1], atol=FLOAT32, rtol=0)


@pytest.fixture
def batches(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that reach the runner."""
    return sizes_of_batches(classifier, monkeypatch)


def test_batches_are_bounded(classifier: Classifier, batches: list[int]) -> None:
    pixels = [image(32 + 8 * (i % 2), seed=i) for i in range(80)]
    together = classifier.logits(pixels)
    assert sorted(batches) == [8, 8, 32, 32]
    np.testing.assert_allclose(together[77:78], classifier.logits(pixels[77]), atol=FLOAT32, rtol=0)


def test_only_more_images_than_one_batch_show_progress(classifier: Classifier) -> None:
    shown: list[tuple[str, float | None]] = []

    class Shown(Notes):
        def task(self, description: str, total: float | None, unit: str) -> Any:
            shown.append((description, total))
            return super().task(description, total, unit)

    with progress.use(Shown()):
        classifier.predict([image()] * BATCH)
        classifier.predict([image()] * (BATCH + 1))
    assert shown == [("Classifying", BATCH + 1)]


def test_waiting_pixels_are_bounded(
    classifier: Classifier, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "HELD_BYTES", 3 * 32 * 32 * 3)
    assert len(classifier.predict([image(seed=i) for i in range(8)])) == 8
    assert batches == [3, 3, 2]


def test_top_k(classifier: Classifier) -> None:
    assert len(classifier.predict(image(), top_k=1).top_k) == 1
    assert len(classifier.predict(image(), top_k=99).top_k) == 10
    for wrong in (0, -1, 1.5, True, "3"):
        with pytest.raises(InputError, match="top_k"):
            classifier.predict(image(), top_k=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(image().astype(np.float32), id="float"),
        pytest.param(image()[0, 0], id="one dimension"),
        pytest.param(image()[None, None], id="five dimensions"),
        pytest.param(np.zeros((0, 32, 3), np.uint8), id="no rows"),
        pytest.param(np.zeros((32, 32, 7), np.uint8), id="seven channels"),
        pytest.param(np.zeros((2, 3, 32, 32), np.uint8), id="channels first"),
        pytest.param(b"", id="no bytes"),
        pytest.param(b"not an image", id="text"),
        pytest.param("no/such/file.png", id="no file"),
        pytest.param(None, id="none"),
        pytest.param(7, id="number"),
    ],
)
def test_what_is_no_image(classifier: Classifier, wrong: Any) -> None:
    with pytest.raises(ImageError) as caught:
        classifier.predict(wrong)
    assert caught.value.hint
    assert classifier.predict(image()).label in LABELS  # it works on


def test_the_error_names_the_image(classifier: Classifier, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"oops")
    with pytest.raises(ImageError, match=r"bad\.png"):
        classifier.predict([image(), bad])
    with pytest.raises(ImageError, match="image 1:"):
        classifier.predict([image(), b"oops"])


def test_errors_can_be_returned(classifier: Classifier) -> None:
    answers = classifier.predict([image(), b"oops", image(40, 60)], errors="return")
    assert answers[0] == classifier.predict(image())
    assert isinstance(answers[1], ImageError)
    assert answers[2] == classifier.predict(image(40, 60))
    assert isinstance(classifier.predict(b"oops", errors="return"), ImageError)
    with pytest.raises(InputError, match="errors"):
        classifier.predict(image(), errors="ignore")


def test_threads_share_a_classifier(classifier: Classifier) -> None:
    lists = [[image(32 + 8 * (i % 3), seed=10 * n + i) for i in range(5)] for n in range(12)]
    serial = [classifier.logits(pixels) for pixels in lists]
    with ThreadPoolExecutor(6) as pool:
        parallel = list(pool.map(classifier.logits, lists))
    np.testing.assert_allclose(np.stack(parallel), np.stack(serial), atol=FLOAT32, rtol=0)


def test_closed(tiny_bundle: Path) -> None:
    opened = load(tiny_bundle, threads=1)
    with opened as same:
        assert same is opened
        same.predict(image())
    opened.close()
    for use in (lambda: opened.predict(image()), lambda: opened.predict([]), lambda: opened.logits(image())):
        with pytest.raises(RunnerClosedError, match="this classifier is closed"):
            use()
    with pytest.raises(RunnerClosedError, match="this classifier is closed"), opened:
        pass
    assert opened.describe()["precision"] == "int8"  # what it was can still be asked


def test_auto_takes_int8_on_openvino(tiny_bundle: Path) -> None:
    if gpus():
        pytest.skip("there is a GPU here")
    with load(tiny_bundle, threads=1) as opened:
        described = opened.describe()
        assert (opened.backend, opened.precision) == ("openvino", "int8")
        assert described["artifact"] == "model.int8-cpu.onnx"
        assert described["passed_over"] == []
        json.dumps(described)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("precision", "file"), [("fp32", "model.onnx"), ("fp16", "model.fp16.onnx"), ("int8", "model.int8-cpu.onnx")]
)
def test_a_form_that_was_asked_for(tiny_bundle: Path, backend: str, precision: str, file: str) -> None:
    with load(tiny_bundle, backend=backend, precision=precision, threads=1, device="cpu") as opened:
        described = opened.describe()
        assert (described["backend"], described["precision"], described["artifact"]) == (backend, precision, file)
        assert np.isfinite(opened.logits(image())).all()


def test_wishes_that_are_wrong(tiny_bundle: Path) -> None:
    for wish, hint in (
        ({"backend": "tensorflow"}, "openvino"),
        ({"precision": "int4"}, "fp16"),
        ({"device": "tpu"}, "cuda"),
        ({"threads": 0}, "from 1 to"),
        ({"threads": True}, "from 1 to"),
    ):
        with pytest.raises(InputError) as caught:
            load(tiny_bundle, **wish)  # type: ignore[arg-type]
        assert hint in (caught.value.hint or "")
    with pytest.raises(InputError, match="no form for tensorrt") as caught:
        load(tiny_bundle, backend="tensorrt")
    assert "build-engine" in (caught.value.hint or "")


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        load(tmp_path / "none")
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)


def test_a_file_that_was_changed_is_not_loaded(tiny_bundle_copy: Path) -> None:
    path = tiny_bundle_copy / "model.int8-cpu.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        load(tiny_bundle_copy, device="cpu")
    load(tiny_bundle_copy, precision="fp32", device="cpu", threads=1).close()


def test_a_backend_that_is_missing_is_passed_over(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what Python does with a module that can't be imported
    with load(tiny_bundle, threads=1, device="cpu") as opened:
        described = opened.describe()
    assert (described["backend"], described["precision"]) == ("onnxruntime", "int8")
    assert [(c["backend"], c["precision"]) for c in described["passed_over"]] == [("openvino", "int8")]
    assert "openvino" in described["passed_over"][0]["reason"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match="nothing here can run") as caught:
        load(tiny_bundle, device="cpu")
    assert caught.value.hint is not None and "[cpu]" in caught.value.hint
    with pytest.raises(DependencyError) as caught:
        load(tiny_bundle, backend="openvino", precision="fp32")
    assert caught.value.hint is not None and "[cpu]" in caught.value.hint


def test_an_openvino_that_is_too_old_is_passed_over(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvino.__version__", "2025.2.0-1-a")
    with load(tiny_bundle) as classifier:
        assert classifier.backend == "onnxruntime"
        assert any("wrong answers for INT8" in str(each) for each in classifier.describe()["passed_over"])
    with pytest.raises(DependencyError, match="2026.3 is the first that does not"):
        load(tiny_bundle, backend="openvino")


@needs_openvino
def test_a_graph_that_a_backend_can_not_load_is_passed_over(tiny_bundle_copy: Path) -> None:
    """A manifest may describe a file that no backend here can read: the next form has to do."""
    with Bundle.open(tiny_bundle_copy).edit() as editor:
        editor.path_for("model.int8-cpu.onnx").write_bytes(b"from the future")
        editor.add("model.int8-cpu.onnx", kind="onnx", precision="int8", target="cpu")
    with load(tiny_bundle_copy, threads=1, device="cpu") as opened:
        described = opened.describe()
    assert described["precision"] == "fp32"
    assert [c["precision"] for c in described["passed_over"]] == ["int8", "int8"]


def add_engine(path: Path, **built_with: Any) -> None:
    with Bundle.open(path).edit() as editor:
        editor.path_for("engines/tensorrt-fp16.engine").write_bytes(b"plan")
        editor.add(
            "engines/tensorrt-fp16.engine", kind="engine", precision="fp16", target="tensorrt", built_with=built_with
        )


@needs_openvino
def test_an_engine_without_a_gpu(tiny_bundle_copy: Path) -> None:
    if gpus():
        pytest.skip("there is a GPU here")
    add_engine(tiny_bundle_copy)
    with load(tiny_bundle_copy, threads=1) as opened:
        passed = opened.describe()["passed_over"]
    assert [c["backend"] for c in passed] == ["tensorrt"]
    assert "no NVIDIA GPU" in passed[0]["reason"]
    with load(tiny_bundle_copy, threads=1, device="cpu") as opened:
        assert opened.describe()["passed_over"] == []
    with pytest.raises(EngineError, match="no NVIDIA GPU") as caught:
        load(tiny_bundle_copy, backend="tensorrt")
    assert caught.value.hint


def report(bundle: Path, row: dict[str, Any]) -> None:
    """Keep a benchmark report with one row, about the INT8 form, in the bundle."""
    artifact = Bundle.open(bundle).find(kind="onnx", precision="int8", target="cpu")
    assert artifact is not None
    measured = {
        "key": "int8/openvino",
        "artifact": {"path": artifact.path, "sha256": artifact.sha256},
        "backend": "openvino",
        "status": "ok",
    }
    keep_report(bundle, [{**measured, **row}])


@needs_openvino
def test_a_form_that_was_measured_to_lose_too_much_is_passed_over(tiny_bundle_copy: Path) -> None:
    report(tiny_bundle_copy, {"accuracy": {"delta": -0.031}})
    with load(tiny_bundle_copy, threads=1, device="cpu") as opened:
        described = opened.describe()
    assert described["precision"] == "fp32"
    assert all("3.10 points" in c["reason"] for c in described["passed_over"])
    assert len(described["passed_over"]) == 2
    with load(tiny_bundle_copy, precision="int8", threads=1, device="cpu") as opened:  # who asks for it gets it
        assert opened.precision == "int8"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"accuracy": {"delta": -0.009}}, id="within the budget"),
        pytest.param({"accuracy": {"delta": None}}, id="not compared"),
        pytest.param({"accuracy": {"delta": -0.5}, "artifact": {"path": "x", "sha256": "0"}}, id="of another file"),
        pytest.param({"status": "failed", "reason": "?", "backend": "onnxruntime"}, id="failed elsewhere"),
        pytest.param({"accuracy": 3}, id="unreadable"),
    ],
)
def test_reports_that_say_nothing_against_it(tiny_bundle_copy: Path, row: dict[str, Any]) -> None:
    report(tiny_bundle_copy, row)
    with load(tiny_bundle_copy, threads=1, device="cpu") as opened:
        assert (opened.precision, opened.backend) == ("int8", "openvino")


@needs_openvino
def test_a_form_that_failed_in_the_benchmark_is_passed_over(tiny_bundle_copy: Path) -> None:
    report(tiny_bundle_copy, {"status": "failed", "reason": "its answers changed from call to call"})
    with load(tiny_bundle_copy, threads=1, device="cpu") as opened:
        described = opened.describe()
    assert (described["precision"], described["backend"]) == ("int8", "onnxruntime")
    assert "changed from call to call" in described["passed_over"][0]["reason"]


def test_scores_that_are_not_finite_are_no_answer(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"logits": np.full((1, 10), np.nan, np.float32)}
    monkeypatch.setattr(classifier._runner, "infer_checked", lambda feeds: nothing)
    with pytest.raises(ModelError, match="not finite") as caught:
        classifier.predict(image())
    assert "fp32" in (caught.value.hint or "")


def test_labels_that_do_not_fit_the_graph(tiny_bundle_copy: Path) -> None:
    with Bundle.open(tiny_bundle_copy).edit() as editor:
        editor.update(labels=("one", "two"))
    with pytest.raises(BundleError, match="2 classes"):
        load(tiny_bundle_copy, threads=1, device="cpu")


def test_a_bundle_for_one_size(one_layer_checkpoint: Path, tmp_path: Path) -> None:
    from vitdeploy.compiler.export import export

    export(one_layer_checkpoint, tmp_path / "fixed", input_size=(24, 40))
    with load(tmp_path / "fixed", threads=1, device="cpu") as opened:
        assert opened.predict(image(24, 40)).label in LABELS
        with pytest.raises(ImageError, match="height 24, width 40"):
            opened.predict(image(40, 24))
        answers = opened.predict([image(24, 40), image(40, 24)], errors="return")
    assert isinstance(answers[1], ImageError)
    assert not isinstance(answers[0], VitdeployError)


def test_a_form_that_was_named_in_full_is_taken(tiny_bundle_copy: Path) -> None:
    report(tiny_bundle_copy, {"status": "failed", "reason": "its answers changed from call to call"})
    with load(tiny_bundle_copy, backend="openvino", precision="int8", threads=1, device="cpu") as opened:
        assert opened.backend == "openvino"
