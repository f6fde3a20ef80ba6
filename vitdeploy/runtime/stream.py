"""Many images, one after another: they are decoded in the background while the model runs.

    source --> decoders (threads) --in order--> groups of one size --batches--> model (a thread) --in order--> answers

The caller's thread pulls from the source, hands out the work and yields the answers. How images fall into batches
depends on the source alone, never on timing, so the same source gives the same answers, bit for bit.

What is held is bounded, whatever the source: two batches of decoded images, or `HELD_BYTES` of them; as many bytes in
batches that are not full yet; two batches under way; `WINDOW` batches of answers behind a late one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vitdeploy.errors import ImageError, InputError
from vitdeploy.images import decode

__all__ = ["BATCH", "HELD_BYTES", "WINDOW", "Predictor", "default_workers", "stream"]

BATCH = 32
"""Most images of one call of the model, unless the caller says otherwise."""

HELD_BYTES = 256 * 2**20
"""Decoded pixels that may wait before they are in a batch, and as many again in batches that are not full."""

WINDOW = 8
"""A batch that does not become full runs after this many times its size of later images."""

_UNDER_WAY = 2  # batches handed to the model: one that runs, one that is ready
_MOST_WORKERS = 16


class Predictor(Protocol):
    """What answers a batch: a `Classifier`."""

    def predict(self, images: Any, top_k: int = 5, *, errors: str = "raise") -> Any:
        """The predictions of a list of images; with `errors="return"` some of them are ImageErrors."""


def default_workers() -> int:
    """Threads that decode when nobody says how many: one for each processor this process may use, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, usable)


def stream(
    predictor: Predictor,
    images: Iterable[Any],
    top_k: int = 5,
    *,
    errors: str = "raise",
    workers: int | None = None,
    batch: int = BATCH,
) -> Iterator[Any]:
    """The answers to `images`, in their order: `Classifier.stream`, which says more."""
    if errors not in ("raise", "return"):
        raise InputError(f"errors is {errors!r}", hint='one of "raise", "return"')
    for name, value in (("top_k", top_k), ("batch", batch), ("workers", 1 if workers is None else workers)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"{name} is {value!r}", hint="give a whole number of at least 1")
    if isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, Iterable):
        raise InputError(
            f"stream takes many images, not one {type(images).__name__}",
            hint="give a list or another iterable of images; predict() takes one",
        )
    predictor.predict([], int(top_k))  # a closed classifier says so now, not at the first answer
    return _answers(predictor, iter(images), int(top_k), errors == "return", workers or default_workers(), int(batch))


def _answers(
    predictor: Predictor, source: Iterator[Any], top_k: int, keep: bool, workers: int, batch: int
) -> Iterator[Any]:
    decoders = ThreadPoolExecutor(workers, thread_name_prefix="vitdeploy-decode")
    model = ThreadPoolExecutor(1, thread_name_prefix="vitdeploy-model")
    pipeline = _Pipeline(predictor, source, top_k, batch, decoders, model)
    try:
        for answer in pipeline.answers():
            if isinstance(answer, ImageError) and not keep:
                raise answer
            yield answer
    finally:
        pipeline.budget.lift()
        decoders.shutdown(wait=True, cancel_futures=True)
        model.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Image:
    """A decoded image: uint8 (height, width, 3), or what only the predictor can read."""

    index: int
    pixels: Any
    size: tuple[int, ...]
    bytes: int


