"""Images as other libraries hold them: read where they lie, refused with the next step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy import load
from vitdeploy.errors import ImageError
from vitdeploy.images import MAX_PIXELS
from vitdeploy.runtime.classifier import Classifier
from vitdeploy.runtime.inputs import pixels_of, separated

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Iterator[Classifier]:
    with load(tiny_bundle, backend="onnxruntime", precision="fp32", threads=1) as opened:
        yield opened


def image(seed: int = 0, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class OnlyDLPack:
    """An array of a library that offers DLPack and nothing else; `device` is what it says it lies on."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self._array, self._device = array, device
        self.shape = array.shape

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0


def test_tensors_give_what_arrays_give(classifier: Classifier) -> None:
    pixels = image()
    expected = classifier.predict(pixels)
    assert classifier.predict(torch.from_numpy(pixels)) == expected
    assert classifier.predict(OnlyDLPack(pixels)) == expected
    several = np.stack([image(seed) for seed in range(3)])
    assert classifier.predict(torch.from_numpy(several)) == classifier.predict(several)
    np.testing.assert_array_equal(classifier.logits(OnlyDLPack(several)), classifier.logits(several))
    mixed = [torch.from_numpy(pixels), image(1, 40, 60), torch.from_numpy(image(1, 40, 60))]
    answers = classifier.predict(mixed)
    assert answers[1] == answers[2] != answers[0] == expected


def test_a_tensor_in_memory_is_not_copied() -> None:
    tensor = torch.from_numpy(image())
    assert pixels_of(tensor, MAX_PIXELS).ctypes.data == tensor.data_ptr()
    batch = torch.zeros((2, 4, 5, 3), dtype=torch.uint8)
    parts, several = separated(batch)
    assert several and parts.ctypes.data == batch.data_ptr()


def test_a_tensor_that_is_not_contiguous_is_the_same_image(classifier: Classifier) -> None:
    pixels = image(0, 32, 48)
    channels_first = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    assert classifier.predict(channels_first.permute(1, 2, 0)) == classifier.predict(pixels)
    assert classifier.predict(pixels[:, ::-1]) == classifier.predict(np.ascontiguousarray(pixels[:, ::-1]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param(torch.zeros((3, 32, 32), dtype=torch.uint8), "channels first", id="channels first"),
        pytest.param(np.zeros((3, 32, 32), np.uint8), "channels first", id="channels first in numpy"),
        pytest.param(torch.zeros((32, 32, 3)), "float32", id="float"),
        pytest.param(torch.zeros((32, 32, 3), dtype=torch.bfloat16), "bfloat16", id="a type numpy has not"),
        pytest.param(torch.zeros((32, 32, 3), requires_grad=True), "grad", id="with a gradient"),
        pytest.param(torch.zeros((32, 32, 7), dtype=torch.uint8), "no image", id="seven channels"),
        pytest.param(torch.zeros((0, 32, 3), dtype=torch.uint8), "no pixels", id="empty"),
        pytest.param(torch.zeros((32,), dtype=torch.uint8), "no image", id="one dimension"),
        pytest.param(torch.zeros((1, 1, 8, 8, 3), dtype=torch.uint8), "no image", id="five dimensions"),
        pytest.param(OnlyDLPack(image(), device=2), "can't be read", id="on a gpu that gives nothing back"),
    ],
)
def test_tensors_that_are_no_image(classifier: Classifier, wrong: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        classifier.predict(wrong)
    assert caught.value.hint
    assert classifier.predict(image()).top_k


def test_a_tensor_on_a_gpu_is_brought_here(classifier: Classifier) -> None:
    """A stand-in that says it lies on a GPU and can be copied, as PyTorch's and CuPy's can."""
    pixels = image()

    class OnGpu(OnlyDLPack):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("not from a GPU")

        def cpu(self) -> OnlyDLPack:
            return OnlyDLPack(self._array)

    class OfCuPy(OnGpu):
        cpu = property()  # type: ignore[assignment]

        def get(self) -> np.ndarray:
            return self._array

    expected = classifier.predict(pixels)
    assert classifier.predict(OnGpu(pixels, device=2)) == expected
    assert classifier.predict(OfCuPy(pixels, device=2)) == expected
