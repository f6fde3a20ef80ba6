"""Images in any usual form -> predictions: decoding, batches of equal size, softmax, labels.

Images of one size go through the graph together, in batches of at most `BATCH`; a list may mix sizes, and its answers
come in its order. Decoded pixels are held until their batch is full, at most `HELD_BYTES` of them.

    p_i = exp(z_i - max z) / sum_j exp(z_j - max z)        (softmax, computed in float64)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from vitdeploy import progress
from vitdeploy.bundle import Bundle
from vitdeploy.errors import BundleError, ImageError, InputError, ModelError
from vitdeploy.images import Source, decode
from vitdeploy.runtime.base import Runner
from vitdeploy.runtime.selection import Candidate
from vitdeploy.specs import Prediction, Score, ShapeRange

__all__ = ["BATCH", "HELD_BYTES", "Classifier"]

BATCH = 32
"""Most images of one call of the graph."""

HELD_BYTES = 256 * 2**20
"""Decoded pixels that may wait for their batch."""


class Classifier:
    """Classifies images with one form of a bundle. `vitdeploy.load` makes it, open; `close` or a `with` block ends it.

    Threads may share one: each call is on its own, and gives what it would give alone.
    """

    def __init__(self, bundle: Bundle, runner: Runner, chosen: Candidate, passed_over: tuple[Candidate, ...]) -> None:
        self._bundle = bundle
        self._runner = runner
        self._chosen = chosen
        self._passed_over = passed_over
        self._limits = _Limits(runner)
        classes = runner.outputs[0].shape[-1]
        if isinstance(classes, int) and classes != len(self.labels):
            raise BundleError(
                f"{bundle.path} names {len(self.labels)} classes and {chosen.artifact.path} gives {classes}",
                hint="export the bundle again",
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each class, by its index."""
        return self._bundle.manifest.labels

    @property
    def backend(self) -> str:
        """What runs the model: "openvino", "onnxruntime", "tensorrt" or "tensorrt-rtx"."""
        return self._chosen.backend

    @property
    def precision(self) -> str:
        """Which form of the model it runs: "int8", "fp16" or "fp32"."""
        return self._chosen.precision

    def __enter__(self) -> Classifier:
        self._runner.inputs  # noqa: B018 (raises RunnerClosedError when closed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)

    def close(self) -> None:
        """Release the backend; closing twice is fine."""
        self._runner.__exit__(None, None, None)

    def describe(self) -> dict[str, Any]:
        """JSON-ready: the bundle, the form and backend that were taken, and what was passed over with its reason."""
        why = "the first in order of preference"
        if self._passed_over:
            why = "the first in order of preference that works here"
        return {
            "bundle": str(self._bundle.path),
            "backend": self.backend,
            "precision": self.precision,
            "device": self._chosen.device,
            "artifact": self._chosen.artifact.path,
            "sha256": self._chosen.artifact.sha256,
            "classes": len(self.labels),
            "why": why,
            "passed_over": [candidate.to_json() for candidate in self._passed_over],
        }

    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], top_k: int = 5, *, errors: Literal["raise"] = "raise"
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], top_k: int = 5, *, errors: str
    ) -> list[Prediction | ImageError]: ...

    @overload
    def predict(self, images: Source, top_k: int = 5, *, errors: str = "raise") -> Any: ...

    def predict(self, images: Any, top_k: int = 5, *, errors: str = "raise") -> Any:
        """Classify one image or several.

        Args:
            images: one image: a path, bytes, a binary file object, a PIL image, or a uint8 array (height, width, 3) RGB
                (also greyscale and RGBA, see `vitdeploy.images.decode`). Or several: a list or tuple of these, of any
                sizes, or a uint8 array (count, height, width, 3).
            top_k: how many of the best classes each prediction lists; more than there are classes gives all.
            errors: "raise" stops at the first image that can't be used; "return" puts its ImageError in its place.

        Returns:
            A Prediction for one image, a list of them in order for several.

        Raises:
            ImageError: an image that can't be decoded, or whose size this form does not take.
            InputError: `top_k` under 1 or an unknown `errors`.
            RunnerClosedError: after `close`.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
            raise InputError(f"top_k is {top_k!r}", hint="give a whole number of at least 1")
        if errors not in ("raise", "return"):
            raise InputError(f"errors is {errors!r}", hint='one of "raise", "return"')
        several = _several(images)
        answers: list[Any] = [None] * (len(images) if several else 1)
        show = progress.task("Classifying", len(images), "images") if len(answers) > BATCH else nullcontext()
        with show as step:
            for index, answer in self._answers(images if several else [images], keep=errors == "return", many=several):
                answers[index] = answer if isinstance(answer, ImageError) else self._prediction(answer, int(top_k))
                if step is not None:
                    step.advance()
        return answers if several else answers[0]

    def stream(
        self,
        images: Iterable[Any],
        top_k: int = 5,
        *,
        errors: str = "raise",
        workers: int | None = None,
        batch: int = BATCH,
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
            batch: most images of one call of the model.

        Yields:
            A Prediction for each image, in order. Closing the iterator, or dropping it, ends the threads.

        Raises:
            InputError: an argument of the wrong kind, at once.
            ImageError: an image that can't be used.
            RunnerClosedError: the classifier is closed, or was closed meanwhile.
        """
        from vitdeploy.runtime.stream import stream

        return stream(self, images, top_k, errors=errors, workers=workers, batch=batch)

    def logits(self, images: Any) -> npt.NDArray[np.float32]:
        """Class scores before softmax, float32 (count, classes), in the order of the images; count is 1 for one image.

        Takes and raises what `predict` does.
        """
        several = _several(images)
        scores = np.empty((len(images) if several else 1, len(self.labels)), np.float32)
        for index, row in self._answers(images if several else [images], keep=False, many=several):
            scores[index] = row
        return scores

    def _answers(self, images: Any, *, keep: bool, many: bool) -> Iterator[tuple[int, Any]]:
        """(index, logits (classes,) or the image's error) of every image, in no order."""
        self._runner.inputs  # noqa: B018 (raises RunnerClosedError when closed, also for an empty list)
        waiting: dict[tuple[int, ...], list[tuple[int, npt.NDArray[np.uint8]]]] = {}
        held = 0
        for index in range(len(images)):
            try:
                pixels = decode(images[index])
                self._limits.check(pixels)
            except ImageError as error:
                named = error
                if many and not isinstance(images[index], (str, os.PathLike)):
                    named = ImageError(f"image {index}: {error.message}", hint=error.hint)
                if not keep:
                    raise named from error
                yield index, named
                continue
            group = waiting.setdefault(pixels.shape, [])
            group.append((index, pixels))
            held += pixels.nbytes
            if len(group) == self._limits.batch:
                held -= sum(image.nbytes for _, image in group)
                yield from self._run(waiting.pop(pixels.shape))
            elif held >= HELD_BYTES:
                for full in waiting.values():
                    yield from self._run(full)
                waiting, held = {}, 0
        for rest in waiting.values():
            yield from self._run(rest)

    def _run(self, group: list[tuple[int, npt.NDArray[np.uint8]]]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        # (height, width, 3) -> (batch, height, width, 3); one image alone is not copied
        stacked = group[0][1][np.newaxis] if len(group) == 1 else np.stack([pixels for _, pixels in group])
        stacked = self._limits.padded(stacked)
        logits = self._runner.infer({self._limits.name: stacked})[self._runner.outputs[0].name]
        if not np.isfinite(logits).all():
            raise ModelError(
                f"{self._chosen.name} gives class scores that are not finite",
                hint='take another form: load(..., precision="fp32")',
            )
        return zip((index for index, _ in group), logits[: len(group)], strict=True)

    def _prediction(self, logits: npt.NDArray[np.float32], top_k: int) -> Prediction:
        scores, labels = _softmax(logits), self.labels
        best = np.argsort(-scores, kind="stable")[:top_k]
        top = tuple([Score(labels[i], i, score) for i, score in zip(best.tolist(), scores[best].tolist(), strict=True)])
        return Prediction(top[0].label, top[0].index, top[0].score, top)


class _Limits:
    """What the runner's image input may be: the largest batch, and the sizes it takes."""

    def __init__(self, runner: Runner) -> None:
        spec = runner.inputs[0]
        self.name = spec.name
        batch, *self._sizes = spec.shape[:3]
        ranges: tuple[ShapeRange | None, ...] = runner.ranges.get(spec.name) or (None, None, None)
        batches, self._ranges = ranges[0], ranges[1:3]
        self._least = batch if isinstance(batch, int) else batches.minimum if batches else 1
        most = batch if isinstance(batch, int) else batches.maximum if batches else BATCH
        self.batch = min(most, max(BATCH, self._least))

    def check(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Raise ImageError for an image (height, width, 3) of a size that this form does not take."""
        for size, fixed, allowed in zip(pixels.shape[:2], self._sizes, self._ranges, strict=True):
            outside = allowed is not None and not allowed.minimum <= size <= allowed.maximum
            if outside or (isinstance(fixed, int) and size != fixed):
                raise ImageError(
                    f"an image of {pixels.shape[0]}x{pixels.shape[1]} is not what this form takes: {self}",
                    hint="resize it first, or make the form for more sizes (export and build-engine set them)",
                )

    def padded(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The batch, filled up with its last image where the form takes no batch as small as it."""
        missing = self._least - len(images)
        return images if missing <= 0 else np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])

    def __str__(self) -> str:
        words = [
            str(fixed) if isinstance(fixed, int) else f"{allowed.minimum}..{allowed.maximum}" if allowed else "any"
            for fixed, allowed in zip(self._sizes, self._ranges, strict=True)
        ]
        return f"height {words[0]}, width {words[1]}"


def _several(images: Any) -> bool:
    return isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum())
