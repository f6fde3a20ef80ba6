"""The folder that workers of many machines write to: whole parts, in a file system that all of them reach.

    results/
      _job.json               what is being done: a run with other settings does not go on with it
      part-00000000.parquet   a finished block, never changed once it is there
      _done.json              all is done

Readers of parquet folders pass over names that begin with _ or a dot, and take the parts in the order of their names,
which is the order of the images.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vitdeploy.bulk.files import ArrowFiles, arrow_files
from vitdeploy.core.addresses import is_address
from vitdeploy.core.errors import DatasetError, require
from vitdeploy.core.storage import disk_errors, locked, write_atomically

__all__ = ["DONE", "JOB", "Folder", "failures", "finished", "folder_at", "is_ours", "part_name"]

JOB, DONE = "_job.json", "_done.json"
_LOCK = ".lock"
_WHOLE_AT_ONCE = ("s3", "gcs", "abfs")  # what is written there appears when it is closed


class Folder(Protocol):
    """A folder of files that are whole or not there. It can be pickled."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    def names(self) -> list[str]:
        """The files in it; none where it is not there."""

    def parquet(self, name: str) -> Any:
        """What pyarrow opens."""

    def read(self, name: str) -> bytes:
        """The content of a file."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all, and the folder where it is not there."""

    def remove(self, name: str) -> None:
        """Remove a file."""

    def lock(self) -> Any:
        """A context in which no other command writes there, as far as the file system has locks.

        Raises:
            BundleError: another command does.
        """


@dataclass(frozen=True)
class LocalFolder:
    """On a disk of this machine, or one that it shares with the others; `name` is what the user called it."""

    path: Path
    name: str

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.path)) if self.path.is_dir() else []

    def parquet(self, name: str) -> Any:
        return self.path / name

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        write_atomically(self.path / name, content)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def lock(self) -> Any:
        with disk_errors(self.name):
            self.path.mkdir(parents=True, exist_ok=True)
        return locked(self.path / _LOCK)


@dataclass(frozen=True)
class ArrowFolder:
    """In a file system of Arrow's or fsspec's."""

    files: ArrowFiles
    path: str

    @property
    def name(self) -> str:
        return self.files.name(self.path)

    def names(self) -> list[str]:
        fs = require("pyarrow.fs", extra="bulk")
        try:
            found = self.files.system.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        except OSError as error:
            raise DatasetError(
                f"can't list {self.name}: {error}", hint="check the address, and the credentials for it"
            ) from error
        return sorted(info.base_name for info in found if info.type == fs.FileType.File)

    def parquet(self, name: str) -> Any:
        return self.files.system.open_input_file(f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        with self.files.system.open_input_stream(f"{self.path}/{name}", compression=None) as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        system, final = self.files.system, f"{self.path}/{name}"
        if system.type_name in _WHOLE_AT_ONCE:
            with system.open_output_stream(final, compression=None) as file:
                file.write(content)
            return
        system.create_dir(self.path, recursive=True)
        beside = f"{self.path}/.{name}.{uuid.uuid4().hex}"
        with system.open_output_stream(beside, compression=None) as file:
            file.write(content)
        system.move(beside, final)

    def remove(self, name: str) -> None:
        self.files.system.delete_file(f"{self.path}/{name}")

    def lock(self) -> Any:
        return nullcontext()


def folder_at(output: str) -> Folder:
    """The folder that a path or an address names.

    Raises:
        InputError: there is no file system of that address.
    """
    if not is_address(output):
        return LocalFolder(Path(os.path.abspath(os.path.expanduser(output))), output)
    files, path = arrow_files(output)
    return ArrowFolder(files, path.rstrip("/"))


def part_name(number: int) -> str:
    """The file of a block."""
    return f"part-{number:08}.parquet"


def is_ours(name: str) -> bool:
    """Whether a file of that name is one of ours, or what a killed worker was writing."""
    return name in (JOB, DONE, _LOCK) or name.lstrip(".").startswith(("part-", JOB, DONE))


def finished(folder: Folder, counts: Iterable[tuple[int, int]]) -> dict[int, int]:
    """{number: failed images} of the blocks that are there, of all (number, images).

    A file that can't be read or has other rows than its block has images is not counted: it is written again.
    """
    there = set(folder.names())
    wanted = [(number, images) for number, images in counts if part_name(number) in there]
    with ThreadPoolExecutor(32) as pool:
        failures = pool.map(lambda one: _failures(folder, *one), wanted)
        return {number: failed for (number, _), failed in zip(wanted, failures, strict=True) if failed is not None}


def _failures(folder: Folder, number: int, images: int) -> int | None:
    arrow, parquet = require("pyarrow", extra="bulk"), require("pyarrow.parquet", extra="bulk")
    try:
        with parquet.ParquetFile(folder.parquet(part_name(number))) as file:
            if file.metadata.num_rows != images:
                return None
            column = file.read(columns=["error"]).column("error")
            return images - int(column.null_count)
    except (arrow.ArrowException, OSError, KeyError):
        return None


def failures(folder: Folder, numbers: Iterable[int], most: int) -> list[tuple[str, int | None, str]]:
    """Image, row of its table or None, and error of the first failed images in the parts of these blocks."""
    parquet, compute = require("pyarrow.parquet", extra="bulk"), require("pyarrow.compute", extra="bulk")
    found: list[tuple[str, int | None, str]] = []
    for number in numbers:
        with parquet.ParquetFile(folder.parquet(part_name(number))) as file:
            columns = [name for name in ("image", "row", "error") if name in file.schema_arrow.names]
            rows = file.read(columns=columns)
        rows = rows.filter(compute.is_valid(rows.column("error")))
        found += ((row["image"], row.get("row"), row["error"]) for row in rows.to_pylist())
        if len(found) >= most:
            break
    return found[:most]
