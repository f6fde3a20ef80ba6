"""A cut graph computes what the whole one does, and holds no more than it needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitdeploy.compiler.passes.cut import cut
from vitdeploy.core.specs import PIXEL_VALUES
from vitdeploy.evaluation.batches import open_session


def test_two_parts_make_the_whole(tiny_bundle: Path) -> None:
    path = tiny_bundle / "model.onnx"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    front, back = cut(ir.load(path), None, PIXEL_VALUES), cut(ir.load(path), PIXEL_VALUES, "logits")
    assert not set(front.graph.initializers) & set(back.graph.initializers)
    values = open_session(front).run(None, {"image": pixels})[0]
    logits = open_session(back).run(None, {PIXEL_VALUES: values})[0]
    whole = open_session(path).run(["logits"], {"image": pixels})[0]
    np.testing.assert_allclose(logits, whole, atol=1e-5)  # the same operations, perhaps fused otherwise
