"""ONNX files: what is hashed is what is loaded, and weights outside the file are hashed with it.

A backend is handed the opened file that was hashed, by a path of /proc that leads to it whatever its name leads to by
now: bytes would be held twice over while it reads them. Should something write to the file meanwhile, or there be no
such paths, it is handed the file's bytes, read once.

An ONNX file may name other files that hold its tensors (`TensorProto.external_data`), by any path. They are found here
without the package onnx, which a device need not have, by walking the protobuf wire format along the fields of
onnx.proto that lead to tensors.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitdeploy.bundle.records import inside
from vitdeploy.bundle.wire import LENGTH, fields
from vitdeploy.core.errors import BundleError, ModelError
from vitdeploy.core.machine import saturates
from vitdeploy.core.storage import hashing_buffer, open_regular

__all__ = [
    "GraphFile",
    "Pages",
    "exact_bytes",
    "external_files",
    "load_graph",
    "named_files",
    "read_graph",
    "read_hashed",
    "read_pages",
    "session_of",
]

if TYPE_CHECKING:
    import numpy.typing as npt

_T = TypeVar("_T")
_KEY = b"location"  # without it no tensor can lie outside
_PATHS = {  # message: {field: message}
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_DEEPEST = 100


@dataclass(frozen=True)
class GraphFile:
    """What a backend loads of an ONNX file: `source`, a path that leads to the opened file or its bytes, and the
    content of the files that it names, by the names it has for them."""

    source: str | bytes
    weights: dict[str, bytes]


def load_graph(path: Path, hashes: Mapping[str, str] | None, load: Callable[[GraphFile], _T]) -> _T:
    """What `load` makes of an ONNX file; see `read_graph` for arguments and errors.

    `load` is called a second time, with bytes, if the file was written to while the first call read it.
    """
    with _opened(path) as file:
        place, before = f"/proc/self/fd/{file.fileno()}", _stamp(file)
        if os.path.exists(place):
            digest, names = _scanned(file)
            _check_hash(path, path.name, hashes, lambda: digest)
            if not names:
                try:
                    made = load(GraphFile(place, {}))
                except Exception:
                    if _stamp(file) == before:
                        raise
                else:
                    if _stamp(file) == before:
                        return made
        return load(_read_graph(file, path, hashes))


def exact_bytes(options: Any) -> None:
    """Have an ONNX Runtime session with these `SessionOptions` compute products of bytes exactly on this processor.

    The fastest ones of x86 without VNNI add pairs of them in 16 bits, which saturate. With VNNI they are exact as they
    are, and the entry that says so would cost an INT8 ViT-B almost twice its time.
    """
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")


def session_of(onnxruntime: Any, source: str | Path | bytes, options: Any, providers: list[Any]) -> Any:
    """An ONNX Runtime session, of FP8 too.

    ONNX Runtime before 1.32 takes products of FP8 for those of bytes, finds that it has none for that type, and refuses
    the graph. Left as it is written, each node computes what it says.
    """
    try:
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:
        if "float8" not in str(error):
            raise
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return onnxruntime.InferenceSession(source, options, providers=providers)


def read_graph(path: Path, hashes: Mapping[str, str] | None = None) -> GraphFile:
    """The bytes of an ONNX file and of its weights, read once.

    Args:
        path: the file.
        hashes: {name: SHA-256} of this file and of those beside it that it may name, as the manifest has them; None for
            a file outside a bundle, which may name whatever lies in its folder or below.

    Raises:
        ModelError: a file can't be read, or names one that leaves its folder.
        BundleError: the content is not what the manifest describes, or it names a file that the manifest has not.
    """
    with _opened(path) as file:
        return _read_graph(file, path, hashes)


def _read_graph(file: BufferedReader, path: Path, hashes: Mapping[str, str] | None) -> GraphFile:
    graph = _content(file, path, path.name, hashes)
    try:
        names = external_files(graph)
        for name in names:
            inside(name)
    except ValueError as error:
        raise ModelError(f"{path} can't be loaded: {error}", hint="the file may be damaged; export it again") from error
    return GraphFile(graph, {name: read_hashed(path.parent / name, name, hashes) for name in sorted(names)})


def read_hashed(path: Path, name: str, hashes: Mapping[str, str] | None) -> bytes:
    """The file `path`, which `hashes` has by `name`; see `read_graph`."""
    if hashes is not None and name not in hashes:
        raise BundleError(
            f"the graph in {path.parent} keeps weights in {name}, which its manifest has not",
            hint="export the model again; a file without a hash is not loaded",
        )
    with _opened(path) as file:
        return _content(file, path, name, hashes)


class Pages:
    """A file's bytes in pages of memory that are nothing else's, so that they can be given back one after the other."""

    def __init__(self, size: int) -> None:
        self.content = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def release(self, part: npt.NDArray[Any]) -> None:
        """Give back the pages that lie in an array over `content`, which is zeros then; one elsewhere is left alone."""
        import numpy as np

        begin = part.ctypes.data - np.frombuffer(self.content, np.uint8).ctypes.data
        end = begin + part.nbytes
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if begin >= 0 and end <= len(self.content) and first < last and hasattr(mmap, "MADV_DONTNEED"):
            self.content.madvise(mmap.MADV_DONTNEED, first, last - first)


def read_pages(path: Path, hashes: Mapping[str, str] | None = None) -> Pages:
    """The file `path`, read once as `read_graph` reads it; it may not name others."""
    with _opened(path) as file:
        try:
            pages = Pages(os.fstat(file.fileno()).st_size)
            with memoryview(pages.content) as view:
                file.readinto(view)
        except OSError as error:
            raise ModelError(f"can't read {path}: {error.strerror}", hint="check its disk") from error
    _check_hash(path, path.name, hashes, lambda: hashlib.sha256(pages.content).hexdigest())
    return pages


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        file = open_regular(path)
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror}", hint="check the path") from error
    with file:
        yield file


def _content(file: BufferedReader, path: Path, name: str, hashes: Mapping[str, str] | None) -> bytes:
    file.seek(0)
    try:
        content = file.read()
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror}", hint="check its disk") from error
    _check_hash(path, name, hashes, lambda: hashlib.sha256(content).hexdigest())
    return content


def _check_hash(path: Path, name: str, hashes: Mapping[str, str] | None, digest: Callable[[], str]) -> None:
    if hashes is not None and digest() != hashes[name]:
        raise BundleError(
            f"{path} is not the file that the manifest describes (its SHA-256 differs)",
            hint="copy the whole folder again, or rebuild the file; do not load a file that was tampered with",
        )


def _stamp(file: BufferedReader) -> tuple[int, int, int]:
    """What changes when a file is written to."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _scanned(file: BufferedReader) -> tuple[str, bool]:
    """The SHA-256 of a file, and whether it may name others, read in pieces."""
    digest, found, tail, size = hashlib.sha256(), False, b"", len(_KEY)
    with hashing_buffer() as buffer, memoryview(buffer) as view:
        while count := file.readinto(view):
            digest.update(view[:count])
            found = found or buffer.find(_KEY, 0, count) >= 0 or _KEY in tail + buffer[:size]
            tail = buffer[max(0, count - size) : count]
    return digest.hexdigest(), found


def named_files(path: Path) -> frozenset[str]:
    """`external_files` of a file, which is read whole only where it may name some.

    Raises:
        OSError, ValueError: it can't be read, or is not a protobuf message.
    """
    with open_regular(path) as file:
        if not _scanned(file)[1]:
            return frozenset()
        file.seek(0)
        return external_files(file.read())


def external_files(model: bytes | mmap.mmap) -> frozenset[str]:
    """The names of the files in which a serialised ModelProto keeps tensors.

    Raises:
        ValueError: it is not a protobuf message, or a name is not text.
    """
    if model.find(_KEY) < 0:
        return frozenset()
    found = set[str]()
    waiting = [("Model", 0, len(model), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
        entry: dict[int, bytes] = {}
        for field, wire, _, at, stop in fields(model, start, end):
            if wire != LENGTH:
                continue
            if kind == "Entry":
                entry[field] = model[at:stop]
            elif field in _PATHS[kind]:
                waiting.append((_PATHS[kind][field], at, stop, depth + 1))
        if entry.get(1) == _KEY:
            found.add(entry.get(2, b"").decode())
    return frozenset(found)
