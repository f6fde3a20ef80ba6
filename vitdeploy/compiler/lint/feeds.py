"""Images as the input of a graph takes them: pixels, or what an image processor makes of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.compiler.lint.request import ARRAYS, ImageRequest
from vitdeploy.compiler.preprocessing.reference import reference
from vitdeploy.compiler.preprocessing.spec import spec_from_processor
from vitdeploy.core.errors import InputError
from vitdeploy.core.specs import PreprocessSpec
from vitdeploy.data import load_dataset
from vitdeploy.models.checkpoints import load_processor, open_folder

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["feeds_for"]

_DTYPES = {"FLOAT": "float32", "FLOAT16": "float16", "DOUBLE": "float64", "UINT8": "uint8"}


def feeds_for(model: ir.Model, request: ImageRequest) -> Iterator[dict[str, np.ndarray]]:
    """What the graph's one input is given, call by call.

    Raises:
        InputError: the graph has several inputs or none for images, or the images don't fit it.
        DatasetError: there are no such images.
        ModelError: the processor can't be read.
    """
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    if len(inputs) != 1 or inputs[0].shape is None or inputs[0].dtype is None:
        names = ", ".join(str(value.name) for value in inputs)
        raise InputError(f"the graph's inputs are {names}; one for images is needed to measure", hint=_WITHOUT)
    value = inputs[0]
    name, kind = str(value.name), value.dtype.name if value.dtype is not None else ""
    if kind not in _DTYPES:
        raise InputError(f"the input {name} takes {kind.lower()}, not images", hint=_WITHOUT)
    wanted = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    each = islice(_arrays(request, kind, wanted), request.count)
    batch = wanted[0] or 1
    for group in _grouped(each, batch):
        array = np.stack(group).astype(_DTYPES[kind])
        _check(array, wanted, name)
        yield {name: array}


_WITHOUT = "leave --measure out: the other rules need no run"


def _grouped(arrays: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """As many as a graph of a fixed batch takes; the last are left out where they are fewer."""
    found = False
    while len(group := list(islice(arrays, size))) == size:
        found = True
        yield group
    if not found:
        raise InputError(f"the graph takes {size} images a call, and there are fewer", hint="give more images")


def _arrays(request: ImageRequest, kind: str, wanted: tuple[int | None, ...]) -> Iterator[np.ndarray]:
    """Image by image, without the batch axis."""
    if request.images.endswith(ARRAYS):
        yield from _from_file(Path(request.images))
        return
    spec = None
    if kind != "UINT8":
        spec = _spec(request)
    dataset = load_dataset(request.images, request.split, limit=request.count, labelled=False)
    first = len(wanted) == 4 and wanted[1] == 3 and wanted[3] != 3
    for index in range(len(dataset)):
        pixels = dataset.image(index)
        if spec is not None:
            yield reference(spec, pixels)
        else:
            yield pixels.transpose(2, 0, 1) if first else pixels


def _spec(request: ImageRequest) -> PreprocessSpec:
    if request.processor is None:
        raise InputError(
            "the graph takes floats, and how its images are prepared is not in it",
            hint="name the checkpoint it was exported from with --processor, or give --measure a .npy file of pixel"
            " values",
        )
    return spec_from_processor(load_processor(open_folder(request.processor)))


def _from_file(path: Path) -> Iterator[np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        array = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
    except (OSError, ValueError, IndexError) as error:
        raise InputError(
            f"{os.fspath(path)} can't be read as arrays: {error}",
            hint="save the pixel values with numpy.save: (images, channels, height, width)",
        ) from error
    yield from array


def _check(array: np.ndarray, wanted: tuple[int | None, ...], name: str) -> None:
    if array.ndim != len(wanted) or any(
        size not in (None, found) for size, found in zip(wanted, array.shape, strict=True)
    ):
        sizes = " x ".join("any" if size is None else str(size) for size in wanted)
        found = " x ".join(map(str, array.shape))
        raise InputError(
            f"the input {name} takes {sizes}, and an image gives {found}",
            hint="give images of that size, or the processor of the checkpoint that the graph was exported from",
        )
