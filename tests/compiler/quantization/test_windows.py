"""Products of tokens that lie in rows and columns, or in windows in the batch's place: INT8 sees all of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.tools.graphs import parse
from vitdeploy.compiler.quantization.groups import find_groups
from vitdeploy.compiler.quantization.observers import GroupSample, activations

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
