"""Images in any usual form -> predictions, from many threads and from asyncio.

A call runs in its caller's thread. With micro-batching, the single images of callers at the same time go through the
graph together (`batching`). `predict_async` decodes and runs on threads of the classifier's own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from vitdeploy import progress
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BundleError, ImageError, InputError, RunnerClosedError
from vitdeploy.images import Source
from vitdeploy.machine import usable_cores
from vitdeploy.runtime.admission import Places, deadline_after, late, left, result_by, result_by_async
from vitdeploy.runtime.base import Runner
from vitdeploy.runtime.batching import MicroBatcher
from vitdeploy.runtime.dlpack import DeviceArray
from vitdeploy.runtime.inputs import is_ready, separated
from vitdeploy.runtime.limits import BATCH
from vitdeploy.runtime.predictions import Namer
from vitdeploy.runtime.scoring import Scorer
from vitdeploy.runtime.selection import Candidate
from vitdeploy.runtime.serving import Serving
from vitdeploy.specs import Prediction

__all__ = ["Classifier"]

_ERRORS = ("raise", "return")
_T = TypeVar("_T")


class Classifier:
    """Classifies images with one form of a bundle. `vitdeploy.load` makes it, open; `close` or a `with` block ends it.

    Threads and event loops may share one: each call is on its own, and gives what it would give alone.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        chosen: Candidate,
        passed_over: tuple[Candidate, ...],
        serving: Serving,
    ) -> None:
        self._bundle = bundle
        self._labels = bundle.manifest.labels
        self._runner = runner
        self._chosen = chosen
        self._passed_over = passed_over
        self._serving = serving
        self._scorer = Scorer(runner, serving.max_pixels)
        self._ready_pixels = self._scorer.ready_pixels
        self._namer = Namer(self._labels, chosen.name)
        self._named = self._namer.prediction
        classes = self._scorer.classes
        if isinstance(classes, int) and classes != len(self.labels):
            raise BundleError(
                f"{bundle.path} names {len(self.labels)} classes and {chosen.artifact.path} gives {classes}",
                hint="export the bundle again",
            )
        self._places = Places(serving.max_queue, refuse=serving.when_full == "raise")
        self._batcher: MicroBatcher | None = None
        if serving.max_batch > 1:
            most = min(serving.max_batch, self._scorer.batch)
            self._batcher = MicroBatcher(self._scorer.run, most, serving.max_delay_ms)
            weakref.finalize(self, self._batcher.close)  # for who forgets to close
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each class, by its index."""
        return self._labels

    @property
    def backend(self) -> str:
        """What runs the model: "native", "openvino", "onnxruntime", "tensorrt", "tensorrt-rtx" ..."""
        return self._chosen.backend

    @property
    def precision(self) -> str:
        """Which form of the model it runs: "int8", "fp16", "bf16" or "fp32"."""
        return self._chosen.precision

    @property
    def pending(self) -> int:
        """Requests that wait or run, of those that are counted: micro-batched ones and those of `predict_async`."""
        return self._places.taken

    def __enter__(self) -> Classifier:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more requests, answer those that were accepted, release the backend; closing twice is fine.

        It blocks until the last one is answered: in an event loop, `await asyncio.to_thread(classifier.close)`.
        """
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, None
        if self._process != os.getpid():  # the threads that would be waited for are in another process
            return
        self._places.close()
        if threads is not None:
            threads.shutdown()
        if self._batcher is not None:
            self._batcher.close()
        self._runner.__exit__(None, None, None)

    def describe(self) -> dict[str, Any]:
        """JSON-ready: the bundle, the form and backend that were taken and why, what was passed over and why."""
        return {
            "bundle": str(self._bundle.path),
            "backend": self.backend,
            "precision": self.precision,
            "device": self._chosen.device,
            "artifact": self._chosen.artifact.path,
            "sha256": self._chosen.artifact.sha256,
            "classes": len(self.labels),
            "why": self._chosen.why,
            "passed_over": [candidate.to_json() for candidate in self._passed_over],
            "serving": dict(vars(self._serving)),
        }

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        top_k: int = 5,
        *,
        errors: Literal["raise"] = "raise",
        timeout_ms: float | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], top_k: int = 5, *, errors: str, timeout_ms: float | None = None
    ) -> list[Prediction | ImageError]: ...

    @overload
    def predict(
        self, images: Source, top_k: int = 5, *, errors: str = "raise", timeout_ms: float | None = None
    ) -> Any: ...

    def predict(self, images: Any, top_k: int = 5, *, errors: str = "raise", timeout_ms: float | None = None) -> Any:
        """Classify one image or several.

        Args:
            images: one image: a path, bytes, a binary file object, a PIL image, or a uint8 array or tensor (anything
                with DLPack) of shape (height, width, 3) RGB (also greyscale and RGBA, see `vitdeploy.images.decode`).
                A tensor on the GPU where the backend takes it (`DeviceRunner`) is used there; else it is copied here.
                Or several: a list or tuple of these, of any sizes, or an array or tensor (count, height, width, 3).
            top_k: how many of the best classes each prediction lists; more than there are classes gives all.
            errors: "raise" stops at the first image that can't be used; "return" puts its ImageError in its place.
            timeout_ms: milliseconds until the deadline; None: none. What has not begun by then is not done. Without
                micro-batching a run of the graph that has begun is waited for.

        Returns:
            A Prediction for one image, a list of them in order for several.

        Raises:
            ImageError: an image that can't be decoded, is too large, or of a size that this form does not take.
            InputError: `top_k` under 1, or an unknown `errors`.
            OutOfMemoryError: there is no memory for it; the classifier stays usable.
            DeadlineError: the deadline passed.
            QueueFullError: too many requests are under way, with `when_full="raise"`.
            RunnerClosedError: after `close`, or in a forked process.
        """
        deadline = self._accepted(top_k, errors, timeout_ms)
        if is_ready(images, self._ready_pixels):
            return self._named(self._logits_of(images, deadline), top_k)
        there = self._scorer.view(images)
        if there is not None:
            return self._predict_there(there, images, top_k)
        parts, several = separated(images)
        if several:
            return self._predict_several(parts, top_k, errors, deadline)
        return self._predict_one(parts[0], top_k, errors, deadline)

    async def predict_async(
        self, images: Any, top_k: int = 5, *, errors: str = "raise", timeout_ms: float | None = None
    ) -> Any:
        """`predict` for an event loop, which goes on meanwhile. Takes, gives and raises what `predict` does.

        At most `max_queue` requests are under way; the next one waits its turn, or is refused (`when_full`).
        Cancelling it withdraws what has not begun.
        """
        deadline = self._accepted(top_k, errors, timeout_ms)
        await self._places.take_async(deadline)
        try:
            return await self._predict_soon(images, top_k, errors, deadline)
        finally:
            self._places.give()

    def stream(
        self,
        images: Iterable[Any],
        top_k: int = 5,
        *,
        errors: str = "raise",
        workers: int | None = None,
        batch: int | None = None,
    ) -> Iterator[Any]:
        """Classify many images, more than fit in memory: they are decoded in threads while the model runs.

        Images are pulled up to a few batches ahead of the answers, in this thread. How they fall into batches does not
        depend on timing, so the same images give the same answers.

        Example:
            for name, answer in zip(names, classifier.stream(names, errors="return")):
                ...

        Args:
            images: any iterable of what `predict` takes as one image.
            top_k: how many of the best classes each prediction lists.
            errors: "raise" stops at the first image that can't be used, after the answers before it; "return" yields
                its ImageError in its place.
            workers: threads that decode; None: one for each processor, at most 16.
            batch: most images of one call of the model, as far as this form takes them; None: 32.

        Yields:
            A Prediction for each image, in order. Closing the iterator, or dropping it, ends the threads.

        Raises:
            InputError: an argument of the wrong kind, at once.
            ImageError: an image that can't be used.
            RunnerClosedError: the classifier is closed, or was closed meanwhile.
        """
        from vitdeploy.runtime.stream import Stages, stream

        self._accepted(top_k, errors, None)

        def answer(pixels: list[npt.NDArray[np.uint8]]) -> list[Prediction]:
            self._check_open()
            return [self._named(logits, top_k) for logits in self._scorer.run(pixels)]

        stages = Stages(self._scorer.image, answer, self._scorer.batch_of(batch))
        return stream(stages, images, errors=errors, workers=workers)

    def logits(self, images: Any) -> npt.NDArray[np.float32]:
        """Class scores before softmax, float32 (count, classes), in the order of the images; count is 1 for one image.

        Takes and raises what `predict` does. Micro-batching takes no part.
        """
        self._check_open()
        there = self._scorer.view(images)
        if there is not None:
            return self._namer.finite(self._scorer.run_on_device(there))
        parts, several = separated(images)
        scores = np.empty((len(parts), len(self.labels)), np.float32)
        for index, row in self._scorer.answers(parts, keep=False, many=several, deadline=None):
            scores[index] = np.asarray(row)
        return self._namer.finite(scores)

    def _predict_one(self, source: Any, top_k: int, errors: str, deadline: float | None) -> Prediction | ImageError:
        """In this thread, or with micro-batching in a batch with the images of others."""
        try:
            pixels = self._scorer.image(source)
        except ImageError as error:
            if errors == "raise":
                raise
            return error
        return self._named(self._logits_of(pixels, deadline), top_k)

    def _logits_of(self, pixels: npt.NDArray[np.uint8], deadline: float | None) -> npt.NDArray[np.float32]:
        """The logits of one image, (classes,) or (1, classes)."""
        if self._batcher is not None:
            return self._together(self._batcher, pixels, deadline)
        if deadline is not None and left(deadline) == 0:
            raise late("before the image was run")
        return self._scorer.run([pixels])

    def _predict_several(self, parts: Any, top_k: int, errors: str, deadline: float | None) -> list[Any]:
        """In this thread, without others."""
        answers: list[Any] = [None] * len(parts)
        show = progress.task("Classifying", len(parts), "images") if len(parts) > BATCH else nullcontext()
        with show as step:
            found = self._scorer.answers(parts, keep=errors == "return", many=True, deadline=deadline)
            for index, answer in found:
                answers[index] = answer if isinstance(answer, ImageError) else self._named(answer, top_k)
                if step is not None:
                    step.advance()
        return answers

    def _predict_there(self, batch: DeviceArray, tensor: Any, top_k: int) -> Any:
        """A tensor that lies on the runner's own GPU, and is used where it lies."""
        answers = [self._named(row, top_k) for row in self._scorer.run_on_device(batch)]
        return answers if len(tensor.shape) == 4 else answers[0]

    def _together(
        self, batcher: MicroBatcher, pixels: npt.NDArray[np.uint8], deadline: float | None
    ) -> npt.NDArray[np.float32]:
        """The logits (classes,) of one image, in a batch with those of other threads."""
        self._places.take(deadline)
        try:
            alone = batcher.run_alone(pixels)
            if alone is not None:
                return alone
            return result_by(batcher.submit(pixels, deadline), deadline, "before the request was answered")
        finally:
            self._places.give()

    async def _predict_soon(self, images: Any, top_k: int, errors: str, deadline: float | None) -> Any:
        batcher = self._batcher
        there = self._scorer.view(images)
        if there is not None:
            return await self._elsewhere(lambda: self._predict_there(there, images, top_k), deadline)
        parts, several = separated(images)
        if several:
            return await self._elsewhere(lambda: self._predict_several(parts, top_k, errors, deadline), deadline)
        if batcher is None:
            return await self._elsewhere(lambda: self._predict_one(parts[0], top_k, errors, deadline), deadline)
        try:
            answer = await self._elsewhere(lambda: batcher.submit(self._scorer.image(parts[0]), deadline), deadline)
        except ImageError as error:
            if errors == "raise":
                raise
            return error
        return self._named(await result_by_async(answer, deadline, "before the request was answered"), top_k)

    async def _elsewhere(self, work: Callable[[], _T], deadline: float | None) -> _T:
        """What `work` gives, done on one of the classifier's own threads unless the deadline has passed by then."""

        def begin() -> _T:
            if left(deadline) == 0:
                raise late("before the request was run")
            return work()

        with self._lock:
            if self._closed:
                raise _closed()
            if self._threads is None:
                self._threads = ThreadPoolExecutor(max(2, usable_cores()), thread_name_prefix="vitdeploy")
            future = self._threads.submit(begin)
        return await asyncio.wrap_future(future)

    def _accepted(self, top_k: int, errors: str, timeout_ms: float | None) -> float | None:
        """The deadline of a request, if its options are right and the classifier is open."""
        if type(top_k) is not int or top_k < 1 or errors not in _ERRORS:
            _check(top_k, errors)
        deadline = None if timeout_ms is None else deadline_after(timeout_ms)
        if self._closed or self._process != os.getpid():
            self._check_open()
        return deadline

    def _check_open(self) -> None:
        if self._process != os.getpid():
            raise RunnerClosedError(
                "this classifier was opened before the process forked, and its threads are not here",
                hint="load the bundle in each worker process, after the fork",
            )
        if self._closed:
            raise _closed()


def _check(top_k: int, errors: str) -> None:
    if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
        raise InputError(f"top_k is {top_k!r}", hint="give a whole number of at least 1")
    if errors not in _ERRORS:
        raise InputError(f"errors is {errors!r}", hint='one of "raise", "return"')


def _closed() -> RunnerClosedError:
    return RunnerClosedError("this classifier is closed", hint="load the bundle again")
