"""Where the files of a bulk run lie: on this machine's disks, or in a file system of Arrow's or fsspec's (S3, HDFS).

A path is what its file system calls a file; `name` is what rows and messages call it.
"""

from __future__ import annotations

import os
import posixpath
import time
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from vitdeploy.core.addresses import is_address
from vitdeploy.core.errors import DatasetError, ImageError, InputError, VitdeployError, require
from vitdeploy.core.storage import open_regular
from vitdeploy.data.images import unreadable
from vitdeploy.data.outside import path_in_table

__all__ = ["LARGEST_BYTES", "ArrowFiles", "Files", "LocalFiles", "arrow_files", "printable", "without_secrets"]

LARGEST_BYTES = 1 << 29
"""A file of more is not read as one image."""

_PAUSES_S = (1.0, 4.0, 16.0)  # before a file system that failed is asked again


class Files(Protocol):
    """One file system. It can be pickled: other machines read by it what was found here."""

    def name(self, path: str) -> str:
        """What a row calls the file."""

    def size(self, path: str) -> int:
        """Bytes of a file."""

    def parquet(self, path: str) -> Any:
        """What `pyarrow.parquet.ParquetFile` opens.

        Raises:
            OSError: there is no such file, or it is no regular one.
        """

    def read(self, path: str) -> bytes:
        """An encoded image.

        Raises:
            ImageError: it can't be read, or is larger than `LARGEST_BYTES`.
            DatasetError: the file system does not answer.
        """

    def place(self, table: str, path: str, *, allowed: bool) -> str:
        """The path of a file that the table at the path `table` names.

        Raises:
            ImageError: it leaves the table's folder, and that is not `allowed`.
        """


@dataclass(frozen=True)
class LocalFiles:
    """Files of this machine; `folder` is where relative paths start, "" the current one."""

    folder: str = ""

    def name(self, path: str) -> str:
        return printable(path)

    def size(self, path: str) -> int:
        return os.stat(self._full(path)).st_size

    def parquet(self, path: str) -> Any:
        open_regular(self._full(path)).close()
        return self._full(path)

    def read(self, path: str) -> bytes:
        try:
            with open_regular(self._full(path)) as file:
                return _bounded(file.read(LARGEST_BYTES + 1), path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise unreadable(path, error) from error

    def place(self, table: str, path: str, *, allowed: bool) -> str:
        return path_in_table(os.path.dirname(table), path, allowed=allowed)

    def _full(self, path: str) -> str:
        return os.path.join(self.folder, path)


@dataclass(frozen=True)
class ArrowFiles:
    """Files of a `pyarrow.fs.FileSystem`.

    Args:
        system: the file system.
        prefix: what stands before a path in its address: "s3://", "hdfs://host:8020".
    """

    system: Any
    prefix: str

    def name(self, path: str) -> str:
        return printable(self.prefix + path)

    def size(self, path: str) -> int:
        return int(self.system.get_file_info(path).size or 0)

    def parquet(self, path: str) -> Any:
        return self.system.open_input_file(path)

    def read(self, path: str) -> bytes:
        for pause in (*_PAUSES_S, None):
            try:
                with self.system.open_input_stream(path, compression=None) as file:
                    return _bounded(file.read(LARGEST_BYTES + 1), self.name(path))
            except (FileNotFoundError, PermissionError, IsADirectoryError, ValueError) as error:
                raise unreadable(self.name(path), error) from error
            except OSError as error:
                if pause is None:
                    raise DatasetError(
                        f"{self.name(path)} can't be read now: {error}",
                        hint="run the command again when the file system answers; what was finished is kept",
                    ) from error
                time.sleep(pause)
        raise AssertionError

    def place(self, table: str, path: str, *, allowed: bool) -> str:
        if is_address(path):
            if not path.startswith(self.prefix):
                raise ImageError(
                    f"the path {path!r} is of another file system than its table", hint="copy the images beside it"
                )
            folder = posixpath.dirname(table)
            path = posixpath.relpath("/" + path.removeprefix(self.prefix).lstrip("/"), "/" + folder.lstrip("/"))
        return path_in_table(posixpath.dirname(table), path, allowed=allowed)

    def below(self, folder: str) -> list[str]:
        """The paths of all files below a folder, sorted."""
        fs = require("pyarrow.fs", extra="bulk")
        found = self.system.get_file_info(fs.FileSelector(folder, recursive=True))
        return sorted(info.path for info in found if info.type == fs.FileType.File)


def arrow_files(address: str) -> tuple[ArrowFiles, str]:
    """The file system that an address names, and the path in it. Nothing is read.

    Arrow's own are taken for s3, gs, hdfs and abfs, which read the usual variables for credentials; the others are
    fsspec's.

    Raises:
        InputError: there is no file system of that scheme, or its address is wrong.
        DependencyError: pyarrow is not installed.
    """
    fs = require("pyarrow.fs", extra="bulk")
    arrow = require("pyarrow", extra="bulk")
    shown = without_secrets(address)
    try:
        system, path = fs.FileSystem.from_uri(address)
    except (arrow.ArrowException, ValueError, OSError) as first:
        try:
            system, path = _by_fsspec(fs, address)
        except VitdeployError:
            raise
        except Exception as error:  # each of fsspec's file systems has errors of its own
            raise InputError(f"can't open {shown}: {first}", hint=f"check the address; fsspec says: {error}") from error
    return ArrowFiles(system, _prefix(address, path)), path


def _by_fsspec(fs: Any, address: str) -> tuple[Any, str]:
    core = require("fsspec.core", extra="ray")
    system, path = core.url_to_fs(address)
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def _prefix(address: str, path: str) -> str:
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://" if not host or path.lstrip("/").startswith(host) else f"{parts.scheme}://{host}"


def without_secrets(address: str) -> str:
    """A path as it is; an address without the keys and options that may stand in it."""
    if not is_address(address):
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def printable(path: str) -> str:
    """A path as text: bytes that are no UTF-8 are written as escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


def _bounded(content: bytes, name: str) -> bytes:
    if len(content) > LARGEST_BYTES:
        raise ImageError(f"{name} is larger than {LARGEST_BYTES >> 20} MiB", hint="make the image smaller first")
    return content
