"""One classifier for many callers: threads, asyncio, micro-batching, its queue, deadlines and end."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.backends import CPU_BACKENDS
from tests.tools.batches import sizes_of_batches
from tests.tools.killed import ended_well
from tests.tools.threads import Threads
from vitdeploy import load
from vitdeploy.core.admission import Places
from vitdeploy.core.errors import (
    DeadlineError,
    ImageError,
    InputError,
    ModelError,
    QueueFullError,
    RunnerClosedError,
)
from vitdeploy.runtime.batching import MicroBatcher
from vitdeploy.runtime.classifier import Classifier

SECONDS = 60  # longest that a test waits for what has to happen; nothing is measured


def image(seed: int = 0, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def open_one(bundle: Path, **options: Any) -> Classifier:
    return load(bundle, backend="onnxruntime", precision="fp32", threads=1, **options)


@pytest.fixture
def together(tiny_bundle: Path) -> Iterator[Classifier]:
    with open_one(tiny_bundle, max_batch=8, max_delay_ms=5) as classifier:
        yield classifier


class Gate:
    """A run of the graph that waits until it is let through, and notes what came."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        self.batches.append([int(pixels[0, 0, 0]) for pixels in images])
        self.entered.release()
        assert self.open.wait(SECONDS)
        return np.array([[pixels[0, 0, 0], 0] for pixels in images], np.float32)

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=SECONDS)


def pixels(value: int, size: int = 2) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def batcher(gate: Gate) -> Iterator[MicroBatcher]:
    made = MicroBatcher(gate, max_batch=4, max_delay_ms=0)
    yield made
    gate.open.set()
    made.close()


def busy(batcher: MicroBatcher, gate: Gate) -> Any:
    """Occupy the graph; what is submitted from here on waits until the gate is opened."""
    first = batcher.submit(pixels(0), None)
    gate.wait_until_entered()
    return first


def test_what_waits_goes_together_by_size_and_in_order(batcher: MicroBatcher, gate: Gate) -> None:
    answers = [busy(batcher, gate)]
    answers += [batcher.submit(pixels(value, 3 if value in (2, 4) else 2), None) for value in range(1, 9)]
    gate.open.set()
    assert [int(answer.result(SECONDS)[0]) for answer in answers] == list(range(9))
    assert gate.batches == [[0], [1, 3, 5, 6], [2, 4], [7, 8]]


def test_a_request_that_fails_spoils_no_other() -> None:
    def run(images: list[np.ndarray]) -> np.ndarray:
        if any(pixels[0, 0, 0] == 3 for pixels in images):
            raise ModelError("three")
        return np.array([[pixels[0, 0, 0]] for pixels in images], np.float32)

    batcher = MicroBatcher(run, max_batch=8, max_delay_ms=50)
    batcher._company = 5
    answers = [batcher.submit(pixels(value), None) for value in range(5)]
    batcher.close()
    assert [int(answers[value].result(0)[0]) for value in (0, 1, 2, 4)] == [0, 1, 2, 4]
    with pytest.raises(ModelError, match="three"):
        answers[3].result(0)


def test_a_request_past_its_deadline_is_not_run(batcher: MicroBatcher, gate: Gate) -> None:
    busy(batcher, gate)
    late = batcher.submit(pixels(1), time.monotonic() + 0.01)
    good = batcher.submit(pixels(2), time.monotonic() + SECONDS)
    time.sleep(0.02)
    gate.open.set()
    assert good.result(SECONDS)[0] == 2
    with pytest.raises(DeadlineError):
        late.result(SECONDS)
    assert gate.batches == [[0], [2]]


def test_a_withdrawn_request_is_not_run(batcher: MicroBatcher, gate: Gate) -> None:
    busy(batcher, gate)
    withdrawn, good = batcher.submit(pixels(1), None), batcher.submit(pixels(2), None)
    assert withdrawn.cancel()
    gate.open.set()
    assert good.result(SECONDS)[0] == 2
    assert gate.batches == [[0], [2]]


