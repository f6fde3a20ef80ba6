"""`Classifier.stream`: the answers of `predict`, for any number of images, with bounded memory and no thread left."""

from __future__ import annotations

import gc
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.threads import Threads
from vitdeploy import Classifier, load
from vitdeploy.core.errors import DatasetError, ImageError, InputError, OutOfMemoryError, RunnerClosedError
from vitdeploy.data.images import decode
from vitdeploy.runtime import stream as module
from vitdeploy.runtime.stream import Stages, stream


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Iterator[Classifier]:
    with load(tiny_bundle, "onnxruntime", "fp32", threads=1) as opened:
        yield opened


def pictures(count: int, sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*sizes[i % len(sizes)], 3), dtype=np.uint8) for i in range(count)]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def stream_threads() -> Callable[[], list[str]]:
    """The threads of streams that the test began and that run."""
    threads = Threads()
    return lambda: threads.begun("vitdeploy-decode", "vitdeploy-model")


class Recorder:
    """Answers each image with its first pixel, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, tuple[int, ...]]] = []

    def answer(self, images: list[np.ndarray]) -> list[Any]:
        self.batches.append((len(images), images[0].shape))
        return [tuple(image[0, 0].tolist()) for image in images]

    def stages(self, batch: int = 32, decode: Callable[[Any], np.ndarray] = decode) -> Stages:
        return Stages(decode, self.answer, batch)


@pytest.mark.parametrize("sizes", [[(20, 20)], [(20, 20), (31, 17), (8, 40)]], ids=["one-size", "mixed"])
def test_it_gives_what_predict_gives(classifier: Classifier, sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    arrays = pictures(75, sizes)
    sources: list[Any] = []
    for index, pixels in enumerate(arrays):
        path = tmp_path / f"{index}.png"
        path.write_bytes(png(pixels))
        sources.append(
            [path, str(path), path.read_bytes(), io.BytesIO(png(pixels)), Image.open(path), pixels][index % 6]
        )
    alone = [classifier.predict(pixels, 3) for pixels in arrays]
    streamed = list(classifier.stream(iter(sources), 3, workers=3, batch=8))
    assert [answer.index for answer in streamed] == [answer.index for answer in alone]
    assert all(len(answer.top_k) == 3 for answer in streamed)
    # a batch may round differently from one image alone, in the last bits
    np.testing.assert_allclose([a.score for a in streamed], [a.score for a in alone], atol=1e-5)


def test_the_same_source_gives_the_same_bits(classifier: Classifier) -> None:
    arrays = pictures(90, [(20, 20), (20, 20), (30, 30)])
    first, *others = [list(classifier.stream(arrays, workers=workers, batch=7)) for workers in (1, 2, 5)]
    assert all(other == first for other in others)


def test_batches_are_full_where_sizes_allow_it() -> None:
    recorder = Recorder()
    arrays = pictures(100, [(4, 4), (4, 4), (4, 4), (6, 6)])
    answers = list(stream(recorder.stages(10), arrays, workers=2))
    assert answers == [tuple(pixels[0, 0].tolist()) for pixels in arrays]
    assert sorted(recorder.batches) == sorted(
        [(10, (4, 4, 3))] * 7 + [(5, (4, 4, 3))] + [(10, (6, 6, 3))] * 2 + [(5, (6, 6, 3))]
    )


def test_a_rare_size_does_not_wait_for_the_end() -> None:
    recorder, pulled = Recorder(), 0

    def source() -> Iterator[np.ndarray]:
        nonlocal pulled
        for pulled in range(10_000):
            yield np.zeros((9, 9, 3) if pulled == 0 else (4, 4, 3), np.uint8)

    answers = stream(recorder.stages(4), source(), workers=1)
    next(answers)
    assert pulled <= (module.WINDOW + 2 + 2) * 4  # the window, two batches decoded, two under way
    answers.close()
    assert (1, (9, 9, 3)) in recorder.batches


def test_memory_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 20_000)
    most = 0

    class Watching(Recorder):
        def answer(self, images: list[np.ndarray]) -> list[Any]:
            nonlocal most
            most = max(most, sum(image.nbytes for image in images))
            return super().answer(images)

    recorder = Watching()
    arrays = pictures(200, [(40, 40)])  # 4,800 bytes each
    assert len(list(stream(recorder.stages(), arrays, workers=4))) == 200
    assert 4_800 <= most <= 20_000 + 4_800


def test_decoders_wait_while_too_much_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 5_000)
    decoded = 0

    def counting(item: Any) -> np.ndarray:
        nonlocal decoded
        decoded += 1
        return np.zeros((40, 40, 3), np.uint8)

    answers = stream(Recorder().stages(50, counting), [b""] * 300, workers=4)
    next(answers)
    time.sleep(0.1)  # nothing is asked for: whoever decodes on would be seen
    assert decoded < 20
    assert len(list(answers)) == 299


def test_a_bad_image_in_its_place(
    classifier: Classifier, tmp_path: Path, stream_threads: Callable[[], list[str]]
) -> None:
    good = pictures(1, [(20, 20)])[0]
    (tmp_path / "bad.png").write_bytes(b"oops")
    sources = [good, tmp_path / "bad.png", good, b"oops", np.zeros((2, 2), np.float32), 7, good]
    answers = list(classifier.stream(sources, errors="return"))
    assert [isinstance(answer, ImageError) for answer in answers] == [False, True, False, True, True, True, False]
    assert str(tmp_path / "bad.png") in answers[1].message and not answers[1].message.startswith("image 1")
    assert [answer.message.partition(":")[0] for answer in answers[3:6]] == ["image 3", "image 4", "image 5"]
    assert all(answer.hint for answer in answers if isinstance(answer, ImageError))
    raising = classifier.stream(sources)
    assert next(raising).label == answers[0].label
    with pytest.raises(ImageError, match="bad.png"):
        next(raising)
    assert stream_threads() == []


def test_a_bad_image_lets_the_next_one_be_decoded() -> None:
    """While much is held, a decoder may wait until its image is the next one."""
    with ThreadPoolExecutor(1) as pool:
        pipeline = module._Pipeline(Recorder().stages(), iter([]), pool, pool)
        pipeline.budget.add(module.HELD_BYTES)
        waiting = pool.submit(pipeline.budget.wait, 1)
        pipeline._place(ImageError("bad"))
        try:
            waiting.result(timeout=30)
        finally:
            pipeline.budget.lift()


def test_an_image_the_form_does_not_take_is_named_by_its_place(one_layer_checkpoint: Path, tmp_path: Path) -> None:
    from vitdeploy.compiler.export import export

    export(one_layer_checkpoint, tmp_path / "static", input_size=(20, 20))
    with load(tmp_path / "static", "onnxruntime", threads=1) as classifier:
        answers = list(classifier.stream(pictures(6, [(20, 20), (20, 20), (10, 10)]), errors="return"))
    assert [isinstance(answer, ImageError) for answer in answers] == [False, False, True] * 2
    assert answers[2].message.startswith("image 2: an image of 10x10") and answers[5].message.startswith("image 5: an")


def test_decoding_goes_on_while_the_model_runs() -> None:
    """The model's first call waits for an image that is handed out only after that call has begun."""
    decoded_meanwhile = threading.Event()

    class Late:
        """A file that no batch before the fourth has."""

        def read(self, *args: int) -> bytes:
            decoded_meanwhile.set()
            return b""

        def seek(self, *args: int) -> int:
            return 0

    class Waiting(Recorder):
        def answer(self, images: list[np.ndarray]) -> list[Any]:
            assert decoded_meanwhile.wait(60)
            return super().answer(images)

    images: list[Any] = [*pictures(12, [(4, 4)]), Late(), *pictures(3, [(4, 4)])]
    answers = list(stream(Waiting().stages(4), images, errors="return", workers=1))
    assert [isinstance(answer, ImageError) for answer in answers] == [False] * 12 + [True] + [False] * 3


