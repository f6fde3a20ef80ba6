"""The model that Triton's python backend runs, started from a repository as the server does; `test_triton_server` asks
a real one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.small_bundle import write_small_bundle
from tests.tools.triton_backend import TritonError, backend_utils, request
from vitdeploy import BundleError, load
from vitdeploy.deploy.triton.model import TritonPythonModel
from vitdeploy.deploy.triton.repository import triton
from vitdeploy.deploy.triton.settings import TritonSettings
from vitdeploy.models.tasks import CLASSIFICATION, EMBEDDING, TASKS

messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
text_format = pytest.importorskip("google.protobuf.text_format")
json_format = pytest.importorskip("google.protobuf.json_format")
pytest.importorskip("onnxruntime")
LABELS = ("ape", "bee", "cat", "dog")
Opened = tuple[Path, TritonPythonModel, dict[str, list[int]]]
"""The bundle, the model, and the sizes of each output, one image's, as the server reads them."""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Opened]]:
    """`opened("multi_label", 0.7)`: the model of a bundle of that task and threshold, which lists two classes."""
    backend_utils(monkeypatch)
    with ExitStack() as stack:

        def model_of(task: str, threshold: float | None = None) -> Opened:
            labels = LABELS[:1] if task == "binary" else LABELS
            bundle = write_small_bundle(
                tmp_path / "bundle", labels=labels, engine=False, embedding=TASKS[task].kind is EMBEDDING
            )
            manifest = {**json.loads((bundle / "manifest.json").read_text()), "task": task}
            if threshold is not None:
                manifest["threshold"] = threshold
            (bundle / "manifest.json").write_text(json.dumps(manifest))
            triton(bundle, tmp_path / "models", TritonSettings(name="vit", top_k=2))
            model, given = TritonPythonModel(), arguments(tmp_path / "models" / "vit")
            model.initialize(given)
            stack.callback(model.finalize)
            outputs = json.loads(given["model_config"])["output"]
            return bundle, model, {output["name"]: list(map(int, output["dims"])) for output in outputs}

        yield model_of


def arguments(model: Path) -> dict[str, str]:
    """What the server starts a model of a repository with."""
    config = text_format.Parse((model / "config.pbtxt").read_text(), messages.ModelConfig())
    text = json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))
    return {"model_repository": str(model), "model_version": "1", "model_config": text}


def pictures(count: int) -> list[bytes]:
    """Fields of one colour each, as PNG."""
    found = []
    for colour in np.random.default_rng(5).integers(0, 256, (count, 3)).tolist():
        stream = io.BytesIO()
        Image.new("RGB", (12, 9), tuple(colour)).save(stream, "png")
        found.append(stream.getvalue())
    return found


def rows(outputs: dict[str, np.ndarray], image: int) -> list[tuple[str, float, int]]:
    columns = [outputs[name][image].tolist() for name in ("LABEL", "SCORE", "INDEX")]
    return [(label.decode(), score, index) for label, score, index in zip(*columns, strict=True)]


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.kind is CLASSIFICATION])
def test_each_request_gets_its_own_answers_in_the_outputs_of_the_configuration(
    task: str, opened: Callable[..., Opened]
) -> None:
    bundle, model, outputs = opened(task)
    images = pictures(5)
    with load(bundle, device="cpu") as classifier:
        expected = classifier.predict(images, 2)
    assert ("LABELS" in outputs) == TASKS[task].several
    responses = model.execute([request(*images[:2]), request(images[2]), request(*images[3:])])
    place = 0
    for response in responses:
        assert response.error is None
        count = len(response.outputs["LABEL"])
        assert {name: array.shape for name, array in response.outputs.items()} == {
            name: (count, *sizes) for name, sizes in outputs.items()
        }
        for image in range(count):
            best = [(s.label, s.value if s.score is None else s.score, s.index) for s in expected[place].top_k]
            assert rows(response.outputs, image) == [(label, np.float32(score), index) for label, score, index in best]
            place += 1
    assert place == len(images)


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95, None])
def test_of_several_labels_it_gives_those_that_reach_the_threshold_of_the_bundle(
    threshold: float | None, opened: Callable[..., Opened]
) -> None:
    """However many: also more than the best classes that are listed, and none."""
    bundle, model, _ = opened("multi_label", threshold)
    images = pictures(24)
    (response,) = model.execute([request(*images)])
    found = [json.loads(text) for (text,) in response.outputs["LABELS"]]
    with load(bundle, device="cpu") as classifier:
        answers = classifier.predict(images, len(LABELS))
    least = 0.5 if threshold is None else threshold
    assert found == [[score.to_json() for score in answer.top_k if score.score >= least] for answer in answers]
    counts = {len(labels) for labels in found}
    assert counts & {3, 4} if least < 0.5 else counts & {0, 1}, counts


def test_an_embedding_gives_its_vectors_and_a_bad_image_is_an_error_of_its_own_request(
    opened: Callable[..., Opened],
) -> None:
    bundle, model, outputs = opened("embedding")
    assert outputs == {"EMBEDDING": [len(LABELS)]}
    images = pictures(5)
    with load(bundle, device="cpu") as embedder:
        expected = embedder.embed(images)
    first, wrong, last = model.execute([request(*images[:2]), request(b"no image"), request(*images[2:])])
    assert isinstance(wrong.error, TritonError) and wrong.error.code() == TritonError.INVALID_ARG
    found = [response.outputs["EMBEDDING"] for response in (first, last)]
    assert {array.dtype.name for array in found} == {"float32"}
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_an_image_that_can_not_be_used_is_an_error_of_its_own_request(opened: Callable[..., Opened]) -> None:
    _, model, _ = opened("multi_label", 0.4)
    (good,) = pictures(1)
    first, wrong, last = model.execute([request(good), request(good, b"no image"), request(good)])
    assert first.error is None and last.error is None
    assert isinstance(wrong.error, TritonError) and wrong.error.code() == TritonError.INVALID_ARG
    assert wrong.error.message().startswith("image 1 of the request: ") and not wrong.outputs
    assert rows(first.outputs, 0) == rows(last.outputs, 0)


def test_another_bundle_than_the_configurations_is_not_served(opened: Callable[..., Opened], tmp_path: Path) -> None:
    opened("single_label")
    model = tmp_path / "models" / "vit"
    manifest = model / "1" / "bundle" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(BundleError, match=r"is not the bundle that config\.pbtxt was written for"):
        TritonPythonModel().initialize(arguments(model))
