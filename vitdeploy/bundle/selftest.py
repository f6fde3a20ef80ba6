"""selftest.npz: small images, what the model answers to them, and how far from that each form may be.

A zip of NumPy arrays, not compressed, so that any device can read it:

    about            uint8: JSON with schema_version, reference (what computed the logits) and bounds: by the path of a
                     graph, one number an image
    image_000 ...    uint8 (height, width, 3), RGB
    logits           float32 (images, classes) of the images as they are
    logits_HxW       the same of the images enlarged to H x W by `enlarged`, for forms that take no other size

A bound is the largest difference of any logit that a form may have on that image: an image that INT8 finds hard says
nothing of the others. Engines have the bounds of the graph they are built from.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from vitdeploy.bundle.opening import Bundle
from vitdeploy.bundle.records import Artifact
from vitdeploy.core.decoding import decode, schema_version
from vitdeploy.core.errors import BundleError, InputError
from vitdeploy.core.precisions import FORMS
from vitdeploy.core.storage import open_regular, parse_json
from vitdeploy.core.text import quoted

__all__ = ["FILE", "Selftest", "enlarged"]

FILE = "selftest.npz"
SCHEMA_VERSION = 1
_MOST_BYTES = 256 << 20
_LOGITS = re.compile(r"logits(?:_(\d{1,6})x(\d{1,6}))?")
_Size: TypeAlias = "tuple[int, int] | None"


@dataclass(frozen=True)
class _About:
    reference: str
    bounds: dict[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Selftest:
    """Questions with their answers.

    `images` are uint8 (height, width, 3). `logits` has float32 (images, classes) for each size that they are enlarged
    to, (height, width), or None for the images as they are. `bounds` has, by the path of a graph, the largest
    |difference| of a logit that it may have on each image. `reference` says what computed the logits.
    """

    images: tuple[npt.NDArray[np.uint8], ...]
    logits: Mapping[_Size, npt.NDArray[np.float32]]
    bounds: Mapping[str, npt.NDArray[np.float32]]
    reference: str

    @classmethod
    def of(cls, bundle: Bundle) -> Selftest:
        """The self-test of a bundle.

        Raises:
            InputError: it has none.
            BundleError: it is damaged, or of another model than the one in the bundle.
        """
        artifact = bundle.find(kind="selftest")
        if artifact is None:
            raise InputError(
                f"{bundle.path} has no {FILE}: an earlier version made it",
                hint=f"vitdeploy build-engine {quoted(bundle.path)} --fp32 --target onnx adds one, with what its"
                " FP32 graph answers; a new export has PyTorch's own answers",
            )
        if not cls.is_current(bundle):
            raise BundleError(
                f"{bundle.path / artifact.path} was made for another model.onnx than the one here",
                hint=f"vitdeploy build-engine {quoted(bundle.path)} --fp32 --target onnx makes it anew",
            )
        path = bundle.file(artifact)
        try:
            return cls.read(path)
        except (OSError, ValueError, BadZipFile, NotImplementedError, MemoryError) as error:
            raise BundleError(f"{path} is damaged: {error}", hint="export the bundle again") from error

    @staticmethod
    def is_current(bundle: Bundle) -> bool:
        """Whether the bundle has one that was made for its model.onnx."""
        artifact, graph = bundle.find(kind="selftest"), bundle.find(kind="onnx", precision="fp32")
        return artifact is not None and (graph is None or artifact.built_from == graph.sha256)

    @classmethod
    def read(cls, path: Path) -> Selftest:
        """Read the file, from whomever it comes.

        Raises:
            OSError: it can't be read.
            ValueError, BadZipFile: it is damaged.
        """
        arrays: dict[str, npt.NDArray[Any]] = {}
        with open_regular(path) as file, ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise ValueError(f"it holds more than {_MOST_BYTES >> 20} MiB")
            for entry in archive.infolist():
                arrays[entry.filename.removesuffix(".npy")] = _array(archive.read(entry))
        if "about" not in arrays or arrays["about"].dtype != np.uint8:
            raise ValueError("it has no 'about'")
        data = parse_json(arrays["about"].tobytes())
        if schema_version(data) > SCHEMA_VERSION:
            raise ValueError("a newer vitdeploy wrote it")
        about: _About = decode(_About, data)
        images = tuple(arrays[name] for name in sorted(arrays) if name.startswith("image_"))
        if not images or any(image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size for image in images):
            raise ValueError("its images are not uint8 (height, width, 3)")
        found: dict[_Size, npt.NDArray[np.float32]] = {}
        for name, values in arrays.items():
            match = _LOGITS.fullmatch(name)
            if match is None:
                continue
            if values.dtype != np.float32 or values.ndim != 2 or len(values) != len(images) or not values.size:
                raise ValueError(f"{name} is not float32 (images, classes)")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} is not finite")
            found[None if match[1] is None else (int(match[1]), int(match[2]))] = values
        bounds = {path: np.array(values, np.float32) for path, values in about.bounds.items()}
        if not found or not all(len(values) == len(images) and (values > 0).all() for values in bounds.values()):
            raise ValueError("it has no logits, or its bounds are not numbers")
        return cls(images, found, bounds, about.reference)

    def write(self, path: Path) -> None:
        """Write it; the same content gives the same bytes."""
        bounds = {path: [float(f"{bound:.4g}") for bound in values] for path, values in self.bounds.items()}
        about = {"schema_version": SCHEMA_VERSION, "reference": self.reference, "bounds": bounds}
        arrays: dict[str, npt.NDArray[Any]] = {
            "about": np.frombuffer(json.dumps(about, indent=1, sort_keys=True).encode(), np.uint8)
        }
        for size, logits in self.logits.items():
            arrays["logits" if size is None else f"logits_{size[0]}x{size[1]}"] = logits
        arrays |= {f"image_{index:03}": image for index, image in enumerate(self.images)}
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def shape(self, place: int, size: _Size) -> tuple[int, ...]:
        """The shape of an image that `logits[size]` is of."""
        return self.images[place].shape if size is None else (*size, 3)

    def image(self, place: int, size: _Size) -> npt.NDArray[np.uint8]:
        """An image that `logits[size]` is of."""
        return self.images[place] if size is None else enlarged(self.images[place], size)

    def spread(self, size: _Size) -> float:
        """The range of the logits: the scale on which classes are told apart."""
        return float(np.ptp(self.logits[size])) or 1.0

    def bounds_of(self, artifact: Artifact) -> npt.NDArray[np.float32] | None:
        """The bounds of a graph, or of an engine by the graph it is built from; None where they are not known."""
        if artifact.kind == "onnx":
            return self.bounds.get(artifact.path)
        precision = (spec for spec in FORMS.values() if spec.precision == artifact.precision)
        return next((self.bounds.get(spec.file) for spec in precision if spec.engine_place is not None), None)

    def with_bounds(self, path: str, bounds: npt.NDArray[np.float32]) -> Selftest:
        return replace(self, bounds={**self.bounds, path: bounds})

    def with_logits(self, size: _Size, logits: npt.NDArray[np.float32]) -> Selftest:
        return replace(self, logits={**self.logits, size: logits})


def enlarged(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """An image (height, width, 3) in another size: row i is row i * height // size[0], columns likewise."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, image.shape, strict=False))
    return np.ascontiguousarray(image[rows][:, columns])


def _array(content: bytes) -> npt.NDArray[Any]:
    """An array of a .npy file's content, which is not trusted."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):  # type: ignore[no-untyped-call]
        raise ValueError("an array in it is of another version of NumPy's format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)  # type: ignore[no-untyped-call]
    if fortran or dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError("an array in it does not hold numbers")
    return np.frombuffer(content, dtype, math.prod(shape), stream.tell()).reshape(shape)
