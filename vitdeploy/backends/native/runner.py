"""Run the INT8 form for CPUs of a plain ViT by kernels of our own.

ONNX Runtime computes its preprocessing, and what is behind its layers where that is no classifier of the first token.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitdeploy.backends.base import RunnerBase, check_feeds
from vitdeploy.backends.native.packing import Encoder
from vitdeploy.backends.native.plain_vit import read_plain_vit
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.backends.subgraphs import head_of, preprocessing_of
from vitdeploy.bundle.graphs import Pages, external_files, read_pages
from vitdeploy.bundle.onnx_messages import Message, read_model
from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import PIXEL_VALUES, TensorSpec

__all__ = ["NativeRunner", "check_plain_vit"]

_MANY = 1_000_000
"""Calls of fewer pixels are preprocessed by one thread: ONNX Runtime's others would be on the cores of the kernels'
when those begin. Measured with two: a median that is 0.3 ms shorter, and two thirds of the 95th percentile."""


class _Preprocessing:
    """From raw images to pixel values: by one thread for few pixels, and by all for many, once there were many."""

    def __init__(self, path: Path, graph: bytes, threads: int | None, stack: ExitStack) -> None:
        few, many = (OnnxRuntimeRunner(path, each, graph=graph, spinning=False) for each in (1, threads))
        self._few, self._many, self._opening = stack.enter_context(few), many, threading.Lock()
        self._opened = False
        stack.callback(many.close)
        self.inputs = few.inputs

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        (pixels,) = feeds.values()
        runner = self._few if pixels.size // 3 < _MANY else self._for_many()
        return runner.infer_checked(feeds)[PIXEL_VALUES]

    def _for_many(self) -> OnnxRuntimeRunner:
        """A session takes memory, and most runners see no such image."""
        with self._opening:
            if not self._opened:
                self._many.__enter__()
                self._opened = True
        return self._many


class NativeRunner(RunnerBase):
    """The graph of a plain ViT in INT8, as `vitdeploy build-engine --int8` makes it for CPUs, in our own kernels.

    Calls of several threads go through them one after the other. A graph that begins at the pixel values is taken too.
    What is behind the layers is ONNX Runtime's, but for a classifier of the first token.

    Args:
        path: the file.
        threads: CPU threads of one call; None: the physical cores, 16 at most.
        hashes: of the file and of those with its weights, as a bundle's manifest has them; None: it is trusted.

    Once it is open, `instruction_set` names what it computes with.

    Example:
        with NativeRunner("bundles/vit/model.int8-cpu.onnx") as runner:
            logits = runner.infer({"image": pixels})["logits"]
    """

    backend = "native"

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        *,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._hashes = hashes
        self.instruction_set: str | None = None
        self._path = Path(path)
        self._threads = threads
        # the preprocessing, the kernels, and what is behind their layers
        self._parts: tuple[_Preprocessing | None, Encoder, OnnxRuntimeRunner | None] | None = None

    def _open(self, stack: ExitStack) -> None:
        model, pages = _read(self._path, self._hashes)
        form = read_plain_vit(model)
        made, front, head = model.graph.output[0].name, None, None
        graphs = [preprocessing_of(model)]
        if form.classifier is None:
            graphs.append(head_of(model, form.end, (form.read, len(form.kernel))))
        del model
        encoder = Encoder(form, self._threads, release=pages.release)
        del form, pages  # the file's bytes, before the sessions take memory
        stack.callback(encoder.close)
        self.instruction_set = encoder.instruction_set
        self._inputs = (TensorSpec(PIXEL_VALUES, "float32", ("batch", *encoder.image)),)
        if graphs[0] is not None:
            front = _Preprocessing(self._path, graphs[0], self._threads, stack)
            self._inputs = front.inputs
        shape: tuple[int | str, ...] = (self._inputs[0].shape[0], *encoder.made)
        if len(graphs) > 1:
            # with one token the product is too small for several threads
            threads = 1 if encoder.made[0] == 1 else self._threads
            head = stack.enter_context(OnnxRuntimeRunner(self._path, threads, graph=graphs[1], spinning=False))
            shape = (shape[0], *head.outputs[0].shape[1:])
        self._outputs = (TensorSpec(made, "float32", shape),)
        stack.callback(self._release)
        self._parts, self._made = (front, encoder, head), made

    def _release(self) -> None:
        self._parts = None

    def preprocess(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Raw images as `infer` takes them -> pixel values (batch, channels, height, width)."""
        self._check_open()
        front, _, _ = self._open_parts()
        feeds = check_feeds({self._inputs[0].name: pixels}, self._inputs, {})
        return front.run(feeds) if front else pixels

    def infer_checked(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`infer` for feeds that fit."""
        front, encoder, head = self._open_parts()
        made = encoder.run(front.run(feeds) if front else feeds[PIXEL_VALUES])
        return {self._made: made} if head is None else head.infer_checked({head.inputs[0].name: made})

    def _open_parts(self) -> tuple[_Preprocessing | None, Encoder, OnnxRuntimeRunner | None]:
        parts = self._parts
        if parts is None:  # closed by another thread since it was checked
            raise self._closed()
        return parts


def check_plain_vit(path: str | os.PathLike[str]) -> None:
    """Read a graph that the kernels may compute, without opening them; takes some tenths of a second.

    Raises:
        ModelError: it is not a graph for them; the message names the node.
    """
    read_plain_vit(_read(Path(path))[0])


def _read(path: Path, hashes: Mapping[str, str] | None = None) -> tuple[Message, Pages]:
    """The model of a file, and the pages that it is read from."""
    if not path.is_file():
        raise ModelError(f"there is no ONNX file at {path}", hint="check the path")
    pages = read_pages(path, hashes)
    try:
        outside = external_files(pages.content)
        model = read_model(pages.content)
    except ValueError as error:
        raise ModelError(
            f"{path} is not a readable ONNX file: {error}",
            hint="the file may be damaged; export it again",
        ) from error
    if outside:
        raise ModelError(
            f"the kernels read graphs that hold their weights, and {path} keeps some in other files",
            hint="backend='onnxruntime' and 'openvino' run every form",
        )
    return model, pages
