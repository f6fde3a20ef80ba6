"""What a bulk run classifies: image files, folders of them, and columns of parquet files, in a fixed order."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.bulk.files import ArrowFiles, Files, LocalFiles, arrow_files, printable, without_secrets
from vitdeploy.bulk.tables import Item, Table
from vitdeploy.core import progress
from vitdeploy.core.addresses import is_address
from vitdeploy.core.errors import DatasetError, require
from vitdeploy.data.folders import kind_words
from vitdeploy.data.images import image_suffixes

__all__ = ["Done", "Images", "find_images", "tables_below"]


@dataclass
class Done:
    """What an earlier run answered: files by name, and of each table how many rows from its start."""

    names: set[str] = field(default_factory=set)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, row: int | None) -> None:
        """Count an image in."""
        if row is None:
            self.names.add(name)
        else:
            self.rows[name] = max(self.rows.get(name, 0), row + 1)


class Images:
    """All images of a run: `files`, the paths in each file system, and then `tables`."""

    def __init__(self, files: Sequence[tuple[Files, list[str]]], tables: Sequence[Table]) -> None:
        self.files, self.tables = files, tables

    @property
    def has_rows(self) -> bool:
        """Whether some images are rows of a table."""
        return bool(self.tables)

    def count(self, done: Done) -> tuple[int, int]:
        """How many images there are, and how many of them are done."""
        rows = sum(table.count for table in self.tables)
        done_rows = sum(min(done.rows.get(table.name, 0), table.count) for table in self.tables)
        done_files = sum(place.name(path) in done.names for place, paths in self.files for path in paths)
        return sum(len(paths) for _, paths in self.files) + rows, done_files + done_rows

    def items(self, done: Done) -> Iterator[Item]:
        """The images that are not done: files first, then each table row by row."""
        for place, paths in self.files:
            for path in paths:
                name = place.name(path)
                if name not in done.names:
                    yield Item(name, None, path)
        for table in self.tables:
            yield from table.items(done.rows.get(table.name, 0))

    def to_json(self) -> list[dict[str, Any]]:
        """What a later run must find the same: of tables their sizes, since rows are counted."""
        return [table.to_json() for table in self.tables]


def find_images(
    paths: Sequence[str], *, image_column: str | None = None, skip: Sequence[str | Path] = (), addresses: bool = False
) -> Images:
    """The images that `paths` name, in order and each once.

    A folder stands for all image files below it, or for its parquet files where it has no image files; hidden files and
    those below `skip` are left out. A file that is named itself is an image whatever its suffix, or a parquet file.
    With `addresses` a path may be one of another file system too: s3://bucket/folder.

    Raises:
        DatasetError: a path that is not there, a folder without images, a damaged parquet file, or one whose image
            column can't be found.
        DependencyError: parquet, or an address, without pyarrow.
    """
    skipped = {os.path.realpath(path) for path in skip}
    left_out = [without_secrets(path).rstrip("/") for path in map(str, skip) if is_address(path)]
    here = LocalFiles(os.getcwd())
    found = _Found()
    for path in map(os.path.expanduser, paths):
        if os.path.isdir(path):
            found.add_folder(here, path, _walk(path, skipped))
        elif is_address(path):
            if not addresses:
                raise DatasetError(
                    f"{printable(path)} is an address, and images are read from files",
                    hint="download it first; --engine ray reads s3://, gs:// and hdfs://",
                )
            _add_address(found, path, left_out)
        elif not os.path.exists(path):
            raise DatasetError(f"there is no {printable(path)}", hint="check the path")
        elif not os.path.isfile(path):
            raise DatasetError(f"{printable(path)} is not a regular file", hint="copy what it gives to a file first")
        else:
            found.add_file(here, path)
    return found.images(image_column)


class _Found:
    """What was found so far, each once."""

    def __init__(self) -> None:
        self._files: list[tuple[Files, dict[str, None]]] = []
        self._tables: dict[str, tuple[Files, str]] = {}

    def add_file(self, place: Files, path: str) -> None:
        if path.lower().endswith(".parquet"):
            self._tables.setdefault(place.name(path), (place, path))
        else:
            self._of(place)[path] = None

    def add_folder(self, place: Files, path: str, below: tuple[list[str], list[str], Counter[str]]) -> None:
        images, parquet, others = below
        name = place.name(path)
        if not images and not parquet:
            raise DatasetError(
                f"{name} holds no images ({sum(others.values())} other files)",
                hint=f"known by their suffix are {' '.join(sorted(image_suffixes()))} and .parquet",
            )
        if others:
            progress.note(f"{name}: left out are {kind_words(others)}, which can't be read.")
        self._of(place).update(dict.fromkeys(images))
        if not images:
            for table in parquet:
                self.add_file(place, table)

    def images(self, column: str | None) -> Images:
        files = [(place, list(paths)) for place, paths in self._files if paths]
        return Images(files, [Table(path, column, place) for place, path in self._tables.values()])

    def _of(self, place: Files) -> dict[str, None]:
        for known, paths in self._files:
            if known == place:
                return paths
        self._files.append((place, {}))
        return self._files[-1][1]


def _add_address(found: _Found, address: str, left_out: list[str]) -> None:
    place, path = arrow_files(address)
    kinds = require("pyarrow.fs", extra="bulk").FileType
    try:
        kind = place.system.get_file_info(path).type
        if kind == kinds.Directory:
            found.add_folder(place, path, _kinds_below(place, path, left_out))
            return
    except OSError as error:
        raise DatasetError(
            f"can't list {place.name(path)}: {error}", hint="check the address, and the credentials for it"
        ) from error
    if kind != kinds.File:
        raise DatasetError(f"there is no {place.name(path)}", hint="check the address, and the credentials for it")
    found.add_file(place, path)


def _kinds_below(place: ArrowFiles, folder: str, left_out: list[str]) -> tuple[list[str], list[str], Counter[str]]:
    """What `_walk` gives, of another file system."""
    images, parquet, others = [], [], Counter[str]()
    for path in place.below(folder):
        hidden = any(part.startswith(".") for part in posixpath.relpath(path, folder).split("/"))
        if hidden or any(place.name(path).startswith(f"{other}/") for other in left_out):
            continue
        suffix = posixpath.splitext(path)[1].lower()
        if suffix in image_suffixes():
            images.append(path)
        elif suffix == ".parquet":
            parquet.append(path)
        else:
            others[suffix] += 1
    return images, parquet, others


def tables_below(paths: Sequence[str], image_column: str | None = None) -> Iterator[str]:
    """The parquet files with images in the folders among `paths`; results in such a folder have no images."""
    for path in filter(os.path.isdir, map(os.path.expanduser, paths)):
        for table in _walk(path, set())[1]:
            with suppress(DatasetError):
                Table(table, image_column, LocalFiles())
                yield table


def _walk(folder: str, skipped: set[str]) -> tuple[list[str], list[str], Counter[str]]:
    """Image files and parquet files below a folder, sorted, and how many others there are of each suffix."""
    images, parquet, others = [], [], Counter[str]()
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) not in skipped
        )
        for name in names:
            path = os.path.join(parent, name)
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or (skipped and os.path.realpath(path) in skipped):
                continue
            if suffix in image_suffixes():  # what is not a regular file becomes a row with an error: it is never opened
                images.append(path)
            elif (regular := os.path.isfile(path)) and suffix == ".parquet":
                parquet.append(path)
            else:
                others[suffix if regular else "no regular file"] += 1
    return sorted(images), sorted(parquet), others
