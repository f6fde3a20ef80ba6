"""Every family of ViT exports, gives what PyTorch gives, and gets the passes that are meant for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.families import write_family
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.export import export
from vitdeploy.compiler.float16.cast import model_nodes
from vitdeploy.core.errors import ModelError

TRANSFORMERS = ["fold-attention-scale", "fold-class-token"]
# family: the passes that must find something to do
EXPECTED = {
    "deit": TRANSFORMERS,
    "deit-distilled": TRANSFORMERS,
    "beit": [*TRANSFORMERS, "fold-layer-scale"],
    "beit-absolute": [*TRANSFORMERS, "fold-layer-scale"],
    "data2vec": [*TRANSFORMERS, "fold-layer-scale"],
    "dinov2": [*TRANSFORMERS, "fold-layer-scale"],
    "dinov2-swiglu": [*TRANSFORMERS, "fold-layer-scale"],
    "dinov2-registers": [*TRANSFORMERS, "fold-layer-scale"],
    "clip": TRANSFORMERS,
    "metaclip-2": TRANSFORMERS,
    "siglip": ["fold-attention-scale"],
    "ijepa": ["fold-attention-scale"],
    "vit-msn": TRANSFORMERS,
    "swin": ["fold-attention-scale", "remove-no-ops", "fold-window-mask"],
    "swinv2": ["fold-constants", "remove-no-ops"],
    "convnext": ["fold-layer-scale"],
    "convnextv2": [],
    "resnet": [],
    "hiera": [],
    "pvt": [],
    "pvt-v2": [],
}
QUICK = {"deit-distilled", "beit", "dinov2-registers", "swin", "convnext", "clip"}
WITH_ATTENTION = {
    *("deit", "deit-distilled", "beit", "beit-absolute", "data2vec", "dinov2", "dinov2-registers", "siglip", "clip"),
    "metaclip-2",
}


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in EXPECTED]
)
def test_the_family_exports(family: str, tmp_path: Path) -> None:
    size = 64 if family == "hiera" else 32
    outputs = ("logits", "scores", "features", *(("attention",) if family in WITH_ATTENTION else ()))
    checkpoint = write_family(family, tmp_path / "checkpoint", size=size)
    bundle = export(checkpoint, tmp_path / "bundle", outputs=outputs, merge_qkv=True)
    manifest = bundle.manifest
    checks = {check["name"]: check for check in manifest.provenance["checks"]}
    assert len(checks) == len(outputs) + 1
    assert all(check["passed"] and check["value"] >= 0 for check in checks.values())
    passes = {result["name"]: result for result in manifest.provenance["passes"]}
    for name in EXPECTED[family]:
        assert passes[name]["changed"] > 0, passes[name]
    assert all(result["changed"] or result["declined"] for result in passes.values()), "a pass that declines says why"
    assert [spec.name for spec in manifest.outputs] == list(outputs)
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    with OnnxRuntimeRunner(tmp_path / "bundle" / "model.onnx") as runner:
        values = runner.infer({"image": image})
    exponential = np.exp(values["logits"] - values["logits"].max(axis=1, keepdims=True))
    np.testing.assert_allclose(values["scores"], exponential / exponential.sum(axis=1, keepdims=True), atol=1e-5)
    operators = Counter(node.op_type for node in model_nodes(ir.load(tmp_path / "bundle" / "model.onnx")))
    assert operators["LayerNormalization"] == _layer_norms(checkpoint)
    assert not {"IsNaN", "Erf", "Expand", "Range", "Shape"} & set(operators)
    if "attention" in values:
        np.testing.assert_allclose(values["attention"].sum(axis=-1), 1, atol=1e-5)
    for spec in manifest.outputs:
        assert values[spec.name].shape[1:] == tuple(spec.shape[1:]) and values[spec.name].shape[0] == 3


def _layer_norms(checkpoint: Path) -> int:
    """How often the model runs one that its logits depend on: each must be one operator of the graph."""
    import torch
    from transformers import AutoModelForImageClassification

    module = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    norms = [part for part in module.modules() if isinstance(part, torch.nn.LayerNorm)]
    size = 64 if module.config.model_type == "hiera" else 32
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, count = module(pixel_values=image).logits, 0
        for norm in norms:
            runs: list[object] = []
            hook = norm.register_forward_hook(lambda *found, runs=runs: runs.append(found))
            before = norm.bias.clone()
            norm.bias.add_(torch.linspace(-1, 1, len(before)))
            count += len(runs) if not torch.equal(module(pixel_values=image).logits, logits) else 0
            norm.bias.copy_(before)
            hook.remove()
    return count


def test_a_family_without_attention_over_all_tokens_has_none_to_give(tmp_path: Path) -> None:
    checkpoint = write_family("convnext", tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="no attention over all tokens") as caught:
        export(checkpoint, tmp_path / "bundle", outputs=("attention",))
    assert "--output-attention" in str(caught.value.hint) and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("family", ["vit", pytest.param("beit", marks=pytest.mark.full)])
def test_attention_is_what_transformers_gives(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageClassification

    checkpoint = write_family(family, tmp_path / "checkpoint")
    bundle = export(checkpoint, tmp_path / "bundle", outputs=("attention", "features"))
    module = AutoModelForImageClassification.from_pretrained(checkpoint, attn_implementation="eager").eval()
    model = ir.load(bundle.path / "model.onnx")
    pixel_values = next(value for node in model.graph for value in node.outputs if value.name == "pixel_values")
    model.graph.outputs.append(pixel_values)
    ir.save(model, tmp_path / "probe.onnx")
    image = np.random.default_rng(0).integers(0, 256, (2, 33, 47, 3), dtype=np.uint8)
    with OnnxRuntimeRunner(tmp_path / "probe.onnx") as runner:
        values = runner.infer({"image": image})
    with torch.inference_mode():
        given = module(pixel_values=torch.from_numpy(values["pixel_values"]), output_attentions=True)
    np.testing.assert_allclose(values["attention"], given.attentions[-1].numpy(), atol=1e-5)
    assert np.abs(values["attention"] - given.attentions[0].numpy()).max() > 1e-3  # it is the last layer's
    np.testing.assert_allclose(
        module.classifier(torch.from_numpy(values["features"])).detach().numpy(), values["logits"], atol=1e-4
    )


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("vit", (48, 64)),
        ("dinov2-registers", (24, 40)),
        pytest.param("deit-distilled", (64, 64), marks=pytest.mark.full),
        pytest.param("beit", (64, 64), marks=pytest.mark.full),
        pytest.param("beit-absolute", (48, 48), marks=pytest.mark.full),
        pytest.param("siglip", (48, 32), marks=pytest.mark.full),
        pytest.param("clip", (48, 48), marks=pytest.mark.full),
        pytest.param("swin", (48, 48), marks=pytest.mark.full),
        pytest.param("convnext", (64, 64), marks=pytest.mark.full),
    ],
)
def test_another_image_size_is_baked(family: str, size: tuple[int, int], tmp_path: Path) -> None:
    """The check on export compares with transformers' own interpolation: here its result is looked at in the graph."""
    checkpoint = write_family(family, tmp_path / "checkpoint")
    bundle = export(checkpoint, tmp_path / "bundle", image_size=size)
    assert bundle.manifest.model["image_size"] == list(size)
    assert bundle.manifest.preprocess.resize is not None
    assert (bundle.manifest.preprocess.resize.height, bundle.manifest.preprocess.resize.width) == size
    assert all(check["passed"] for check in bundle.manifest.provenance["checks"])
    nodes = Counter(node.op_type for node in model_nodes(ir.load(bundle.path / "model.onnx")))
    assert not {"Resize", "Range", "Where"} & set(nodes) or family in ("swin", "convnext")


