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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.core.errors import ImageError, InputError, OutOfMemoryError
from vitdeploy.core.machine import HELD_BYTES, usable_cores

__all__ = ["WINDOW", "Stages", "stream"]

WINDOW = 8
"""A batch that does not become full runs after this many times its size of later images."""

_UNDER_WAY = 2  # batches handed to the model: one that runs, one that is ready
_MOST_WORKERS = 16
_Pixels = npt.NDArray[np.uint8]
_Failure = ImageError | OutOfMemoryError


@dataclass(frozen=True)
class Stages:
    """What is done to the images.

    `decode` makes pixels (height, width, 3) of one, and raises ImageError or OutOfMemoryError. `answer` makes an answer
    each of at most `batch` of one size, and raises OutOfMemoryError where a smaller batch might do.
    """

    decode: Callable[[Any], _Pixels]
    answer: Callable[[list[_Pixels]], list[Any]]
    batch: int


def stream(
    stages: Stages, images: Iterable[Any], *, errors: str = "raise", workers: int | None = None
) -> Iterator[Any]:
    """The answers to `images`, in their order: `Classifier.stream`, which says more."""
    if errors not in ("raise", "return"):
        raise InputError(f"errors is {errors!r}", hint='one of "raise", "return"')
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise InputError(f"workers is {workers!r}", hint="give a whole number of at least 1")
    if isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, Iterable):
        raise InputError(
            f"stream takes many images, not one {type(images).__name__}",
            hint="give a list or another iterable of images; predict() takes one",
        )
    return _answers(stages, iter(images), errors == "return", workers or min(_MOST_WORKERS, usable_cores()))


def _answers(stages: Stages, source: Iterator[Any], keep: bool, workers: int) -> Iterator[Any]:
    decoders = ThreadPoolExecutor(workers, thread_name_prefix="vitdeploy-decode")
    model = ThreadPoolExecutor(1, thread_name_prefix="vitdeploy-model")
    pipeline = _Pipeline(stages, source, decoders, model)
    try:
        for answer in pipeline.answers():
            if isinstance(answer, _Failure):
                if not keep:
                    raise answer
                yield answer if isinstance(answer, ImageError) else ImageError(answer.message, hint=answer.hint)
            else:
                yield answer
    finally:
        pipeline.budget.lift()
        decoders.shutdown(wait=True, cancel_futures=True)
        model.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Image:
    """A decoded image and its place in the source."""

    index: int
    pixels: _Pixels


class _Pipeline:
    """Where each image is between the source and its answer."""

    def __init__(
        self, stages: Stages, source: Iterator[Any], decoders: ThreadPoolExecutor, model: ThreadPoolExecutor
    ) -> None:
        self.budget = _Budget(HELD_BYTES)
        self._stages, self._source = stages, source
        self._decoders, self._model = decoders, model
        self._failure: Exception | None = None  # of the source: raised when all before it is answered
        self._ended = False
        self._pulled = self._placed = self._delivered = 0  # images that are past each of these steps
        self._decoding: deque[Future[_Image | _Failure]] = deque()
        self._groups: dict[tuple[int, ...], list[_Image]] = {}  # by size; the oldest first
        self._grouped_bytes = 0
        self._running: deque[tuple[list[_Image], Future[list[Any]]]] = deque()
        self._answers: dict[int, Any] = {}

    def answers(self) -> Iterator[Any]:
        """The answers and failures, in the order of the source."""
        while True:
            self._pull()
            if self._decoding and len(self._running) < _UNDER_WAY:
                self._place(self._decoding.popleft().result())
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
        while not self._ended and len(self._decoding) < 2 * self._stages.batch:
            try:
                item = next(self._source)
            except StopIteration:
                self._ended = True
            except Exception as error:
                self._ended, self._failure = True, error
            else:
                self._decoding.append(self._decoders.submit(self._decode, self._pulled, item))
                self._pulled += 1

    def _decode(self, index: int, item: Any) -> _Image | _Failure:
        self.budget.wait(index)
        try:
            pixels = self._stages.decode(item)
        except ImageError as error:
            if isinstance(item, (str, os.PathLike)):
                return error
            return ImageError(f"image {index}: {error.message}", hint=error.hint)
        except OutOfMemoryError as error:
            return error
        self.budget.add(pixels.nbytes)
        return _Image(index, pixels)

    def _place(self, image: _Image | _Failure) -> None:
        """Put an image in the group of its size, and run what is full, too large or too old."""
        index = self._placed
        self._placed += 1
        if not isinstance(image, _Image):
            self.budget.release(index, 0)
            self._answers[index] = image
            return
        self.budget.release(index, image.pixels.nbytes)
        size = image.pixels.shape
        group = self._groups.setdefault(size, [])
        group.append(image)
        self._grouped_bytes += image.pixels.nbytes
        if len(group) == self._stages.batch:
            self._run(size)
        late = index - WINDOW * self._stages.batch
        while self._groups and (self._grouped_bytes >= HELD_BYTES or self._oldest() <= late):
            self._run_oldest()

    def _oldest(self) -> int:
        return next(iter(self._groups.values()))[0].index

    def _run_oldest(self) -> None:
        self._run(next(iter(self._groups)))

    def _run(self, size: tuple[int, ...]) -> None:
        group = self._groups.pop(size)
        self._grouped_bytes -= sum(image.pixels.nbytes for image in group)
        self._running.append((group, self._model.submit(self._answer, [image.pixels for image in group])))

    def _answer(self, batch: list[_Pixels]) -> list[Any]:
        """The answers of a batch; where memory does not suffice, of its halves."""
        try:
            return self._stages.answer(batch)
        except OutOfMemoryError as error:
            if len(batch) == 1:
                return [error]
        half = len(batch) // 2
        return [*self._answer(batch[:half]), *self._answer(batch[half:])]

    def _collect(self) -> None:
        """Wait for the batch that was handed to the model first."""
        group, future = self._running.popleft()
        self._answers.update(zip((image.index for image in group), future.result(), strict=True))


class _Budget:
    """Bytes that the decoders may hold ready; the image that is needed next is always let through."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._next = limit, 0, 0
        self._lifted = False
        self._lock = threading.Lock()  # entered itself: Ctrl-C may leave a Condition locked
        self._changed = threading.Condition(self._lock)

    def wait(self, index: int) -> None:
        """Wait until image `index` may be decoded."""
        with self._lock:
            self._changed.wait_for(lambda: self._lifted or self._used < self._limit or index <= self._next)

    def add(self, count: int) -> None:
        with self._lock:
            self._used += count

    def release(self, index: int, count: int) -> None:
        """Image `index` was taken away, `count` bytes of it."""
        with self._lock:
            self._used -= count
            self._next = index + 1
            self._changed.notify_all()

    def lift(self) -> None:
        """Let everyone through: what is decoded now is thrown away."""
        with self._lock:
            self._lifted = True
            self._changed.notify_all()
