"""The exported bundle is what PyTorch and the image processor compute; what can't be exported leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from tests.tools.tiny import LABELS
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.backends.openvino.runner import OpenVinoRunner
from vitdeploy.backends.pytorch.runner import PyTorchRunner
from vitdeploy.bundle import Bundle
from vitdeploy.compiler import export as exporter
from vitdeploy.compiler.export import export
from vitdeploy.compiler.frontend.parity import compare, compare_levels
from vitdeploy.core.errors import BundleError, ModelError, OutputExistsError, VitdeployError
from vitdeploy.core.machine import release


def pictures(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    made = []
    for height, width in sizes:
        small = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        made.append(np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)))
    return made


SIZES = [(32, 32), (8, 8), (50, 31), (120, 200), (1, 9)]


@pytest.mark.parametrize("runner", [OnnxRuntimeRunner, OpenVinoRunner])
def test_raw_pixels_give_the_logits_of_pytorch_with_its_processor(
    runner: type, tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    with runner(tiny_bundle / "model.onnx") as ours, PyTorchRunner(tiny_checkpoint) as theirs:
        worst, swapped = 0.0, 0.0
        for image in pictures(SIZES):
            reference = theirs.infer({"image": image[np.newaxis]})["logits"]
            worst = max(worst, float(np.abs(ours.infer({"image": image[np.newaxis]})["logits"] - reference).max()))
            other = ours.infer({"image": np.ascontiguousarray(image[np.newaxis, ..., ::-1])})["logits"]
            swapped = max(swapped, float(np.abs(other - reference).max()))
    # The graph may be one level of 255 away in a few pixels; logits here are about 1 in size.
    assert worst < 0.02
    assert swapped > 0.1, "swapped channels must show, or the comparison shows nothing"


def test_a_batch_gives_what_its_images_give(tiny_bundle: Path) -> None:
    images = np.stack(pictures([(40, 24)] * 5))
    with OnnxRuntimeRunner(tiny_bundle / "model.onnx") as runner:
        together = runner.infer({"image": images})["logits"]
        alone = np.concatenate([runner.infer({"image": image[np.newaxis]})["logits"] for image in images])
    np.testing.assert_allclose(together, alone, atol=2e-5)  # sums of other block sizes


def test_the_manifest_says_what_was_checked(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.labels == LABELS
    assert [spec.to_json() for spec in manifest.inputs] == [
        {"name": "image", "dtype": "uint8", "shape": ["batch", "height", "width", 3]}
    ]
    assert [spec.to_json() for spec in manifest.outputs] == [
        {"name": "logits", "dtype": "float32", "shape": ["batch", 10]}
    ]
    assert len(manifest.provenance["checks"]) == 2 and all(c["passed"] for c in manifest.provenance["checks"])
    assert manifest.model["name"] == tiny_checkpoint.name
    assert str(tiny_checkpoint.parent) not in (tiny_bundle / "manifest.json").read_text()


def test_a_static_size_is_in_the_graph(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = export(tiny_checkpoint, tmp_path / "static", input_size=(24, 40))
    assert bundle.manifest.inputs[0].shape == ("batch", 24, 40, 3)
    images = np.stack(pictures([(24, 40)] * 2))
    with OnnxRuntimeRunner(tmp_path / "static" / "model.onnx") as static:
        with OnnxRuntimeRunner(tiny_bundle / "model.onnx") as dynamic:
            np.testing.assert_allclose(
                static.infer({"image": images})["logits"], dynamic.infer({"image": images})["logits"], atol=0.02
            )
        with pytest.raises(VitdeployError, match="dimension 1 must be 24"):
            static.infer({"image": images[:, :20]})


def test_an_existing_bundle_is_kept_without_overwrite(tiny_checkpoint: Path, tiny_bundle_copy: Path) -> None:
    before = (tiny_bundle_copy / "manifest.json").read_bytes()
    with pytest.raises(OutputExistsError):
        export(tiny_checkpoint, tiny_bundle_copy)
    assert (tiny_bundle_copy / "manifest.json").read_bytes() == before


def test_a_model_too_large_for_one_file_goes_through_all_forms(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over 2 GiB, with the limit moved down: weights beside every graph, in the manifest, and the same logits."""
    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.passes import save

    monkeypatch.setattr(save, "_LIMIT", 20_000)
    bundle = build(export(tiny_checkpoint, tmp_path / "bundle"), ["fp16", "bf16"], target="onnx").bundle
    bundle.verify()
    parts = {artifact.path for artifact in bundle.select(kind="weights")}
    assert parts == {"model.onnx.data", "model.fp16.onnx.data", "model.bf16.onnx.data"}
    image = np.stack(pictures([(40, 24)]))
    graph = bundle.find(kind="onnx", precision="fp32")
    assert graph is not None and bundle.file(graph)
    moved = tmp_path / "moved"
    bundle.path.rename(moved)  # the graphs refer to their weights by name alone
    for form in ("model.onnx", "model.fp16.onnx"):
        with OnnxRuntimeRunner(moved / form) as ours, OnnxRuntimeRunner(tiny_bundle / form) as whole:
            np.testing.assert_allclose(
                ours.infer({"image": image})["logits"], whole.infer({"image": image})["logits"], atol=1e-4
            )
    with open(moved / "model.onnx.data", "r+b") as file:
        file.write(b"other numbers")
    with pytest.raises(BundleError, match=r"model.onnx.data is not the file"):
        Bundle.open(moved).file(graph)


