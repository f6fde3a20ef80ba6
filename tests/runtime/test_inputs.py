"""Images as other libraries hold them: read where they lie, refused with the next step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy import load
from vitdeploy.backends.dlpack import view
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.core.errors import ImageError
from vitdeploy.runtime.classifier import Classifier
from vitdeploy.runtime.inputs import Several

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


def test_a_tensor_in_memory_is_not_copied(classifier: Classifier) -> None:
    tensor = torch.from_numpy(image())
    one = classifier._request(tensor)
    assert isinstance(one, np.ndarray) and one.ctypes.data == tensor.data_ptr()
    batch = torch.zeros((2, 4, 5, 3), dtype=torch.uint8)
    several = classifier._request(batch)
    assert isinstance(several, Several) and several.images.ctypes.data == batch.data_ptr()


def test_pixels_that_are_ready_are_the_request_itself(classifier: Classifier) -> None:
    pixels = image()
    assert classifier._request(pixels) is pixels
    turned = pixels[:, ::-1]
    assert classifier._request(turned) is not turned


@pytest.mark.parametrize("way", ["predict", "predict_async", "micro-batched", "stream", "logits"])
def test_every_way_in_makes_one_request_of_an_image(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    batch = 4 if way == "micro-batched" else 1
    with load(tiny_bundle, backend="onnxruntime", precision="fp32", threads=1, max_batch=batch) as classifier:
        inputs, asked = classifier._scorer.inputs, []
        request = inputs.request

        def counted(images: Any) -> Any:
            asked.append(images)
            return request(images)

        monkeypatch.setattr(inputs, "request", counted)
        monkeypatch.setattr(classifier, "_request", counted)
        pixels = image()
        if way == "stream":
            list(classifier.stream([pixels]))
        elif way == "predict_async":
            asyncio.run(classifier.predict_async(pixels))
        else:
            getattr(classifier, "logits" if way == "logits" else "predict")(pixels)
        assert len(asked) == 1 and asked[0] is pixels


def test_errors_are_returned_for_one_image_and_raised_for_a_batch_that_is_none(classifier: Classifier) -> None:
    assert isinstance(classifier.predict(torch.zeros((32, 32, 3)), errors="return"), ImageError)
    with pytest.raises(ImageError):
        classifier.predict(torch.zeros((2, 32, 32, 3), requires_grad=True), errors="return")


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
        pytest.param(torch.zeros((32, 32, 7), dtype=torch.uint8), "not an image", id="seven channels"),
        pytest.param(torch.zeros((0, 32, 3), dtype=torch.uint8), "no pixels", id="empty"),
        pytest.param(torch.zeros((32,), dtype=torch.uint8), "not an image", id="one dimension"),
        pytest.param(torch.zeros((1, 1, 8, 8, 3), dtype=torch.uint8), "not an image", id="five dimensions"),
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


# --- tensors that stay where they lie -------------------------------------------------------------------------------


def test_a_view_is_the_tensor_itself() -> None:
    tensor = torch.from_numpy(image(0, 4, 5))
    seen = view(tensor)
    assert (seen.address, seen.shape, seen.device) == (tensor.data_ptr(), (1, 4, 5, 3), (1, 0))
    batch = torch.zeros((6, 4, 5, 3), dtype=torch.uint8)
    part = view(batch[1:]).part(2, 9)
    assert (part.address, part.shape) == (batch[3:].data_ptr(), (3, 4, 5, 3))
    assert view(np.zeros((2, 4, 5, 3), np.uint8)).shape == (2, 4, 5, 3)
    turned = torch.zeros((3, 4, 5), dtype=torch.uint8).permute(1, 2, 0)
    assert view(turned).address != turned.data_ptr()  # PyTorch makes it contiguous


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param(torch.zeros((4, 5, 3)), "float32", id="float"),
        pytest.param(torch.zeros((3, 4, 5), dtype=torch.uint8), "not an image", id="channels first"),
        pytest.param(torch.zeros((4, 5), dtype=torch.uint8), "not an image", id="grey"),
        pytest.param(torch.zeros((0, 4, 5, 3), dtype=torch.uint8), "not an image", id="empty"),
        pytest.param(np.zeros((3, 4, 5), np.uint8).transpose(1, 2, 0), "contiguous", id="not contiguous"),
    ],
)
def test_what_can_not_be_viewed(wrong: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        view(wrong)
    assert caught.value.hint


def test_inputs_where_they_lie(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of a GPU's tensor, with the machine's own memory in the place of the GPU's."""
    monkeypatch.setattr(OnnxRuntimeRunner, "device_memory", (1, 0))
    with load(tiny_bundle, backend="onnxruntime", precision="fp32", threads=1) as classifier:
        fed: list[int] = []
        run = classifier._runner.infer_on_device  # type: ignore[attr-defined]

        def noted(feeds: Any) -> Any:
            fed.append(feeds["image"].address)
            return run(feeds)

        monkeypatch.setattr(classifier._runner, "infer_on_device", noted)
        several = torch.from_numpy(np.stack([image(seed) for seed in range(40)]))
        expected = classifier.logits([Image.fromarray(one.numpy()) for one in several])
        assert fed == []
        np.testing.assert_allclose(classifier.logits(several), expected, atol=2e-5, rtol=0)
        assert fed == [several.data_ptr(), several[32:].data_ptr()]
        one, many = classifier.predict(several[3]), classifier.predict(several[:4])
        assert fed[2] == several[3].data_ptr()
        assert many[3] == one == classifier.predict([several[3]])[0]
        assert asyncio.run(classifier.predict_async(several[3])) == one
        with pytest.raises(ImageError, match="uint8"):
            classifier.predict(several.float())


def test_only_a_provider_that_waits_for_an_input_takes_it_on_the_gpu() -> None:
    """ONNX Runtime's TensorRT provider synchronises no stream before it reads: what it is given is copied."""
    found = {name: OnnxRuntimeRunner("x.onnx", device="cuda:1", provider=name) for name in ("cuda", "tensorrt")}
    assert {name: runner.device_memory for name, runner in found.items()} == {"cuda": (2, 1), "tensorrt": None}