@pytest.mark.full
@pytest.mark.parametrize(("size", "merged"), [(None, False), ((224, 224), True), ((98, 126), False)])
def test_trained_weights_at_their_size_and_at_others(
    size: tuple[int, int] | None, merged: bool, test_data: Path, tmp_path: Path
) -> None:
    """A ViT-S/14 that was trained at 112: its graph against PyTorch with transformers' own interpolation."""
    checkpoint = test_data / "models" / "vit-small-patch14-112-cifar10"
    bundle = export(checkpoint, tmp_path / "bundle", image_size=size, merge_qkv=merged, outputs=("features",))
    checks = bundle.manifest.provenance["checks"]
    assert [check["name"] for check in checks[:2]] == ["FP32 graph against PyTorch", "features against PyTorch"]
    assert all(check["passed"] for check in checks) and 0 < checks[0]["value"] <= 1e-4
    _all_of_a_vit(bundle, merged)


@pytest.mark.full
def test_a_trained_backbone_with_a_head(test_data: Path, tmp_path: Path) -> None:
    """Weights stored in float16, at 224; a head of random weights makes a classifier of them."""
    import torch
    from transformers import AutoImageProcessor, ViTForImageClassification

    backbone = test_data / "models" / "vit-small-patch14-224-backbone"
    torch.manual_seed(0)
    module = ViTForImageClassification.from_pretrained(backbone, num_labels=20, dtype=torch.float32)
    module.save_pretrained(tmp_path / "checkpoint")
    AutoImageProcessor.from_pretrained(backbone).save_pretrained(tmp_path / "checkpoint")
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert all(check["passed"] for check in bundle.manifest.provenance["checks"])
    _all_of_a_vit(bundle, merged=False)


