"""End to end on real images: the graph on raw pixels against image processor and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.preprocessing import assert_levels, runner
from vitdeploy.compiler.preprocessing import spec_from_processor
from vitdeploy.data import load_dataset

MODEL = "models/vit-small-patch14-112-cifar10"


@pytest.fixture(scope="module")
def processor(test_data: Path) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(test_data / MODEL)


def test_pixel_values_are_those_of_the_processor(test_data: Path, processor: Any) -> None:
    spec = spec_from_processor(processor)
    assert spec.rescale is not None and spec.std is not None
    level = spec.rescale / np.array(spec.std)
    dataset = load_dataset(str(test_data / "cifar10"), "test", limit=500)
    pixels = np.stack([dataset.image(index) for index in range(len(dataset))])
    theirs = processor(list(pixels), input_data_format="channels_last", return_tensors="np")["pixel_values"]
    ours = runner(spec)(pixels)
    for mine, expected in zip(ours, np.asarray(theirs), strict=True):
        assert_levels(mine, expected, levels=0, share=0, level=level)  # 32x32 to 112x112 is exact


@pytest.mark.full
def test_top_1_is_that_of_processor_and_model_on_every_test_image(
    test_data: Path, processor: Any, tmp_path: Path
) -> None:
    """Both see the same pixels; they may differ where the two best scores are less than 1e-3 apart."""
    import onnxruntime
    import torch
    from transformers import AutoModelForImageClassification

    from vitdeploy.compiler.export import export

    export(test_data / MODEL, tmp_path / "bundle")
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "model.onnx", providers=["CPUExecutionProvider"])
    model = AutoModelForImageClassification.from_pretrained(test_data / MODEL).eval()
    dataset = load_dataset(str(test_data / "cifar10"), "test")
    compared, excused = 0, 0
    for start in range(0, len(dataset), 50):
        pixels = [dataset.image(index) for index in range(start, min(start + 50, len(dataset)))]
        (ours,) = session.run(["logits"], {"image": np.stack(pixels)})
        values = processor(pixels, input_data_format="channels_last", return_tensors="pt")
        with torch.inference_mode():
            theirs = model(**values).logits.numpy()
        differing = ours.argmax(axis=1) != theirs.argmax(axis=1)
        best = np.sort(theirs, axis=1)
        assert (best[differing, -1] - best[differing, -2] < 1e-3).all()
        compared, excused = compared + len(pixels), excused + int(differing.sum())
    assert compared == len(dataset) == 8000
    print(f"{compared} images, {excused} differ within 1e-3")
