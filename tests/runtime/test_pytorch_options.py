"""The ways in which PyTorch may be asked to be faster, and the two halves of its call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitdeploy.errors import InputError
from vitdeploy.runtime.pytorch import PyTorchRunner

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 40, 24, 3), dtype=np.uint8)


def logits(checkpoint: Path, **options: object) -> np.ndarray:
    with PyTorchRunner(checkpoint, threads=1, **options) as runner:  # type: ignore[arg-type]
        return np.asarray(runner.infer({"image": PIXELS})["logits"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_changes_the_last_digits_and_no_more(tiny_checkpoint: Path, precision: str) -> None:
    exact, cast = logits(tiny_checkpoint), logits(tiny_checkpoint, autocast=precision)
    assert cast.dtype == np.float32
    # bfloat16 keeps 8 bits, summed over three layers.
    assert 0 < np.abs(cast - exact).max() < 0.1 * np.ptp(exact)


def test_an_unknown_type_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="fp8"):
        PyTorchRunner(tiny_checkpoint, autocast="fp8")


def test_the_image_processor_can_be_run_alone(tiny_checkpoint: Path) -> None:
    with PyTorchRunner(tiny_checkpoint, threads=1) as runner:
        assert runner.preprocess(PIXELS).shape == (3, 3, 32, 32)
        runner.infer({"image": PIXELS})
        assert runner.device_ms is None  # the CPU has no GPU time


@pytest.mark.full
def test_a_compiled_module_answers_the_same(tiny_checkpoint: Path) -> None:
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++ on a CPU, and there is none here")
    assert np.allclose(logits(tiny_checkpoint, compiled=True), logits(tiny_checkpoint), atol=1e-4, rtol=0)
