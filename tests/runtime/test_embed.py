"""Vectors for many callers: threads, asyncio and micro-batching give what one caller alone is given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.towers import write_tower
from vitdeploy import export, load
from vitdeploy.core.errors import (
    DeadlineError,
    ImageError,
    InputError,
    ModelError,
    QueueFullError,
    RunnerClosedError,
)
from vitdeploy.runtime.classifier import Classifier

SECONDS = 60  # longest that a test waits for what has to happen; nothing is measured
WIDTH = 24


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("tower")
    return export(write_tower("clip", root / "checkpoint"), root / "bundle", task="embedding").path


def open_one(bundle: Path, **options: Any) -> Classifier:
    return load(bundle, backend="onnxruntime", precision="fp32", threads=1, **options)


@pytest.fixture
def together(bundle: Path) -> Iterator[Classifier]:
    with open_one(bundle, max_batch=8, max_delay_ms=5) as model:
        yield model


def image(seed: int = 0, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def wanted(bundle: Path) -> np.ndarray:
    """The vectors of images 0 to 29, each alone."""
    with open_one(bundle) as model:
        return np.concatenate([model.embed(image(seed)) for seed in range(30)])


def test_one_image_several_and_none(bundle: Path, wanted: np.ndarray) -> None:
    with open_one(bundle) as model:
        assert model.embed(image()).shape == (1, WIDTH) and model.embed([]).shape == (0, WIDTH)
        several = model.embed([image(seed, *size) for seed, size in ((0, (32, 32)), (1, (40, 28)), (2, (32, 32)))])
        assert several.dtype == np.float32 and several.shape == (3, WIDTH)
        np.testing.assert_allclose(several[[0, 2]], wanted[[0, 2]], atol=1e-5)
        np.testing.assert_allclose(several[1], model.embed(image(1, 40, 28))[0], atol=1e-5)
        batch = np.stack([image(seed) for seed in range(3)])
        np.testing.assert_allclose(model.embed(batch), wanted[:3], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(wanted, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("max_batch", [1, 8])
def test_threads_get_what_a_single_caller_gets(bundle: Path, wanted: np.ndarray, max_batch: int) -> None:
    with open_one(bundle, max_batch=max_batch, max_delay_ms=5) as model, ThreadPoolExecutor(6) as callers:
        found = np.concatenate(list(callers.map(lambda seed: model.embed(image(seed)), range(30))))
        assert model.pending == 0
    if max_batch == 1:
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("max_batch", [1, 8])
def test_async_vectors_are_the_same(bundle: Path, wanted: np.ndarray, max_batch: int) -> None:
    with open_one(bundle, max_batch=max_batch, max_queue=4) as model:

        async def main() -> Any:
            single = await asyncio.gather(*(model.embed_async(image(seed)) for seed in range(30)))
            several = await model.embed_async([image(seed) for seed in range(3)])
            bad = await model.embed_async([image(), b"no image"], errors="return")
            with pytest.raises(ImageError):
                await model.embed_async(b"no image")
            with pytest.raises(InputError, match="errors is"):
                await model.embed_async(image(), errors="ignore")
            return single, several, bad

        single, several, bad = asyncio.run(main())
        assert model.pending == 0
    assert [each.shape for each in single] == [(1, WIDTH)] * 30
    np.testing.assert_allclose(np.concatenate(single), wanted, atol=1e-5)
    np.testing.assert_allclose(several, wanted[:3], atol=1e-5)
    np.testing.assert_allclose(bad[0], wanted[0], atol=1e-5)
    assert isinstance(bad[1], ImageError)


def blocked(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Semaphore, list]:
    """Hold every run of the graph until the event is set; the semaphore counts them, the list has their sizes."""
    go, came, sizes = threading.Event(), threading.Semaphore(0), []
    infer = model._runner.infer_checked

    def held(feeds: Any) -> Any:
        sizes.append(len(feeds["image"]))
        came.release()
        assert go.wait(SECONDS)
        return infer(feeds)

    monkeypatch.setattr(model._runner, "infer_checked", held)
    return go, came, sizes


def test_who_waits_together_goes_through_the_graph_together(
    together: Classifier, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, came, sizes = blocked(together, monkeypatch)

    async def main() -> list[np.ndarray]:
        tasks = [asyncio.create_task(together.embed_async(image(0)))]
        await asyncio.to_thread(came.acquire, timeout=SECONDS)  # it holds the graph, and the others wait
        tasks += [asyncio.create_task(together.embed_async(image(seed))) for seed in range(1, 5)]
        while together._batcher._waiting < 4:  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
        go.set()
        return await asyncio.gather(*tasks)

    found = asyncio.run(main())
    assert sizes == [1, 4]
    np.testing.assert_allclose(np.concatenate(found), wanted[:5], atol=1e-5)


@pytest.mark.parametrize("max_batch", [1, 4])
def test_a_full_queue_refuses_and_a_deadline_holds(
    bundle: Path, max_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_one(bundle, max_batch=max_batch, max_queue=2, when_full="raise") as model:
        go, _, _ = blocked(model, monkeypatch)

        async def main() -> None:
            accepted = [asyncio.create_task(model.embed_async(image(seed))) for seed in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                await model.embed_async(image())
            go.set()
            assert len(await asyncio.gather(*accepted)) == 2
            await model.embed_async(image())  # there is room again

        asyncio.run(main())
        with pytest.raises(DeadlineError):
            model.embed([image(seed) for seed in range(64)], timeout_ms=1e-6)
        assert model.embed(image(), timeout_ms=1000 * SECONDS).shape == (1, WIDTH)


def test_images_that_can_not_be_used(together: Classifier, wanted: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="image 1"):
        together.embed([image(), b"no image"])
    missing = tmp_path / "none.png"
    found = together.embed([missing, image(3)], errors="return")
    assert isinstance(found[0], ImageError) and "none.png" in found[0].message
    np.testing.assert_allclose(found[1], wanted[3], atol=1e-5)
    (alone,) = together.embed(missing, errors="return")
    assert isinstance(alone, ImageError)
    (vector,) = together.embed(image(3), errors="return")
    assert isinstance(vector, np.ndarray) and vector.shape == (WIDTH,)


@pytest.mark.parametrize("way", ["embed", "embed_async", "micro-batched", "stream"])
def test_every_way_in_makes_one_request_of_an_image(bundle: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with open_one(bundle, max_batch=4 if way == "micro-batched" else 1) as model:
        inputs, asked = model._scorer.inputs, []
        request = inputs.request

        def counted(images: Any) -> Any:
            asked.append(images)
            return request(images)

        monkeypatch.setattr(inputs, "request", counted)
        monkeypatch.setattr(model, "_request", counted)
        pixels = image()
        if way == "stream":
            list(model.stream([pixels]))
        elif way == "embed_async":
            asyncio.run(model.embed_async(pixels))
        else:
            model.embed(pixels)
        assert len(asked) == 1 and asked[0] is pixels


@pytest.mark.parametrize("max_batch", [1, 4])
def test_vectors_that_are_not_finite_are_no_answer(
    bundle: Path, max_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_one(bundle, max_batch=max_batch) as model:
        infer = model._runner.infer_checked
        monkeypatch.setattr(
            model._runner, "infer_checked", lambda feeds: {k: v * np.float32(np.nan) for k, v in infer(feeds).items()}
        )
        asks: list[Callable[[], Any]] = [
            lambda: model.embed(image()),
            lambda: model.embed([image(), image(1)]),
            lambda: asyncio.run(model.embed_async(image())),
        ]
        for ask in asks:
            with pytest.raises(ModelError, match="not finite"):
                ask()


def test_closed_and_of_another_kind(bundle: Path, tiny_bundle: Path) -> None:
    model = open_one(bundle, max_batch=4)
    model.close()
    for ask in (lambda: model.embed(image()), lambda: asyncio.run(model.embed_async(image()))):
        with pytest.raises(RunnerClosedError):
            ask()
    with load(tiny_bundle, "onnxruntime", "fp32") as classifier, pytest.raises(InputError, match="embed is not for"):
        asyncio.run(classifier.embed_async(image()))