def test_closing_answers_what_was_accepted(batcher: MicroBatcher, gate: Gate) -> None:
    answers = [busy(batcher, gate), *(batcher.submit(pixels(value), None) for value in range(1, 7))]
    batcher.stop()
    with pytest.raises(RunnerClosedError):
        batcher.submit(pixels(9), None)
    gate.open.set()
    batcher.close()
    assert [int(answer.result(0)[0]) for answer in answers] == list(range(7))


def test_company_is_waited_for_only_as_long_as_it_was_there() -> None:
    """A delay of an hour that one caller never meets, and that four callers don't either."""
    sizes: list[int] = []

    def run(images: list[np.ndarray]) -> np.ndarray:
        sizes.append(len(images))
        return np.zeros((len(images), 2), np.float32)

    batcher = MicroBatcher(run, max_batch=4, max_delay_ms=3_600_000)
    for _ in range(3):
        batcher.submit(pixels(0), None).result(SECONDS)
    assert sizes == [1, 1, 1]
    batcher._company = 4  # as after a batch of four
    with ThreadPoolExecutor(4) as callers:
        for _ in range(3):
            list(callers.map(lambda _: batcher.submit(pixels(0), None).result(SECONDS), range(4)))
    batcher.close()
    assert sizes == [1, 1, 1, 4, 4, 4]


def test_who_is_alone_runs_the_graph_itself() -> None:
    threads: list[str] = []

    def run(images: list[np.ndarray]) -> np.ndarray:
        threads.append(threading.current_thread().name)
        return np.array([[pixels[0, 0, 0]] for pixels in images], np.float32)

    batcher = MicroBatcher(run, max_batch=4, max_delay_ms=0)
    answer = batcher.run_alone(pixels(5))
    assert answer is not None and answer[0] == 5
    batcher._company = 2  # somebody else asked meanwhile
    assert batcher.run_alone(pixels(6)) is None
    assert batcher.submit(pixels(6), None).result(SECONDS)[0] == 6
    batcher.close()
    assert threads == [threading.current_thread().name, "vitdeploy-batches"]
    with pytest.raises(RunnerClosedError):
        batcher.run_alone(pixels(0))


def test_who_comes_while_one_is_alone_waits_and_closing_waits_for_both(gate: Gate) -> None:
    batcher = MicroBatcher(gate, max_batch=4, max_delay_ms=0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher.run_alone, pixels(1))
        gate.wait_until_entered()
        assert batcher.run_alone(pixels(2)) is None
        second = batcher.submit(pixels(2), None)
        closing = pool.submit(batcher.close)
        assert gate.batches == [[1]]
        gate.open.set()
        closing.result(SECONDS)
        assert first.result(SECONDS)[0] == 1
        assert second.result(0)[0] == 2
    assert gate.batches == [[1], [2]]


