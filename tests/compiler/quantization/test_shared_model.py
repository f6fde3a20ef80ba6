"""INT8 on the shared CIFAR-10 ViT: the bars on a few hundred test images. The whole table is benchmarks/peers.py's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tools.quantization import PLAIN, with_outlier_channels
from vitdeploy.compiler.export import export
from vitdeploy.compiler.quantization.calibration import calibrate
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.schemes import INT8_UNSIGNED
from vitdeploy.data import load_dataset
from vitdeploy.evaluation.batches import answers_of, open_session
from vitdeploy.evaluation.paired import compare_answers


@pytest.mark.full
def test_outlier_channels_break_min_max_and_not_the_default(test_data: Path, tmp_path: Path) -> None:
    import onnx_ir as ir

    export(test_data / "models" / "vit-small-patch14-112-cifar10", tmp_path / "bundle")
    outliers = range(0, 384, 48)  # eight; min-max still bears two
    model = with_outlier_channels(tmp_path / "bundle" / "model.onnx", tmp_path / "outliers.onnx", 60, outliers)
    train = load_dataset(test_data / "cifar10", "train", limit=128)
    test = load_dataset(test_data / "cifar10", "test", limit=400)
    reference = answers_of(open_session(model), test)
    judged = {}
    for name, recipe in {"default": Recipe(), "naive": PLAIN}.items():
        pictures = (train.image(index) for index in range(len(train)))
        calibration = calibrate(model, "", pictures, len(train), recipe, {})
        form = ir.load(model)
        quantize(form, calibration, scheme=INT8_UNSIGNED)
        judged[name] = compare_answers(answers_of(open_session(form), test), reference, np.asarray(test.label_ids))
    assert judged["default"].agreement >= 98.75, "99.5 % on 8,000 images; five of 400 is its upper end by chance"
    assert judged["naive"].agreement < judged["default"].agreement - 5
