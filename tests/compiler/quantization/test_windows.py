"""Products of tokens that lie in rows and columns, or in windows in the batch's place: INT8 sees all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.families import write_family
from tests.tools.graphs import parse
from vitdeploy import export, lint
from vitdeploy.compiler.quantization.groups import find_groups
from vitdeploy.compiler.quantization.observers import GroupSample, activations
from vitdeploy.models.checkpoints import load_checkpoint

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
windows (uint8[batch, 4, 4, 3] image) => (float[batch, 4, 4, 5] logits)
<float[batch, 4, 4, 3] x, float[batch, 4, 4, 3] y, float[count, 4, 3] z, float[count, 4, 5] w,
 float[3, 3] a = {A}, float[3, 5] b = {B}, int64[3] cut = {-1, 4, 3}, int64[4] whole = {-1, 4, 4, 5}>
{
    x = Cast <to: int = 1> (image)
    ["map/MatMul"] y = MatMul (x, a)
    z = Reshape (y, cut)
    ["window/MatMul"] w = MatMul (z, b)
    logits = Reshape (w, whole)
}
"""


def test_every_row_of_every_window_counts() -> None:
    arrays = {"a": np.eye(3), "b": np.ones((3, 5))}
    model = parse(GRAPH, **arrays)
    assert isinstance(model, ir.Model)
    groups = find_groups(model)
    assert [group.name for group in groups] == ["map", "window"] and {group.kind for group in groups} == {"linear"}
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)  # the last window holds the largest
    samples = [GroupSample(group, 1, np.random.default_rng(0)) for group in groups]
    for arrays_of_one in activations(model, [group.activation for group in groups], [image]):
        for sample, array in zip(samples, arrays_of_one, strict=True):
            sample.add(array)
    for sample in samples:
        assert sample.rows.shape == (16, 3) and sample.images == 1
        np.testing.assert_array_equal(np.sort(sample.rows.ravel()), np.arange(48))
        np.testing.assert_array_equal(sample.extent.largest(), [45, 46, 47])


def test_the_work_of_every_window_counts(tmp_path: Path) -> None:
    """Swin's products on windows, 16 of an image in the batch's place, against what its modules compute in PyTorch."""
    torch = pytest.importorskip("torch")
    bundle = export(write_family("swin", tmp_path / "swin"), tmp_path / "bundle")
    module, done = load_checkpoint(tmp_path / "swin").module, dict[str, int]()

    def count(name: str, layer: Any, output: Any) -> None:
        done[name] = output.numel() * layer.weight[0].numel()
        if name.endswith(".q_proj"):  # the scores of each window, and what they mix
            windows, tokens, hidden = output.shape
            done[name.replace("q_proj", "scores and mixing")] = 2 * windows * tokens * tokens * hidden

    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, given, output, name=name: count(name, layer, output))
    side = bundle.manifest.model["image_size"]
    with torch.inference_mode():
        module.eval()(torch.zeros(1, 3, *side))
    (graph,) = lint(bundle.path / "model.onnx").graphs
    assert any("scores" in name for name in done) and graph.macs == sum(done.values())
