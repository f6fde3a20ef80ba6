"""A dataset through a graph: batches of images of one size, and the answers of an ONNX Runtime session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vitdeploy.bundle.graphs import exact_bytes, session_of
from vitdeploy.core.errors import InputError, require
from vitdeploy.core.machine import HELD_BYTES
from vitdeploy.core.specs import answer_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "BATCH",
    "Images",
    "Pixels",
    "answer_name",
    "answers_of",
    "check_size",
    "image_batches",
    "open_session",
    "values_of",
]

BATCH = 16
_WAITING_BATCHES = 16  # images of many sizes wait for company in at most this many batches' worth of memory
Pixels = npt.NDArray[np.uint8]


class Images(Protocol):
    """The part of a dataset that is used here."""

    @property
    def label_ids(self) -> npt.NDArray[np.int64]:
        """One class index per image."""

    def __len__(self) -> int: ...

    def image(self, index: int, /) -> Pixels:
        """(height, width, 3) RGB."""


def open_session(graph: Path | bytes | ir.Model, *, fuse: bool = True, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU for looking at a graph, silent but for errors.

    Products of bytes are exact in it on every processor: what is decided about a graph does not depend on the machine.

    Args:
        graph: a file, what a file holds, or a model in memory.
        fuse: let ONNX Runtime join nodes over more than one operator's arithmetic; without, each node computes what
            it says.
        threads: of one run; 0: ONNX Runtime's choice.
    """
    onnxruntime = require("onnxruntime", extra="cpu")
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    exact_bytes(options)
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if not isinstance(graph, Path | bytes):
        import onnx_ir as ir

        graph = ir.to_proto(graph).SerializeToString()
    return session_of(onnxruntime, graph, options, ["CPUExecutionProvider"])


def check_size(session: Any, image: np.ndarray) -> None:
    """Refuse an image (height, width, 3) that a graph of one size, in an ONNX Runtime session, can't take.

    Raises:
        InputError: the image has another size.
    """
    wanted = tuple(session.get_inputs()[0].shape[1:3])
    if wanted != image.shape[:2] and all(isinstance(edge, int) for edge in wanted):
        raise InputError(
            f"an image is {image.shape[0]}x{image.shape[1]}; the graph was exported for {wanted[0]}x{wanted[1]} only",
            hint="take images of that size, or export without --input-size",
        )


def image_batches(images: Images, batch_size: int = BATCH) -> Iterator[tuple[list[int], Pixels]]:
    """All images as (their indices, pixels (batch, height, width, 3)), images of one size together.

    As many are held as make 16 batches, or `HELD_BYTES` of them; a batch has fewer images where they are large.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, Pixels]]] = {}

    def flush(shape: tuple[int, ...]) -> tuple[list[int], Pixels]:
        group = waiting.pop(shape)
        return [index for index, _ in group], np.stack([pixels for _, pixels in group])

    for index in range(len(images)):
        pixels = images.image(index)
        waiting.setdefault(pixels.shape, []).append((index, pixels))
        group = waiting[pixels.shape]
        if len(group) == batch_size or len(group) * pixels.nbytes > HELD_BYTES:
            yield flush(pixels.shape)
            continue
        sizes = {shape: len(group) * group[0][1].nbytes for shape, group in waiting.items()}
        if sum(sizes.values()) > HELD_BYTES:
            yield flush(max(sizes, key=sizes.__getitem__))
        elif sum(map(len, waiting.values())) > _WAITING_BATCHES * batch_size:
            yield flush(max(waiting, key=lambda shape: len(waiting[shape])))
    while waiting:
        yield flush(next(iter(waiting)))


def answers_of(session: Any, images: Images, step: Any = None) -> np.ndarray:
    """Answers (count, n), logits or vectors, of an ONNX Runtime session whose input is `image`."""
    return values_of(session, answer_name(session), images, step).astype(np.float32)


def answer_name(session: Any) -> str:
    """The output of an ONNX Runtime session that holds its answer."""
    return answer_of([output.name for output in session.get_outputs()])


def values_of(session: Any, name: str, images: Images, step: Any = None) -> np.ndarray:
    """An output of such a session for all images, in their order."""
    found: np.ndarray | None = None
    for indices, pixels in image_batches(images):
        check_size(session, pixels[0])
        values = session.run([name], {"image": pixels})[0]
        if found is None:
            found = np.empty((len(images), *values.shape[1:]), values.dtype)
        found[indices] = values
        if step is not None:
            step.advance(len(indices))
    assert found is not None, "there is an image"
    return found
