"""What a form of a fixed batch answers to fewer images: of each its own, and nothing of what filled the batch up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.data.images import MAX_PIXELS
from vitdeploy.runtime.inputs import Several
from vitdeploy.runtime.scoring import Scorer


def of_four(source: Path, path: Path) -> Path:
    """The same graph, which takes four images and no other number."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(source)
    old = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        assert dimension.dim_param == old
        dimension.dim_value = 4
    onnx.save(model, path)
    return path


def test_padding_never_reaches_a_caller(tiny_bundle: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (24, 40, 3), dtype=np.uint8) for _ in range(6)]
    path = of_four(tiny_bundle / "model.onnx", tmp_path / "four.onnx")
    with OnnxRuntimeRunner(tiny_bundle / "model.onnx", threads=1) as any_number, OnnxRuntimeRunner(path) as four:
        expected = any_number.infer({"image": np.stack(images)})["logits"]
        scorer = Scorer(four, MAX_PIXELS)
        assert scorer.batch == 4
        for count in (1, 3, 4):
            found = scorer.run(images[:count])
            assert found.shape == (count, 10)
            np.testing.assert_allclose(found, expected[:count], atol=1e-4)
        answers = dict(scorer.answers(Several(images), keep=False, deadline=None))
        assert sorted(answers) == [0, 1, 2, 3, 4, 5]
        np.testing.assert_allclose(np.stack([answers[index] for index in range(6)]), expected, atol=1e-4)
