"""Zero-shot: a classifier of words answers as transformers' own pipeline does on the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.command_line import invoke
from tests.tools.towers import write_tower
from vitdeploy import InputError, ModelError, Recipe, build, export, load
from vitdeploy.backends.pytorch.runner import PyTorchRunner
from vitdeploy.models.tasks import TEMPLATE, TaskRequest, softmax

LABELS = ("cat", "dog", "red car")
FAMILIES = [("clip", "single_label"), ("siglip", "single_label_sigmoid"), ("siglip2", "single_label_sigmoid")]
TEMPLATES = ("a photo of a {}.", "This is a {} .", "photo {}")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("words")
    return {name: write_tower(name, root / name, words=True) for name in ("clip", "siglip", "siglip2")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(8)
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        noise = generator.integers(0, 256, (30 + 7 * number, 44, 3), dtype=np.uint8)
        Image.fromarray(noise // (number + 1)).save(path)
    return paths


def pipeline_says(checkpoint: Path, picture: Path, **how: Any) -> dict[str, float]:
    from transformers import pipeline

    ask = pipeline("zero-shot-image-classification", model=str(checkpoint))
    return {answer["label"]: answer["score"] for answer in ask(str(picture), candidate_labels=list(LABELS), **how)}


@pytest.mark.parametrize("template", [None, TEMPLATES[0]])
@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_it_answers_as_the_pipeline(
    name: str, task: str, template: str | None, checkpoints: dict[str, Path], pictures: list[Path], tmp_path: Path
) -> None:
    given = () if template is None else (template,)
    bundle = export(checkpoints[name], tmp_path / "bundle", task="zero-shot", labels=LABELS, templates=given)
    manifest = bundle.manifest
    assert (manifest.task, manifest.labels, manifest.embedding) == (task, LABELS, None)
    assert manifest.provenance["zero_shot"]["templates"] == [template or TEMPLATE]
    how = {} if template is None else {"hypothesis_template": template}
    answers = []
    with load(bundle, "onnxruntime", threads=1) as classifier:
        for picture in pictures:
            wanted = pipeline_says(checkpoints[name], picture, **how)
            found = {score.label: score.score for score in classifier.predict(picture).top_k}
            assert found == pytest.approx(wanted, abs=2e-5)
            assert list(found) == list(wanted), "in falling order"
            answers.append(tuple(found.values()))
    assert len(set(answers)) == len(pictures)


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_templates_are_averaged_as_clip_does(
    name: str, checkpoints: dict[str, Path], pictures: list[Path], tmp_path: Path
) -> None:
    """By the words of CLIP's own notebook: normalise, mean over the templates, normalise."""
    import torch
    import transformers

    bundle = export(checkpoints[name], tmp_path / "bundle", task="zero-shot", labels=LABELS, templates=TEMPLATES)
    module = transformers.AutoModel.from_pretrained(checkpoints[name]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints[name])
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoints[name])
    padding = {"padding": True} if name == "clip" else {"padding": "max_length", "max_length": 64}
    with torch.inference_mode():
        columns = []
        for label in LABELS:
            tokens = tokenizer([text.format(label) for text in TEMPLATES], return_tensors="pt", **padding)
            vectors = torch.nn.functional.normalize(module.get_text_features(**tokens).pooler_output, dim=-1)
            columns.append(torch.nn.functional.normalize(vectors.mean(dim=0), dim=0))
        pixels = processor([Image.open(path) for path in pictures], return_tensors="pt")["pixel_values"]
        image = torch.nn.functional.normalize(module.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        wanted = module.logit_scale.exp() * image @ torch.stack(columns).T + getattr(module, "logit_bias", 0)
    with load(bundle, "onnxruntime", threads=1) as classifier:
        np.testing.assert_allclose(classifier.logits(pictures), wanted.numpy(), atol=1e-4 * np.ptp(wanted.numpy()))
        assert not np.allclose(classifier.logits(pictures), wanted.numpy()[:, ::-1], atol=1e-3)


def test_it_is_an_ordinary_classifier(
    checkpoints: dict[str, Path], pictures: list[Path], tiny_images: Path, tmp_path: Path
) -> None:
    bundle = export(checkpoints["clip"], tmp_path / "bundle", task="zero-shot", labels=LABELS, outputs=("scores",))
    build(bundle, ["fp16", "int8"], target="onnx", recipe=Recipe(dataset=str(tiny_images), count=16))
    with load(bundle.path, "onnxruntime", "fp32") as exact, load(bundle.path, "onnxruntime", "int8") as small:
        wanted, found = exact.logits(pictures), small.logits(pictures)
        np.testing.assert_allclose(found, wanted, atol=0.2 * np.ptp(wanted))
        assert np.abs(found - wanted).max() > 0
    request = TaskRequest("zero-shot", labels=LABELS)
    with PyTorchRunner(checkpoints["clip"], threads=1, request=request) as runner:
        pixels = np.asarray(Image.open(pictures[0]))[np.newaxis]
        answer = runner.infer({"image": pixels})
    np.testing.assert_allclose(softmax(answer["logits"]), softmax(wanted[:1]), atol=1e-4)


def test_words_come_from_a_file(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    words = tmp_path / "labels.txt"
    words.write_text("cat\n\n  red car \n", encoding="utf-8")
    asked = ("export", checkpoints["clip"], "--output", tmp_path / "bundle", "--task", "zero-shot", "--labels", words)
    done = invoke(*asked, "--template", "a photo of a {}.", "--template", "photo {}", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["labels"] == ["cat", "red car"] and len(told["provenance"]["zero_shot"]["templates"]) == 2
    shown = invoke("inspect", tmp_path / "bundle").stdout
    assert "Words in" in shown and "photo {}" in shown


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"labels": ("cat", "cat")}, "named twice"),
        ({"labels": ("cat",), "templates": ("no place",)}, "no single place"),
        ({"labels": ("cat",), "normalize": True}, "no vectors to normalise"),
        ({}, "needs words"),
    ],
)
def test_wrong_words_are_refused(asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        export("runs/none", tmp_path / "bundle", task="zero-shot", **asked)
    assert caught.value.hint


def test_a_checkpoint_without_its_tokenizer_or_with_too_long_a_sentence(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    long = "cat " * 100
    with pytest.raises(ModelError, match="longer than the 77 tokens"):
        export(checkpoints["clip"], tmp_path / "bundle", task="zero-shot", labels=(long.strip(),))
    bare = write_tower("clip", tmp_path / "bare")
    with pytest.raises(ModelError, match="bare has no tokenizer") as caught:
        export(bare, tmp_path / "bundle", task="zero-shot", labels=LABELS)
    assert "tokenizer.json" in str(caught.value.hint)


def test_other_words_take_the_calibration_over(checkpoints: dict[str, Path], tiny_images: Path, tmp_path: Path) -> None:
    """INT8 of a tower is the same whatever its words: made without an image, it is what calibrating anew makes."""
    from vitdeploy.inspection.bundle import inspect
    from vitdeploy.inspection.next_step import next_steps

    recipe = Recipe(dataset=str(tiny_images), count=16)
    first = export(checkpoints["clip"], tmp_path / "first", task="zero-shot", labels=LABELS)
    with pytest.raises(InputError, match="no calibration to take over"):
        export(checkpoints["clip"], tmp_path / "none", task="zero-shot", labels=("a",), calibration_from=first.path)
    build(first, ["int8"], target="onnx", recipe=recipe)
    words = tmp_path / "labels.txt"
    words.write_text("dog\nphoto\n", encoding="utf-8")
    asked = ["export", checkpoints["clip"], "--task", "zero-shot", "--labels", words, "--from", first.path]
    done = invoke(*asked, "--output", tmp_path / "second")
    assert done.exit_code == 0, done.stderr
    assert f"Next: vitdeploy build-engine {tmp_path / 'second'} --fp16 --int8\n" in done.stdout  # it needs no images
    steps = {step.path: step.command for step in next_steps(tmp_path)}
    assert steps[tmp_path / "second"] == f"vitdeploy build-engine {tmp_path / 'second'} --fp16 --int8"
    assert inspect(tmp_path / "second").calibration["recipe"]["count"] == 16  # type: ignore[index,union-attr]
    built = invoke("build-engine", tmp_path / "second", "--int8", "--target", "onnx")
    assert built.exit_code == 0, built.stderr
    anew = export(checkpoints["clip"], tmp_path / "anew", task="zero-shot", labels=("dog", "photo"))
    build(anew, ["int8"], target="onnx", recipe=recipe)
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    with (
        load(tmp_path / "second", precision="int8", backend="onnxruntime") as taken,
        load(anew.path, precision="int8", backend="onnxruntime") as fresh,
        load(anew.path, precision="fp32") as exact,
    ):
        np.testing.assert_allclose(taken.logits(image), fresh.logits(image), atol=1e-5)
        assert np.abs(taken.logits(image) - exact.logits(image)).max() > 1e-5, "it is INT8"
    vectors = export(checkpoints["clip"], tmp_path / "vectors", task="embedding", calibration_from=first.path)
    assert vectors.find(kind="calibration") is not None


@pytest.fixture(scope="module")
def calibrated(checkpoints: dict[str, Path], tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedding of CLIP with an INT8 form. Read-only."""
    path = export(checkpoints["clip"], tmp_path_factory.mktemp("calibrated") / "bundle").path
    return build(path, ["int8"], target="onnx", recipe=Recipe(dataset=str(tiny_images), count=4)).bundle.path


@pytest.mark.parametrize(
    ("how", "words"), [({"image_size": (48, 48)}, "image_size"), ({"merge_qkv": True}, "other layers"), ({}, "weights")]
)
def test_another_tower_keeps_its_calibration_to_itself(
    how: dict[str, Any], words: str, checkpoints: dict[str, Path], tiny_bundle: Path, calibrated: Path, tmp_path: Path
) -> None:
    other = calibrated if how else tiny_bundle
    with pytest.raises(InputError, match=f"not for this tower: .*{words}"):
        export(
            checkpoints["clip"],
            tmp_path / "bundle",
            task="zero-shot",
            labels=LABELS,
            calibration_from=other,
            **how,
        )
    assert not (tmp_path / "bundle").exists()
