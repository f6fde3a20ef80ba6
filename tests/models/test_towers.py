"""Embeddings: a bundle gives what transformers gives, for every tower that is known, and says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.command_line import invoke
from tests.tools.families import PLAIN, write_family
from tests.tools.towers import SIZE, TOWERS, write_tower
from vitdeploy import Bundle, InputError, ModelError, build, export, load
from vitdeploy.bundle.migrations import from_json
from vitdeploy.models.tasks import EMBEDDING, TASKS, cosines
from vitdeploy.models.towers import TOWERS as KNOWN

LEAST = 0.99999
SIZES = ((32, 32), (40, 60), (17, 90), (200, 150))
_STAGES = {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [1, 1]}
_WINDOWS = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": SIZE}
POOLED = {  # tower: what transformers' own class gives, in words of its own code, and what the manifest says of it
    "vit": ("ViTModel", lambda out: out.last_hidden_state[:, 0], "class token", False),
    "deit": ("DeiTModel", lambda out: out.last_hidden_state[:, 0], "class token", False),
    "beit": ("BeitModel", lambda out: out.pooler_output, "mean of the patches", False),
    "beit-class": ("BeitModel", lambda out: out.pooler_output, "class token", False),
    "dinov2": ("Dinov2Model", lambda out: out.pooler_output, "class token", False),
    "dinov2-registers": ("Dinov2WithRegistersModel", lambda out: out.pooler_output, "class token", False),
    "dinov3": ("DINOv3ViTModel", lambda out: out.pooler_output, "class token", False),
    "clip": ("CLIPModel", None, "projection", True),
    "clip-projected": ("CLIPVisionModelWithProjection", lambda out: out.image_embeds, "projection", True),
    "clip-tower": ("CLIPVisionModel", lambda out: out.pooler_output, "class token", False),
    "siglip": ("SiglipModel", None, "attention pooling head", True),
    "siglip-tower": ("SiglipVisionModel", lambda out: out.pooler_output, "attention pooling head", True),
    "siglip2": ("SiglipModel", None, "attention pooling head", True),
    "vit-mae": ("ViTMAEModel", lambda out: out.last_hidden_state[:, 0], "no patch hidden", False),
    "vit-msn": ("ViTMSNModel", lambda out: out.last_hidden_state[:, 0], "class token", False),
    "pvt": ("PvtModel", lambda out: out.last_hidden_state[:, 0], "class token", False),
    "data2vec": ("Data2VecVisionModel", lambda out: out.last_hidden_state[:, 1:].mean(1), "mean of the patches", False),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name -> (checkpoint, bundle), each made once."""
    root, done = tmp_path_factory.mktemp("towers"), dict[str, tuple[Path, Bundle]]()

    def of(name: str) -> tuple[Path, Bundle]:
        if name not in done:
            checkpoint = write_tower(name, root / name)
            done[name] = checkpoint, export(checkpoint, root / f"{name}-bundle")
        return done[name]

    return of


def images() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def transformers_says(checkpoint: Path, name: str, pictures: list[np.ndarray], **how: Any) -> np.ndarray:
    """The vectors of the class's own code, one image at a time, with the checkpoint's image processor."""
    import torch
    import transformers

    architecture, pool, _, _ = POOLED[name]
    options = {"mask_ratio": 0.0} if name == "vit-mae" else {}  # which hides most patches unless told otherwise
    module = getattr(transformers, architecture).from_pretrained(checkpoint, **options).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint)
    rows = []
    with torch.inference_mode():
        for picture in pictures:
            pixels = processor(picture, return_tensors="pt", input_data_format="channels_last", **how)["pixel_values"]
            if pool is None:
                rows.append(module.get_image_features(pixel_values=pixels).pooler_output[0].numpy())
            else:
                rows.append(pool(module(pixel_values=pixels))[0].numpy())
    return np.stack(rows)


