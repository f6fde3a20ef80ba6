"""Run the INT8 form for CPUs of a plain ViT by kernels of our own; ONNX Runtime computes its preprocessing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitdeploy.backends.base import RunnerBase, check_feeds
from vitdeploy.backends.native.packing import Encoder
from vitdeploy.backends.native.plain_vit import read_plain_vit
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.backends.preprocessing_subgraph import preprocessing_of
from vitdeploy.bundle.graphs import read_hashed, split_weights
from vitdeploy.core.errors import ModelError, require
from vitdeploy.core.specs import PIXEL_VALUES, TensorSpec

__all__ = ["NativeRunner", "check_plain_vit"]

_MANY = 1_000_000
"""Calls of fewer pixels are preprocessed by one thread: ONNX Runtime's others would be on the cores of the kernels'
when those begin. Measured with two: a median that is 0.3 ms shorter, and two thirds of the 95th percentile."""


class NativeRunner(RunnerBase):
    """The graph of a plain ViT in INT8, as `vitdeploy build-engine --int8` makes it for CPUs, in our own kernels.

    Calls of several threads go through them one after the other. A graph that begins at the pixel values is taken too.

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
        # the preprocessing for few pixels and for many, and the kernels
        self._parts: tuple[tuple[OnnxRuntimeRunner, ...], Encoder] | None = None

    def _open(self, stack: ExitStack) -> None:
        model, large = _read(self._path, self._hashes)
        encoder = Encoder(read_plain_vit(model, large), self._threads)
        stack.callback(encoder.close)
        self.instruction_set = encoder.instruction_set
        scores = model.graph.output[0].name
        part, fronts = preprocessing_of(model), []
        self._inputs = (TensorSpec(PIXEL_VALUES, "float32", ("batch", *encoder.image)),)
        if part is not None:
            for tensor in part.graph.initializer:
                if tensor.name in large:
                    tensor.raw_data = bytes(large[tensor.name])
            del model, large  # the file's bytes, before the sessions take memory
            graph = part.SerializeToString()
            for threads in (1, self._threads):
                front = OnnxRuntimeRunner(self._path, threads, graph=graph, spinning=False)
                fronts.append(stack.enter_context(front))
            self._inputs = fronts[0].inputs
        self._outputs = (TensorSpec(scores, "float32", (self._inputs[0].shape[0], encoder.classes)),)
        stack.callback(self._release)
        self._parts, self._scores = (tuple(fronts), encoder), scores

    def _release(self) -> None:
        self._parts = None

    def preprocess(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Raw images as `infer` takes them -> pixel values (batch, channels, height, width)."""
        self._check_open()
        return self._front(check_feeds({self._inputs[0].name: pixels}, self._inputs, {}))[0]

    def infer_checked(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`infer` for feeds that fit."""
        pixels, encoder = self._front(feeds)
        return {self._scores: encoder.run(pixels)}

    def _front(self, feeds: dict[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], Encoder]:
        """Pixel values, and what takes them."""
        parts = self._parts
        if parts is None:  # closed by another thread since it was checked
            raise self._closed()
        fronts, encoder = parts
        (pixels,) = feeds.values()
        if fronts:
            pixels = fronts[pixels.size // 3 >= _MANY].infer_checked(feeds)[PIXEL_VALUES]
        return pixels, encoder


def check_plain_vit(path: str | os.PathLike[str]) -> None:
    """Read a graph that the kernels may compute, without opening them; takes some tenths of a second.

    Raises:
        ModelError: it is not a graph for them; the message names the node.
        DependencyError: onnx is not installed.
    """
    read_plain_vit(*_read(Path(path)))


def _read(path: Path, hashes: Mapping[str, str] | None = None) -> tuple[Any, dict[str, memoryview]]:
    """The `onnx.ModelProto` of a file, and the large tensors that it was parsed without; see `split_weights`."""
    onnx = require("onnx", extra="native")
    if not path.is_file():
        raise ModelError(f"there is no ONNX file at {path}", hint="check the path")
    content = read_hashed(path, path.name, hashes)
    try:
        graph, large = split_weights(content)
        return onnx.load_model_from_string(graph), large
    except Exception as error:  # protobuf's
        raise ModelError(
            f"{path} is not a readable ONNX file: {type(error).__name__}",
            hint="the file may be damaged; export it again",
        ) from error
