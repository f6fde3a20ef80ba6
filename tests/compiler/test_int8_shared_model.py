"""INT8 on the shared CIFAR-10 ViT: the bars on a few hundred test images. The whole table is benchmarks/peers.py's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.compiler.test_calibration import PLAIN, with_outlier_channels
from vitdeploy.compiler.calibration import calibrate
from vitdeploy.compiler.export import export
from vitdeploy.compiler.judging import compare_answers, logits_of
from vitdeploy.compiler.quantize import quantize
from vitdeploy.compiler.recipe import Recipe
from vitdeploy.compiler.sensitivity import open_session
from vitdeploy.datasets import load_dataset


@pytest.mark.full
def test_outlier_channels_break_min_max_and_not_the_default(test_data: Path, tmp_path: Path) -> None:
    import onnx_ir as ir

    export(test_data / "models" / "vit-small-patch14-112-cifar10", tmp_path / "bundle")
    outliers = range(0, 384, 48)  # eight; min-max still bears two
    model = with_outlier_channels(tmp_path / "bundle" / "model.onnx", tmp_path / "outliers.onnx", 60, outliers)
    train = load_dataset(test_data / "cifar10", "train", limit=128)
    test = load_dataset(test_data / "cifar10", "test", limit=400)
    reference = logits_of(open_session(model), test)
    judged = {}
    for name, recipe in {"default": Recipe(), "naive": PLAIN}.items():
        pictures = (train.image(index) for index in range(len(train)))
        solved = calibrate(model, "", pictures, len(train), recipe, {})
        form = ir.load(model)
        quantize(form, solved, target="cpu")
        judged[name] = compare_answers(logits_of(open_session(form), test), reference, np.asarray(test.label_ids))
    assert judged["default"].agreement >= 98.75, "99.5 % on 8,000 images; five of 400 is its upper end by chance"
    assert judged["naive"].agreement < judged["default"].agreement - 5