def test_every_row_of_the_table_has_a_checkpoint_here() -> None:
    import transformers

    made_of = {name: make().config.model_type for name, make in TOWERS.items()}
    assert set(made_of.values()) == {tower.model_type for tower in KNOWN}
    assert {POOLED[name][0] for name in TOWERS} >= {tower.architecture for tower in KNOWN if tower.part is None}
    assert all(hasattr(transformers, tower.architecture) for tower in KNOWN)


@pytest.mark.parametrize("name", TOWERS)
def test_it_gives_transformers_vectors_of_any_image(name: str, made: Any) -> None:
    checkpoint, bundle = made(name)
    wanted = transformers_says(checkpoint, name, images())
    with load(bundle, "onnxruntime", "fp32", threads=1) as model:
        found = model.embed(images())
        alone = model.embed(images()[1])
    assert found.dtype == np.float32 and found.shape == wanted.shape and alone.shape == (1, wanted.shape[1])
    assert cosines(found, wanted).min() >= LEAST
    np.testing.assert_allclose(alone[0], found[1], atol=1e-5)
    _, _, pooling, normalized = POOLED[name]
    spec = bundle.manifest.embedding
    assert spec is not None and (spec.normalized, spec.dimensions) == (normalized, wanted.shape[1])
    assert pooling in spec.pooling
    if normalized:
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    else:
        np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
    assert cosines(found[[1, 2, 3, 0]], wanted).max() < LEAST, "images are told apart"


@pytest.mark.parametrize("name", TOWERS)
def test_the_manifest_tells_the_task(name: str, made: Any) -> None:
    _, bundle = made(name)
    manifest = bundle.manifest
    assert TASKS[manifest.task].kind is EMBEDDING and manifest.labels == ()
    assert [spec.name for spec in manifest.outputs] == ["embedding"]
    checks = {check["name"]: check for check in manifest.provenance["checks"]}
    assert checks["direction against PyTorch"]["value"] <= 1 - LEAST
    again = from_json(manifest.to_json())
    assert again == manifest and json.loads(json.dumps(manifest.to_json())) == manifest.to_json()