def _all_of_a_vit(bundle: Bundle, merged: bool) -> None:
    changed = {entry["name"]: entry["changed"] for entry in bundle.manifest.provenance["passes"]}
    assert changed["fold-attention-scale"] == 12 and changed["fold-class-token"] == 1
    assert changed["merge-qkv"] == (12 if merged else 0)


def test_a_size_of_which_the_patches_leave_a_rest(tmp_path: Path) -> None:
    """transformers drops the rest of the pixels, and so does the graph: 36 rows are four patches of 8."""
    bundle = export(write_family("vit", tmp_path / "checkpoint"), tmp_path / "bundle", image_size=(36, 32))
    assert all(check["passed"] for check in bundle.manifest.provenance["checks"])


def test_a_model_without_a_classifier_is_refused(tmp_path: Path) -> None:
    """ViT-MAE is trained to paint in what was masked; there is nothing that names a class."""
    from transformers import ViTMAEConfig, ViTMAEModel

    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    ViTMAEModel(ViTMAEConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path / "mae")
    with pytest.raises(ModelError, match="vit_mae model, which is not an image classifier"):
        export(tmp_path / "mae", tmp_path / "bundle", task="classification")
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_takes_no_images_is_refused(tmp_path: Path) -> None:
    checkpoint = write_family("siglip2", tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="is a siglip2 model, which takes patch sequences") as caught:
        export(checkpoint, tmp_path / "bundle")
    assert "of one size" in str(caught.value.hint) and not (tmp_path / "bundle").exists()


def test_a_timm_model_exports(tmp_path: Path) -> None:
    """With timm's own merged projection of queries, keys and values, and the preprocessing of its config."""
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
        pytest.skip(f"timm is not installed or its torchvision does not fit this torch: {error}")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    settings = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"img_size": 32, "patch_size": 8, "depth": 2},
        num_labels=4,
        pretrained_cfg={**settings, "num_classes": 4, "crop_pct": 0.9, "classifier": "head"},
    )
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path / "checkpoint")
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", outputs=("features",))
    changed = {entry["name"]: entry["changed"] for entry in bundle.manifest.provenance["passes"]}
    assert changed["split-qkv"] == changed["fold-attention-scale"] == 2 and changed["fold-class-token"] == 1
    assert all(check["passed"] for check in bundle.manifest.provenance["checks"])