class _Pipeline:
    """Where each image is between the source and its answer."""

    def __init__(
        self,
        predictor: Predictor,
        source: Iterator[Any],
        top_k: int,
        batch: int,
        decoders: ThreadPoolExecutor,
        model: ThreadPoolExecutor,
    ) -> None:
        self.budget = _Budget(HELD_BYTES)
        self._predictor, self._source, self._top_k, self._batch = predictor, source, top_k, batch
        self._decoders, self._model = decoders, model
        self._failure: BaseException | None = None  # of the source: raised when all before it is answered
        self._ended = False
        self._pulled = self._delivered = 0
        self._decoding: deque[Future[_Image | ImageError]] = deque()
        self._placed = 0  # images that are past decoding
        self._groups: dict[tuple[int, ...], list[_Image]] = {}  # by size; the oldest first
        self._grouped_bytes = 0
        self._running: deque[tuple[list[int], Future[list[Any]]]] = deque()
        self._answers: dict[int, Any] = {}

    def answers(self) -> Iterator[Any]:
        """The predictions and ImageErrors, in the order of the source."""
        while True:
            self._pull()
            if self._decoding and len(self._running) < _UNDER_WAY:
                self._place(self._decoding.popleft())
            elif self._running:
                self._collect()
            elif self._groups:
                self._run_oldest()
            elif self._failure is not None:
                raise self._failure
            else:
                return
            while self._delivered in self._answers:
                answer = self._answers.pop(self._delivered)
                self._delivered += 1
                yield answer

    def _pull(self) -> None:
        """Hand images to the decoders, up to two batches ahead."""
        while not self._ended and len(self._decoding) < 2 * self._batch:
            try:
                item = next(self._source)
            except StopIteration:
                self._ended = True
            except Exception as error:
                self._ended, self._failure = True, error
            else:
                self._decoding.append(self._decoders.submit(self._decode, self._pulled, item))
                self._pulled += 1

    def _decode(self, index: int, item: Any) -> _Image | ImageError:
        self.budget.wait(index)
        try:
            if hasattr(item, "__dlpack__") and not isinstance(item, np.ndarray):
                return _Image(index, item, tuple(item.shape), 0)
            pixels = decode(item)
        except ImageError as error:
            return error if isinstance(item, (str, os.PathLike)) else _named(index, error)
        self.budget.add(pixels.nbytes)
        return _Image(index, pixels, pixels.shape, pixels.nbytes)

    def _place(self, decoded: Future[_Image | ImageError]) -> None:
        """Put an image in the group of its size, and run what is full, too large or too old."""
        index, image = self._placed, decoded.result()
        self._placed += 1
        if isinstance(image, ImageError):
            self.budget.release(index, 0)
            self._answers[index] = image
            return
        self.budget.release(index, image.bytes)
        group = self._groups.setdefault(image.size, [])
        group.append(image)
        self._grouped_bytes += image.bytes
        if len(group) == self._batch:
            self._run(image.size)
        while self._groups and (self._grouped_bytes >= HELD_BYTES or self._oldest() <= index - WINDOW * self._batch):
            self._run_oldest()

    def _oldest(self) -> int:
        return next(iter(self._groups.values()))[0].index

    def _run_oldest(self) -> None:
        self._run(next(iter(self._groups)))

    def _run(self, size: tuple[int, ...]) -> None:
        group = self._groups.pop(size)
        self._grouped_bytes -= sum(image.bytes for image in group)
        self._running.append(([image.index for image in group], self._model.submit(self._predict, group)))

    def _predict(self, group: list[_Image]) -> list[Any]:
        answers = self._predictor.predict([image.pixels for image in group], self._top_k, errors="return")
        return [
            _renamed(answer, place, image.index) if isinstance(answer, ImageError) else answer
            for place, (image, answer) in enumerate(zip(group, answers, strict=True))
        ]

    def _collect(self) -> None:
        """Wait for the batch that was handed to the model first."""
        indices, future = self._running.popleft()
        self._answers.update(zip(indices, future.result(), strict=True))


class _Budget:
    """Bytes that the decoders may hold ready; the image that is needed next is always let through."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._next = limit, 0, 0
        self._lifted = False
        self._changed = threading.Condition()

    def wait(self, index: int) -> None:
        """Wait until image `index` may be decoded."""
        with self._changed:
            self._changed.wait_for(lambda: self._lifted or self._used < self._limit or index <= self._next)

    def add(self, count: int) -> None:
        with self._changed:
            self._used += count

    def release(self, index: int, count: int) -> None:
        """Image `index` was taken away, `count` bytes of it."""
        with self._changed:
            self._used -= count
            self._next = index + 1
            self._changed.notify_all()

    def lift(self) -> None:
        """Let everyone through: what is decoded now is thrown away."""
        with self._changed:
            self._lifted = True
            self._changed.notify_all()


def _named(index: int, error: ImageError) -> ImageError:
    return ImageError(f"image {index}: {error.message}", hint=error.hint)


def _renamed(error: ImageError, place: int, index: int) -> ImageError:
    """The error that the predictor called by the image's place in its batch, by its place in the stream."""
    return _named(index, ImageError(error.message.removeprefix(f"image {place}: "), hint=error.hint))
