"""Images in any usual form -> predictions or vectors, from many threads and from asyncio.

A call runs in its caller's thread. With micro-batching, the single images of callers at the same time go through the
graph together (`batching`). `predict_async` and `embed_async` decode and run on threads of the classifier's own.

Every way in makes one request of an image (`inputs`), and what `_answer` gives of it, `predict` and `embed` both give.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar, overload

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.base import Runner
from vitdeploy.bundle import Bundle
from vitdeploy.core import progress
from vitdeploy.core.admission import Answer, Places, deadline_after, late, left, result_by, result_by_async
from vitdeploy.core.errors import BundleError, ImageError, InputError, RunnerClosedError
from vitdeploy.core.machine import usable_cores
from vitdeploy.core.specs import TOP_K, Prediction
from vitdeploy.data.images import Source
from vitdeploy.models.tasks import CLASSIFICATION, EMBEDDING, TASKS, Kind, Task
from vitdeploy.runtime.batching import MicroBatcher
from vitdeploy.runtime.inputs import DeviceImages, Pixels, Several
from vitdeploy.runtime.limits import BATCH
from vitdeploy.runtime.predictions import Namer
from vitdeploy.runtime.scoring import Scorer
from vitdeploy.runtime.selection import Candidate
from vitdeploy.runtime.serving import Serving

__all__ = ["Classifier"]

_ERRORS = ("raise", "return")
_T = TypeVar("_T")


class Classifier:
    """Answers images with one form of a bundle. `vitdeploy.load` makes it, open; `close` or a `with` block ends it.

    What it is asked by, the bundle's task says: `predict` and `logits` of a classifier, `embed` of an embedding.

    Threads and event loops may share one: each call is on its own, and gives what it would give alone.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        chosen: Candidate,
        passed_over: tuple[Candidate, ...],
        serving: Serving,
        threshold: float | None = None,
    ) -> None:
        self._bundle = bundle
        self._labels, self._width = bundle.manifest.labels, bundle.manifest.width
        self._runner = runner
        self._chosen = chosen
        self._passed_over = passed_over
        self._serving = serving
        self._scorer = Scorer(runner, serving.max_pixels)
        self._request = self._scorer.inputs.request
        self._task = TASKS[bundle.manifest.task]
        given = bundle.manifest.threshold if threshold is None else threshold
        self._namer = Namer(self._labels, chosen.name, self._task, given)
        self._classifies = self._task.kind is CLASSIFICATION
        self._named: Callable[[npt.NDArray[np.float32], int], Any] = (
            self._namer.prediction if self._classifies else self._namer.vector
        )
        width = self._scorer.width
        if isinstance(width, int) and width != self._width:
            numbers = self._task.kind.numbers
            raise BundleError(
                f"the manifest of {bundle.path} has {self._width} {numbers} and {chosen.artifact.path} gives {width}",
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
    def task(self) -> Task:
        """What the model answers: `task.name`, `task.kind`, and `task.scores(logits)`, which `predict` gives."""
        return self._task

    @property
    def threshold(self) -> float | None:
        """The score from which one of several labels counts, 0..1; None where an image does not have several."""
        return self._namer.threshold

    @property
    def backend(self) -> str:
        """What runs the model: "native", "openvino", "onnxruntime", "tensorrt", "tensorrt-rtx" ..."""
        return self._chosen.backend

    @property
    def precision(self) -> str:
        """Which form of the model it runs: "int8", "fp8", "fp16", "bf16" or "fp32"."""
        return self._chosen.precision

    @property
    def pending(self) -> int:
        """Requests that wait or run, of those that are counted: micro-batched ones and those of an event loop."""
        return self._places.taken

    def __repr__(self) -> str:
        end = ", closed" if self._closed else ""
        return f"<Classifier of {self._bundle.path}: {self._chosen.name}, {self._width} {self._task.kind.numbers}{end}>"

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
        if self._process != os.getpid():  # the threads that would be waited for are in another process
            self._closed = True
            return
        with self._lock:
            self._closed = True
        self._places.close()
        if self._threads is not None:
            self._threads.shutdown()
        if self._batcher is not None:
            self._batcher.close()
        self._runner.__exit__(None, None, None)

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a classifier can't be pickled or copied: it holds threads and a session of its backend",
            hint=f"send the path and load it once in each process: vitdeploy.load({str(self._bundle.path)!r})",
        )

    def describe(self) -> dict[str, Any]:
        """JSON-ready: the bundle, the form and backend that were taken and why, what was passed over and why."""
        embedding = self._bundle.manifest.embedding
        return {
            "bundle": str(self._bundle.path),
            "backend": self.backend,
            "precision": self.precision,
            "device": self._chosen.device,
            "artifact": self._chosen.artifact.path,
            "sha256": self._chosen.artifact.sha256,
            "task": self._task.name,
            "classes": len(self.labels),
            "threshold": self.threshold,
            "embedding": None if embedding is None else embedding.to_json(),
            "instruction_set": getattr(self._runner, "instruction_set", None),  # of our own kernels
            "cuda_graphs": getattr(self._runner, "cuda_graphs", None),  # of an engine: by, kept, why_not
            "why": self._chosen.why,
            "passed_over": [candidate.to_json() for candidate in self._passed_over],
            "serving": dict(vars(self._serving)),
        }

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        top_k: int = TOP_K,
        *,
        errors: Literal["raise"] = "raise",
        timeout_ms: float | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], top_k: int = TOP_K, *, errors: str, timeout_ms: float | None = None
    ) -> list[Prediction | ImageError]: ...

    @overload
    def predict(
        self, images: Source, top_k: int = TOP_K, *, errors: str = "raise", timeout_ms: float | None = None
    ) -> Any: ...

    def predict(
        self, images: Any, top_k: int = TOP_K, *, errors: str = "raise", timeout_ms: float | None = None
    ) -> Any:
        """Classify one image or several.

        Args:
            images: one image: a path, bytes, a binary file object, a PIL image, or a uint8 array or tensor (anything
                with DLPack) of shape (height, width, 3) RGB (also greyscale and RGBA: `data.images.decode`).
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
            InputError: `top_k` under 1, or an unknown `errors`, or the bundle is an embedding.
            OutOfMemoryError: there is no memory for it; the classifier stays usable.
            DeadlineError: the deadline passed.
            QueueFullError: too many requests are under way, with `when_full="raise"`.
            RunnerClosedError: after `close`, or in a forked process.
        """
        if not self._classifies:
            self._require(CLASSIFICATION)
        return self._answer(images, top_k, errors, self._accepted(top_k, errors, timeout_ms))

    async def predict_async(
        self, images: Any, top_k: int = TOP_K, *, errors: str = "raise", timeout_ms: float | None = None
    ) -> Any:
        """`predict` for an event loop, which goes on meanwhile. Takes, gives and raises what `predict` does.

        At most `max_queue` requests are under way; the next one waits its turn, or is refused (`when_full`).
        Cancelling it withdraws what has not begun.
        """
        self._require(CLASSIFICATION)
        return await self._answer_async(images, top_k, errors, self._accepted(top_k, errors, timeout_ms))

    def stream(
        self,
        images: Iterable[Any],
        top_k: int = TOP_K,
        *,
        errors: str = "raise",
        workers: int | None = None,
        batch: int | None = None,
    ) -> Iterator[Any]:
        """Answer many images, more than fit in memory: they are decoded in threads while the model runs.

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
            A Prediction for each image, in order; of an embedding a vector, float32 (dimensions,). Closing or dropping
            the iterator ends the threads.

        Raises:
            InputError: an argument of the wrong kind, at once.
            ImageError: an image that can't be used.
            RunnerClosedError: the classifier is closed, or was closed meanwhile.
        """
        from vitdeploy.runtime.stream import Stages, stream

        self._accepted(top_k, errors, None)

        def answer(pixels: list[Pixels]) -> list[Any]:
            self._check_open()
            return [self._named(logits, top_k) for logits in self._scorer.run(pixels)]

        stages = Stages(self._scorer.inputs.pixels, answer, self._scorer.batch_of(batch))
        return stream(stages, images, errors=errors, workers=workers)

    def logits(self, images: Any) -> npt.NDArray[np.float32]:
        """Class scores before softmax, float32 (count, classes), in the order of the images; count is 1 for one image.

        Takes and raises what `predict` does. Micro-batching takes no part.
        """
        self._require(CLASSIFICATION)
        self._check_open()
        request = self._request(images)
        if isinstance(request, DeviceImages):
            return self._namer.finite(self._scorer.run_on_device(request.batch))
        if not isinstance(request, Several):
            return self._namer.finite(self._scorer.run([request]))
        scores = np.empty((len(request.images), self._width), np.float32)
        for index, row in self._scorer.answers(request, keep=False, deadline=None):
            scores[index] = np.asarray(row)
        return self._namer.finite(scores)

    @overload
    def embed(
        self, images: Any, *, errors: Literal["raise"] = "raise", timeout_ms: float | None = None
    ) -> npt.NDArray[np.float32]: ...

    @overload
    def embed(
        self, images: Any, *, errors: Literal["return"], timeout_ms: float | None = None
    ) -> list[npt.NDArray[np.float32] | ImageError]: ...

    @overload
    def embed(self, images: Any, *, errors: str, timeout_ms: float | None = None) -> Any: ...

    def embed(self, images: Any, *, errors: str = "raise", timeout_ms: float | None = None) -> Any:
        """Vectors of images, float32 (count, dimensions), in the order of the images; count is 1 for one image.

        What the vectors are, `describe()["embedding"]` says.

        Args:
            images: one image or several, of all kinds that `predict` takes.
            errors: "raise" stops at the first image that can't be used; "return" gives a list in the place of the
                array: of each image its vector, float32 (dimensions,), or its ImageError.
            timeout_ms: milliseconds until the deadline, as of `predict`; None: none.

        Raises:
            ImageError: an image that can't be decoded, is too large, or of a size that this form does not take.
            InputError: an unknown `errors`, or the bundle is a classifier.
            ModelError: some number is not finite.
            OutOfMemoryError: there is no memory for it; the classifier stays usable.
            DeadlineError: the deadline passed.
            QueueFullError: too many requests are under way, with `when_full="raise"`.
            RunnerClosedError: after `close`, or in a forked process.

        Example:
            vectors = load("bundles/dinov2").embed(["cat.png", "dog.png"])  # (2, 384)
        """
        self._require(EMBEDDING)
        return self._vectors(self._answer(images, 1, errors, self._accepted(1, errors, timeout_ms)), errors)

    async def embed_async(self, images: Any, *, errors: str = "raise", timeout_ms: float | None = None) -> Any:
        """`embed` for an event loop, which goes on meanwhile: to `embed` what `predict_async` is to `predict`."""
        self._require(EMBEDDING)
        deadline = self._accepted(1, errors, timeout_ms)
        return self._vectors(await self._answer_async(images, 1, errors, deadline), errors)

    def _vectors(self, found: Any, errors: str) -> Any:
        """What `embed` gives of the answer to one image, or of the list of those to several."""
        rows = found if isinstance(found, list) else [found]
        if errors == "return":
            return rows
        return np.stack(rows) if rows else np.empty((0, self._width), np.float32)

    def _require(self, kind: Kind) -> None:
        """Refuse what the bundle's task does not answer."""
        self._task.require(kind, str(self._bundle.path))

    def _answer(self, images: Any, top_k: int, errors: str, deadline: float | None, *, wait: bool = True) -> Any:
        """The one way from images to predictions or vectors, in this thread; only one image in the machine's memory may
        go through the graph with the images of others. Without `wait`, its numbers are given as an `Answer`."""
        try:
            request = self._request(images)
        except ImageError as error:
            if errors == "raise" or getattr(images, "ndim", 3) == 4:  # a tensor that can't be read as a whole
                raise
            return error
        if isinstance(request, np.ndarray):
            if self._batcher is None:
                if deadline is not None and left(deadline) == 0:
                    raise late("before the image was run")
                return self._named(self._scorer.run([request]), top_k)
            if not wait:
                return self._batcher.submit(request, deadline)
            return self._named(self._run_batched(self._batcher, request, deadline), top_k)
        if isinstance(request, DeviceImages):
            found = [self._named(row, top_k) for row in self._scorer.run_on_device(request.batch)]
            return found if request.several else found[0]
        count = len(request.images)
        answers: list[Any] = [None] * count
        with progress.task(self._task.kind.doing, count, "images") if count > BATCH else nullcontext() as step:
            for index, answer in self._scorer.answers(request, keep=errors == "return", deadline=deadline):
                answers[index] = answer if isinstance(answer, ImageError) else self._named(answer, top_k)
                if step is not None:
                    step.advance()
        return answers

    async def _answer_async(self, images: Any, top_k: int, errors: str, deadline: float | None) -> Any:
        """`_answer` for an event loop: on a thread of the classifier's own, with a place among the `max_queue`."""
        place = await self._places.take_async(deadline)
        try:
            answer = await self._on_a_thread(
                lambda: self._answer(images, top_k, errors, deadline, wait=False), deadline
            )
            if not isinstance(answer, Answer):
                return answer
            return self._named(await result_by_async(answer, deadline, "before the request was answered"), top_k)
        finally:
            self._places.give(place)

    def _run_batched(self, batcher: MicroBatcher, pixels: Pixels, deadline: float | None) -> npt.NDArray[np.float32]:
        """The logits (classes,) of one image, in a batch with those of other threads."""
        place = self._places.take(deadline)
        try:
            alone = batcher.run_alone(pixels)
            if alone is not None:
                return alone
            return result_by(batcher.submit(pixels, deadline), deadline, "before the request was answered")
        finally:
            self._places.give(place)

    async def _on_a_thread(self, work: Callable[[], _T], deadline: float | None) -> _T:
        """What `work` gives, done on one of the classifier's own threads unless the deadline has passed by then."""
        from asyncio import wrap_future

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
        return await wrap_future(future)

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
