"""The operators of an exported ViT, counted: what an expert would have written, and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from vitdeploy.compiler.export import export
from vitdeploy.compiler.float16.cast import model_nodes, to_half

# A layer: 6 products with weights and 2 of attention, a bias each for the six, 2 residual additions; Q, K and V are
# reshaped and transposed (K once, straight to its product's order), and the heads are joined again.
LAYER = {"LayerNormalization": 2, "MatMul": 8, "Softmax": 1, "Gelu": 1, "Add": 8, "Reshape": 4, "Transpose": 4}
# Q, K and V by one product: two products and two biases fewer, and a Split.
MERGED = {**LAYER, "MatMul": 6, "Add": 6, "Split": 1}
# Patches to tokens, class token, positions; the last LayerNorm, the class token's row, the classifier.
ENDS = {"Conv": 1, "Reshape": 1, "Transpose": 1, "Pad": 1, "Add": 1, "LayerNormalization": 1, "Gather": 1, "Gemm": 1}
SIZES = {"tiny": (48, 2, 3, 16), "small": (384, 12, 6, 16), "base": (768, 12, 12, 16)}


@pytest.mark.parametrize("merged", [False, True], ids=["separate", "merged"])
@pytest.mark.parametrize("size", ["tiny", *(pytest.param(size, marks=pytest.mark.full) for size in ("small", "base"))])
def test_the_operators_of_a_vit(size: str, merged: bool, tmp_path: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    hidden, layers, heads, patch = SIZES[size]
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        patch_size=patch,
        num_labels=1000,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "checkpoint")
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(tmp_path / "checkpoint")
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", merge_qkv=merged)
    model = ir.load(bundle.path / "model.onnx")
    layer = MERGED if merged else LAYER
    golden = Counter(ENDS)
    for _ in range(layers):
        golden.update(layer)
    assert Counter(node.op_type for node in model_nodes(model)) == golden
    for index in range(layers):
        inside = Counter(n.op_type for n in model_nodes(model) if (n.name or "").startswith(f"vit.layers.{index}."))
        inside += Counter(n.op_type for n in model_nodes(model) if (n.name or "").startswith(f"vit.layers.{index}/"))
        assert inside == Counter(layer)
    to_half(model)
    assert Counter(node.op_type for node in model_nodes(model)) == golden + Counter({"Cast": 2})