def test_callers_meet_in_batches(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_one(tiny_bundle, max_batch=8, max_delay_ms=20) as classifier:
        sizes = sizes_of_batches(classifier, monkeypatch)
        with ThreadPoolExecutor(4) as callers:
            list(callers.map(lambda seed: classifier.predict(image(seed)), range(200)))
    assert sum(sizes) == 200
    assert max(sizes) > 1
    assert len(sizes) < 200


# --- answers --------------------------------------------------------------------------------------------------------


def same(answers: list[Any], expected: list[Any], exact: bool) -> None:
    """Bit for bit; or, for batches on a processor whose kernels round differently by batch, to float32's rounding."""
    if exact:
        assert answers == expected
        return
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.index == wanted.index
        np.testing.assert_allclose([s.score for s in answer.top_k], [s.score for s in wanted.top_k], atol=1e-5, rtol=0)


def batches_change_nothing(classifier: Classifier, images: list[np.ndarray]) -> bool:
    """Whether this backend gives an image the same bits in a batch of any size, on this processor."""
    alone = np.concatenate([classifier.logits(one) for one in images])
    return all(
        np.array_equal(np.concatenate([classifier.logits(images[i : i + n]) for i in range(0, len(images), n)]), alone)
        for n in range(2, 9)
    )


def answer_many(bundle: Path, threads: int, requests: int, max_batch: int, backend: str, precision: str) -> None:
    images = [image(seed, 32 + 8 * (seed % 2)) for seed in range(40)]
    with load(bundle, backend=backend, precision=precision, threads=1, max_batch=max_batch) as classifier:
        expected = [classifier.predict([one])[0] for one in images]
        assert len({answer.score for answer in expected}) == 40
        exact = max_batch == 1 or all(
            batches_change_nothing(classifier, [one for one in images if one.shape == shape])
            for shape in {one.shape for one in images}
        )
        print(f"{precision} on {backend}, max_batch {max_batch}: {'bit for bit' if exact else 'to 1e-5'}")
        with ThreadPoolExecutor(threads) as callers:
            answers = list(callers.map(lambda number: classifier.predict(images[number % 40]), range(requests)))
    same(answers, [expected[number % 40] for number in range(requests)], exact)


@pytest.mark.parametrize("max_batch", [1, 8])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_many_threads_get_the_serial_answers(tiny_bundle: Path, backend: str, max_batch: int) -> None:
    answer_many(tiny_bundle, 16, 600, max_batch, backend, "int8")


@pytest.mark.full
@pytest.mark.parametrize("max_batch", [1, 16])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_64_threads_and_20000_requests(tiny_bundle: Path, backend: str, precision: str, max_batch: int) -> None:
    answer_many(tiny_bundle, 64, 20_000, max_batch, backend, precision)


def test_a_list_and_logits_do_not_wait_for_others(together: Classifier) -> None:
    images = [image(seed) for seed in range(5)]
    same(together.predict(images), [together.predict(one) for one in images], exact=False)
    assert together.logits(images[0]).shape == (1, 10)


def test_options_reach_the_description(together: Classifier, tiny_bundle: Path) -> None:
    assert together.describe()["serving"]["max_batch"] == 8
    for wrong in (
        {"max_batch": 0},
        {"max_batch": True},
        {"max_queue": 0},
        {"max_delay_ms": -1},
        {"max_delay_ms": float("inf")},
        {"when_full": "drop"},
        {"max_pixels": 0},
        {"performance": "both"},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            open_one(tiny_bundle, **wrong)


def test_an_image_over_the_pixel_limit(tiny_bundle: Path) -> None:
    with open_one(tiny_bundle, max_pixels=32 * 32) as classifier:
        with pytest.raises(ImageError, match="too large"):
            classifier.predict(image(0, 32, 33))
        assert classifier.predict(image()).top_k


# --- asyncio --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 8])
def test_async_answers_are_the_same(tiny_bundle: Path, max_batch: int) -> None:
    images = [image(seed) for seed in range(30)]
    with open_one(tiny_bundle, max_batch=max_batch, max_queue=4) as classifier:
        expected = [classifier.predict([one])[0] for one in images]

        async def main() -> Any:
            single = await asyncio.gather(*(classifier.predict_async(one) for one in images))
            several = await classifier.predict_async(images[:3], top_k=2)
            bad = await classifier.predict_async(b"no image", errors="return")
            with pytest.raises(ImageError):
                await classifier.predict_async(b"no image")
            with pytest.raises(InputError):
                await classifier.predict_async(images[0], top_k=0)
            return single, several, bad

        single, several, bad = asyncio.run(main())
        assert classifier.pending == 0
    same(single, expected, exact=False)
    assert [len(answer.top_k) for answer in several] == [2, 2, 2]
    assert isinstance(bad, ImageError)


def blocked(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Semaphore]:
    """Hold every run of the graph until the event is set; the semaphore counts those that came."""
    go, came = threading.Event(), threading.Semaphore(0)
    infer = classifier._runner.infer_checked

    def held(feeds: Any) -> Any:
        came.release()
        assert go.wait(SECONDS)
        return infer(feeds)

    monkeypatch.setattr(classifier._runner, "infer_checked", held)
    return go, came


@pytest.mark.parametrize("max_batch", [1, 4])
def test_a_full_queue_refuses_or_waits(tiny_bundle: Path, max_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_one(tiny_bundle, max_batch=max_batch, max_queue=2, when_full="raise") as classifier:
        go, _ = blocked(classifier, monkeypatch)

        async def main() -> None:
            accepted = [asyncio.create_task(classifier.predict_async(image(seed))) for seed in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError) as caught:
                await classifier.predict_async(image())
            assert "max_queue" in (caught.value.hint or "")
            go.set()
            assert len(await asyncio.gather(*accepted)) == 2
            await classifier.predict_async(image())  # there is room again

        asyncio.run(main())


def test_a_deadline_in_line_and_in_the_queue(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_one(tiny_bundle, max_batch=4, max_queue=2) as classifier:
        go, came = blocked(classifier, monkeypatch)

        async def main() -> None:
            first = asyncio.create_task(classifier.predict_async(image()))
            await asyncio.to_thread(came.acquire, timeout=SECONDS)
            with pytest.raises(DeadlineError, match="answered"):
                await classifier.predict_async(image(), timeout_ms=20)
            second = asyncio.create_task(classifier.predict_async(image()))
            await asyncio.sleep(0)
            with pytest.raises(DeadlineError, match="in line"):
                await classifier.predict_async(image(), timeout_ms=20)
            with pytest.raises(DeadlineError, match="in line"):
                await asyncio.to_thread(classifier.predict, image(), timeout_ms=20)
            go.set()
            await asyncio.gather(first, second)

        asyncio.run(main())
        assert classifier.pending == 0
        assert classifier.predict(image(), timeout_ms=1000 * SECONDS).top_k


def test_deadlines_without_batches(tiny_bundle: Path) -> None:
    with open_one(tiny_bundle) as classifier:
        assert classifier.predict(image(), timeout_ms=1000 * SECONDS).top_k
        with pytest.raises(DeadlineError):
            classifier.predict([image(seed) for seed in range(64)], timeout_ms=1e-6)
        for wrong in (0, -1, True, "1", float("nan")):
            with pytest.raises(InputError, match="timeout_ms"):
                classifier.predict(image(), timeout_ms=wrong)  # type: ignore[arg-type]


def test_a_deadline_that_passes_while_decoding_runs_no_model(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_one(tiny_bundle) as classifier:
        ran, real = [], classifier._request

        def slow(images: object) -> object:
            time.sleep(0.05)
            return real(images)

        monkeypatch.setattr(classifier, "_request", slow)
        monkeypatch.setattr(classifier._scorer, "run", lambda images: ran.append(images))
        with pytest.raises(DeadlineError, match="before the image was run"):
            classifier.predict(image(), timeout_ms=20)
        assert not ran


def test_cancelling_gives_the_place_back(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_one(tiny_bundle, max_batch=4, max_queue=2) as classifier:
        go, came = blocked(classifier, monkeypatch)

        async def main() -> None:
            tasks = [asyncio.create_task(classifier.predict_async(image(seed))) for seed in range(4)]
            await asyncio.to_thread(came.acquire, timeout=SECONDS)
            for task in tasks[1:]:
                task.cancel()
            results = await asyncio.gather(*tasks[1:], return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert classifier.pending == 1
            go.set()
            assert (await tasks[0]).top_k
            assert (await classifier.predict_async(image())).top_k

        asyncio.run(main())
        assert classifier.pending == 0


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 8])
def test_closing_under_load_answers_or_says_so(tiny_bundle: Path, max_batch: int) -> None:
    classifier = open_one(tiny_bundle, max_batch=max_batch, max_queue=4)
    expected = classifier.predict(image())
    begun = threading.Barrier(9)

    def until_closed(_: int) -> int:
        begun.wait(SECONDS)
        for count in range(100_000):
            try:
                same([classifier.predict(image())], [expected], exact=False)
            except RunnerClosedError:
                return count
        raise AssertionError("never closed")

    with ThreadPoolExecutor(8) as callers:
        running = [callers.submit(until_closed, number) for number in range(8)]
        begun.wait(SECONDS)
        classifier.predict(image())
        classifier.close()
        for future in running:
            future.result(timeout=SECONDS)
    classifier.close()
    with pytest.raises(RunnerClosedError):
        classifier.predict(image())
    with pytest.raises(RunnerClosedError):
        asyncio.run(classifier.predict_async(image()))


def test_no_thread_is_left(tiny_bundle: Path) -> None:
    threads = Threads()
    classifier = open_one(tiny_bundle, max_batch=4)
    asyncio.run(classifier.predict_async(image()))
    assert threads.begun("vitdeploy")
    classifier.close()
    assert threads.begun("vitdeploy") == []
    forgotten = open_one(tiny_bundle, max_batch=4)
    forgotten.predict(image())
    assert threads.begun("vitdeploy") == ["vitdeploy-batches"]
    del forgotten
    gc.collect()
    assert threads.begun("vitdeploy") == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_forked_process_is_told(tiny_bundle: Path, backend: str, max_batch: int) -> None:
    """Also closing and dropping it must not hang there, and the parent goes on."""
    with load(tiny_bundle, backend=backend, precision="int8", threads=2, max_batch=max_batch) as classifier:
        expected = classifier.predict(image())
        asyncio.run(classifier.predict_async(image()))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                told = [says_closed(lambda: classifier.predict(image()))]
                told.append(says_closed(lambda: classifier.predict([image()])))
                told.append(says_closed(lambda: asyncio.run(classifier.predict_async(image()))))
                classifier.close()
                code = 0 if all(told) else 2
            finally:
                os._exit(code)
        assert ended_well(child)
        same([classifier.predict(image())], [expected], exact=False)


def says_closed(use: Callable[[], Any]) -> bool:
    try:
        use()
    except RunnerClosedError as error:
        return "fork" in error.message and "each worker process" in (error.hint or "")
    return False


# --- places ---------------------------------------------------------------------------------------------------------


def test_places_are_given_in_turn() -> None:
    places = Places(1, refuse=False)
    held = [places.take(None)]
    order: list[int] = []
    waiting = []
    for number in range(3):
        thread = threading.Thread(target=lambda number=number: (held.append(places.take(None)), order.append(number)))
        thread.start()
        waiting.append(thread)
        while len(places._line) < number + 1:
            time.sleep(0.001)
    for number in range(3):
        places.give(held[number])
        waiting[number].join(SECONDS)
    assert order == [0, 1, 2]
    places.give(held[3])
    places.give(held[3])
    assert places.taken == 0


def test_a_place_that_nobody_holds_is_free_for_who_waits() -> None:
    places = Places(1, refuse=False)
    held = [places.take(None)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(places.take, None)
        while not places._line:
            time.sleep(0.001)
        held.clear()  # as an exception does that comes before the `try`
        assert waiting.result(SECONDS) is not None
    del waiting
    assert places.taken == 0


def test_who_waits_for_a_place_is_told_of_the_end() -> None:
    places = Places(1, refuse=False)
    held = places.take(None)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(places.take, None)
        while not places._line:
            time.sleep(0.001)
        places.close()
        with pytest.raises(RunnerClosedError):
            waiting.result(SECONDS)
    with pytest.raises(RunnerClosedError):
        places.take(None)
    assert places.taken == 1 and held