def test_a_size_of_its_own_interpolates_positions(made: Any, tmp_path: Path) -> None:
    import torch
    import transformers

    checkpoint, _ = made("dinov2")
    bundle = export(checkpoint, tmp_path / "bundle", image_size=(48, 48))
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint, size={"height": 48, "width": 48})
    module = transformers.Dinov2Model.from_pretrained(checkpoint).eval()
    picture = images()[3]
    pixels = processor(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    with torch.inference_mode(), load(bundle, "onnxruntime", threads=1) as model:
        assert pixels.shape[2:] == (48, 48) != (SIZE, SIZE)
        assert cosines(model.embed(picture), module(pixel_values=pixels).pooler_output.numpy())[0] >= LEAST


@pytest.mark.parametrize(("name", "normalize"), [("vit", True), ("clip", False)])
def test_the_length_is_as_asked(name: str, normalize: bool, made: Any, tmp_path: Path) -> None:
    checkpoint, _ = made(name)
    bundle = export(checkpoint, tmp_path / "bundle", normalize=normalize)
    assert bundle.manifest.embedding is not None and bundle.manifest.embedding.normalized is normalize
    wanted = transformers_says(checkpoint, name, images())
    with load(bundle, "onnxruntime", threads=1) as model:
        found = model.embed(images())
    lengths = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(lengths, 1 if normalize else np.linalg.norm(wanted, axis=1), rtol=1e-4)
    assert cosines(found, wanted).min() >= LEAST


@pytest.mark.parametrize("family", ["vit", "data2vec"])
def test_a_classifier_gives_its_embedding_when_asked(family: str, tmp_path: Path) -> None:
    """What its classifier reads is the vector, so logits follow from it."""
    import torch
    import transformers

    checkpoint = write_family(family, tmp_path / "checkpoint")
    assert export(checkpoint, tmp_path / "classes").manifest.task == "single_label"
    bundle = export(checkpoint, tmp_path / "vectors", task="embedding")
    head = transformers.AutoModelForImageClassification.from_pretrained(checkpoint).classifier
    with load(tmp_path / "classes", "onnxruntime") as classifier, load(bundle, "onnxruntime") as model:
        with torch.inference_mode():
            logits = head(torch.from_numpy(model.embed(images()))).numpy()
        np.testing.assert_allclose(logits, classifier.logits(images()), atol=1e-4)


def test_asking_for_the_other_kind_names_the_right_command(made: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    _, bundle = made("vit")
    with load(bundle, "onnxruntime") as model:
        for ask in (model.predict, model.logits):
            with pytest.raises(InputError, match=r"predict is not for .*embedding, one vector an image") as caught:
                ask(images())
            assert f"vitdeploy embed {bundle.path} IMAGE" in str(caught.value.hint) and ".embed" in str(
                caught.value.hint
            )
        assert "48 dimensions" in repr(model) and model.describe()["embedding"]["dimensions"] == 48
        assert [vector.shape for vector in model.stream(images())] == [(48,)] * 4
    with load(tiny_bundle, "onnxruntime", "fp32") as classifier:
        with pytest.raises(InputError, match="embed is not for .*one class an image") as caught:
            classifier.embed(images())
        assert f"vitdeploy predict {tiny_bundle} IMAGE" in str(caught.value.hint)


async def _ask(model: Any) -> Any:
    return await model.predict_async(images()[0])


def test_an_event_loop_is_told_the_same(made: Any) -> None:
    import asyncio

    with load(made("vit")[1], "onnxruntime") as model, pytest.raises(InputError, match="predict is not for"):
        asyncio.run(_ask(model))


def test_half_precision_is_judged_by_the_direction(made: Any, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(made("siglip-tower")[1].path, tmp_path / "bundle"))
    build(copy, ["fp16"], target="onnx")
    artifact = Bundle.open(copy).find(kind="onnx", precision="fp16")
    assert artifact is not None
    check = artifact.built_with["check"]
    assert check["unit"] == "of 1 - cosine" and 0 < check["value"] <= check["tolerance"] == 0.005
    assert invoke("verify", copy, "--backend", "onnxruntime").exit_code == 0


def test_what_is_made_for_classes_refuses_vectors(made: Any, tmp_path: Path) -> None:
    from vitdeploy.deploy.web.site import web
    from vitdeploy.explain.run import look_inside

    _, bundle = made("vit")
    for name, use in (
        ("deploy web", lambda: web(bundle, tmp_path / "site")),
        ("explain", lambda: look_inside(bundle, images()[0])),
    ):
        with pytest.raises(InputError, match=f"{name} is not for .*which gives an embedding"):
            use()
    assert not list(tmp_path.iterdir())


def test_inspect_shows_what_the_vectors_are(made: Any) -> None:
    done = invoke("inspect", made("clip")[1].path)
    assert done.exit_code == 0 and "24 numbers an image" in done.stdout and "of length 1" in done.stdout
    told = json.loads(invoke("inspect", made("vit")[1].path, "--json").stdout)
    assert told["task"] == "embedding" and told["embedding"]["normalized"] is False


def test_a_self_test_holds_for_vectors(made: Any) -> None:
    _, bundle = made("siglip-tower")
    done = invoke("verify", bundle.path, "--backend", "onnxruntime")
    assert done.exit_code == 0, done.stderr
    assert "same image" in done.stdout and "32 of 32" in done.stdout and "passed" in done.stdout


@pytest.mark.parametrize(
    ("name", "asked", "error", "words"),
    [
        ("vit", {"task": "classification"}, ModelError, "no trained classification head"),
        ("vit", {"task": "ranking"}, InputError, "no task 'ranking'"),
        ("vit", {"outputs": ("scores",)}, ModelError, "no scores"),
        ("vit", {"outputs": ("features",)}, ModelError, "no features"),
        ("vit", {"task": "zero-shot", "labels": ("a",)}, ModelError, "learnt no words"),
        ("vit", {"task": "zero-shot"}, InputError, "needs words"),
        ("vit", {"labels": ("a",)}, InputError, "zero-shot alone"),
    ],
)
def test_what_a_tower_can_not_give_is_refused(
    name: str, asked: dict[str, Any], error: type[Exception], words: str, made: Any, tmp_path: Path
) -> None:
    checkpoint, _ = made(name)
    with pytest.raises(error, match=words) as caught:
        export(checkpoint, tmp_path / "bundle", **asked)
    assert caught.value.hint  # type: ignore[attr-defined]
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("task", ["embedding", "zero-shot"])
def test_siglip_2_of_patch_sequences_is_refused_by_name(task: str, tmp_path: Path) -> None:
    checkpoint = write_family("siglip2", tmp_path / "checkpoint")
    labels = ("cat",) if task == "zero-shot" else ()
    with pytest.raises(ModelError, match=r"is a siglip2 model, which takes patch sequences of any shape") as caught:
        export(checkpoint, tmp_path / "bundle", task=task, labels=labels)
    assert "siglip2-base-patch16-224" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("detr", "is a detr model, which finds objects"),
        ("videomae", "takes videos"),
        ("bert", "which transformers does not list as one of images"),
    ],
)
def test_a_kind_without_a_vector_of_an_image_is_refused_by_name(
    kind: str, words: str, made: Any, tmp_path: Path
) -> None:
    import shutil

    checkpoint = Path(shutil.copytree(made("vit")[0], tmp_path / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(ModelError, match=words) as caught:
        export(checkpoint, tmp_path / "bundle", task="embedding")
    assert caught.value.hint


BY_OUTPUT = {  # class of transformers: its settings, what makes a vector of its output, and what the manifest says
    "SwinModel": (_WINDOWS, lambda out: out.pooler_output, "the model's own code"),
    "ResNetModel": (_STAGES, lambda out: out.pooler_output.flatten(1), "the model's own code"),
    "IJepaModel": (PLAIN, lambda out: out.last_hidden_state.mean(1), "the mean of the last layer's tokens"),
    "SwinBackbone": (_WINDOWS, lambda out: out.feature_maps[-1].mean((2, 3)), "the mean of the last feature map"),
}


@pytest.mark.parametrize("name", BY_OUTPUT)
def test_a_kind_without_a_row_is_pooled_by_what_it_gives(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    settings, pool, words = BY_OUTPUT[name]
    torch.manual_seed(0)
    architecture = getattr(transformers, name)
    module = architecture(architecture.config_class(**settings)).eval()
    module.save_pretrained(tmp_path / "checkpoint")
    processor = transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    processor.save_pretrained(tmp_path / "checkpoint")
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle")
    pixels = [processor(picture, return_tensors="pt", input_data_format="channels_last") for picture in images()]
    with torch.inference_mode(), load(bundle, "onnxruntime", threads=1) as model:
        wanted = np.concatenate([pool(module(**one)).numpy() for one in pixels])
        found = model.embed(images())
    assert bundle.manifest.embedding is not None and words in bundle.manifest.embedding.pooling
    assert found.shape == wanted.shape == (len(SIZES), bundle.manifest.embedding.dimensions)
    assert cosines(found, wanted).min() >= LEAST


def test_a_classifier_of_clip_has_no_projection_to_take(tmp_path: Path) -> None:
    checkpoint = write_family("clip", tmp_path / "checkpoint")
    with pytest.raises(ModelError, match=r"does not hold all of a CLIPVisionModelWithProjection: visual_projection"):
        export(checkpoint, tmp_path / "bundle", task="embedding")
    with pytest.raises(InputError, match="no vectors to normalise"):
        export(checkpoint, tmp_path / "bundle", normalize=True)


def test_a_manifest_that_contradicts_itself_is_refused(made: Any) -> None:
    data = made("vit")[1].manifest.to_json()
    for wrong in ({"embedding": None}, {"task": "single_label"}, {"schema_version": 1}):
        with pytest.raises(ValueError, match="embedding"):
            from_json({**data, **wrong})