def test_int8_finds_its_layers_in_merged_projections(tiny_checkpoint: Path, tiny_images: Path, tmp_path: Path) -> None:
    """One group fewer tensors, the same products in INT8, and logits near those of FP32."""
    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.quantization.recipe import Recipe

    bundle = export(tiny_checkpoint, tmp_path / "bundle", merge_qkv=True)
    built = build(bundle, ["int8"], target="onnx", recipe=Recipe(dataset=str(tiny_images), count=16)).bundle
    form = built.find(kind="onnx", precision="int8", target="cpu")
    assert form is not None
    image = np.stack(pictures([(40, 24)]))
    with OnnxRuntimeRunner(built.path / "model.onnx") as exact, OnnxRuntimeRunner(built.file(form)) as rounded:
        expected, found = (runner.infer({"image": image})["logits"] for runner in (exact, rounded))
    assert 0 < np.abs(found - expected).max() < 0.1 * np.ptp(expected)


def test_a_graph_that_differs_stops_the_export(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break a pass on purpose: the check against PyTorch must find it, and nothing may be written."""
    from vitdeploy.compiler.passes.values import constant, new_initializer

    real = exporter.clean

    def broken(model: object, **options: bool) -> object:
        result = real(model, **options)  # type: ignore[arg-type]
        name = "vit.layers.1.layernorm_before/LayerNormalization"
        node = next(node for node in model.graph if node.name == name)  # type: ignore[attr-defined]
        weight = constant(node.inputs[1])
        assert weight is not None
        node.replace_input_with(1, new_initializer(model.graph, "broken", weight * 1.01))  # type: ignore[attr-defined]
        return result

    monkeypatch.setattr(exporter, "clean", broken)
    with pytest.raises(ModelError, match="differs from PyTorch: ✗ FP32 graph against PyTorch") as caught:
        export(tiny_checkpoint, tmp_path / "bundle")
    assert "the first node that differs is vit.layers.1.layernorm_before/LayerNormalization, by 0.005" in str(
        caught.value
    )
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_numbers_are_named_as_such(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    module = ViTForImageClassification.from_pretrained(tiny_checkpoint)
    module.vit.layernorm.bias.data[0] = float("nan")
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    module.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="not finite in PyTorch itself"):
        export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"height": 64, "width": 64}}, "makes 64x64 pixels, the model takes 32x32"),
        ({"do_resize": False}, "does not make images of one size"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused(
    change: dict[str, object], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=message) as caught:
        export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert "preprocessor_config.json" in str(caught.value.hint)
    assert not (tmp_path / "bundle").exists()


def test_the_comparison_is_relative_to_the_range_and_catches_what_is_not_finite() -> None:
    reference = np.array([[0.0, 10.0], [5.0, 2.0]])
    assert compare("x", reference + 0.001, reference, 1e-4).value == pytest.approx(1e-4)
    assert not compare("x", reference + 0.002, reference, 1e-4).passed
    assert not compare("x", reference * np.nan, reference, 1e-4).passed
    level = np.array([0.5, 0.5, 0.5])
    zero = np.zeros((3, 2, 2))
    assert compare_levels("x", [zero + 0.5], [zero], level).passed
    assert not compare_levels("x", [zero + 0.6], [zero], level).passed


def test_an_older_pillow_makes_the_same_graph(
    one_layer_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 13.0 it took the width first in tall images too: these are compared with the reference there."""
    resize = Image.Image.resize

    def width_first(self: Any, size: tuple[int, int], *settings: Any, **named: Any) -> Any:
        return resize(resize(self, (size[0], self.height), *settings, **named), size, *settings, **named)

    expected = export(one_layer_checkpoint, tmp_path / "13").path / "model.onnx"
    monkeypatch.setattr(Image.Image, "resize", width_first)
    if release(PIL.__version__) >= (13,):
        with pytest.raises(ModelError, match="preprocessing against the image processor"):
            export(one_layer_checkpoint, tmp_path / "refused")
    monkeypatch.setattr(PIL, "__version__", "12.3.0")
    assert (export(one_layer_checkpoint, tmp_path / "12").path / "model.onnx").read_bytes() == expected.read_bytes()