def test_what_was_pulled_is_answered_before_the_source_fails(
    classifier: Classifier, stream_threads: Callable[[], list[str]]
) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from pictures(5, [(20, 20)])
        raise DatasetError("the disk failed", hint="check it")

    answers = []
    with pytest.raises(DatasetError, match="disk failed"):
        for answer in classifier.stream(source()):
            answers.append(answer)
    assert len(answers) == 5
    assert stream_threads() == []


def test_a_failing_model_ends_it(stream_threads: Callable[[], list[str]]) -> None:
    class Broken(Recorder):
        def answer(self, images: list[np.ndarray]) -> list[Any]:
            raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        list(stream(Broken().stages(), pictures(100, [(4, 4)])))
    assert stream_threads() == []


class Small(Recorder):
    """A model with memory for three images."""

    def answer(self, images: list[np.ndarray]) -> list[Any]:
        if len(images) > 3 or images[0].shape == (9, 9, 3):
            raise OutOfMemoryError("not enough memory", hint="smaller images")
        return super().answer(images)


def test_a_batch_that_memory_does_not_hold_is_halved() -> None:
    model = Small()
    arrays = [*pictures(10, [(4, 4)]), *pictures(1, [(9, 9)]), *pictures(2, [(5, 5)])]
    answers = list(stream(model.stages(10), arrays, errors="return"))
    assert isinstance(answers[10], ImageError) and answers[10].message == "not enough memory"
    assert [answer for i, answer in enumerate(answers) if i != 10] == [
        tuple(pixels[0, 0].tolist()) for i, pixels in enumerate(arrays) if i != 10
    ]
    assert [count for count, _ in model.batches] == [2, 3, 2, 3, 2]
    with pytest.raises(OutOfMemoryError):
        list(stream(model.stages(10), arrays))


def test_an_image_that_memory_does_not_hold_is_a_failure() -> None:
    def hungry(item: Any) -> np.ndarray:
        if item is None:
            raise OutOfMemoryError("not enough memory to decode an image", hint="use a smaller image")
        return decode(item)

    images = [*pictures(2, [(4, 4)]), None, *pictures(2, [(4, 4)])]
    answers = list(stream(Recorder().stages(4, hungry), images, errors="return"))
    assert [isinstance(answer, ImageError) for answer in answers] == [False, False, True, False, False]
    with pytest.raises(OutOfMemoryError):
        list(stream(Recorder().stages(4, hungry), images))


def test_dropping_it_ends_its_threads(classifier: Classifier, stream_threads: Callable[[], list[str]]) -> None:
    answers = classifier.stream(pictures(200, [(20, 20)]), workers=2, batch=4)
    next(answers)
    assert stream_threads()
    del answers
    gc.collect()
    assert stream_threads() == []


def test_closed(tiny_bundle: Path) -> None:
    classifier = load(tiny_bundle, "onnxruntime", "fp32", threads=1)
    answers = classifier.stream(pictures(100, [(20, 20)]), batch=4)
    next(answers)
    classifier.close()
    with pytest.raises(RunnerClosedError):
        list(answers)
    with pytest.raises(RunnerClosedError):
        classifier.stream([])


def test_tensors(classifier: Classifier) -> None:
    torch = pytest.importorskip("torch")
    arrays = pictures(4, [(20, 20)])
    assert list(classifier.stream([torch.from_numpy(pixels) for pixels in arrays])) == list(classifier.stream(arrays))


def test_the_limits_of_the_classifier_hold(tiny_bundle: Path) -> None:
    with load(tiny_bundle, "onnxruntime", "fp32", threads=1, max_pixels=500) as classifier:
        answers = list(classifier.stream(pictures(4, [(20, 20), (30, 30)]), errors="return"))
    assert [isinstance(answer, ImageError) for answer in answers] == [False, True] * 2


def test_nothing_to_do(classifier: Classifier) -> None:
    assert list(classifier.stream([])) == []
    assert list(classifier.stream(iter(()))) == []


@pytest.mark.parametrize(
    ("images", "options"),
    [
        ("cat.png", {}),
        (Path("cat.png"), {}),
        (b"bytes", {}),
        (7, {}),
        ([], {"errors": "ignore"}),
        ([], {"top_k": 0}),
        ([], {"workers": 0}),
        ([], {"workers": True}),
        ([], {"batch": 0}),
        ([], {"batch": 1.5}),
    ],
)
def test_wrong_arguments_are_refused_at_once(classifier: Classifier, images: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        classifier.stream(images, **options)
    assert caught.value.hint
