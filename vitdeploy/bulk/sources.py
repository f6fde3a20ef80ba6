"""What a bulk run classifies: image files, folders of them, and columns of parquet files, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy import progress
from vitdeploy.datasets.folders import IMAGE_SUFFIXES
from vitdeploy.errors import DatasetError, ImageError, require

__all__ = ["Done", "Images", "Item", "find_images", "printable"]

_SUFFIXES = IMAGE_SUFFIXES | {".avif", ".ico", ".jfif", ".jp2"}
_COLUMN_NAMES = ("image", "img", "picture", "photo", "png", "jpg", "jpeg", "webp", "bytes")
_ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class Item:
    """One image: the path of its file, or of its table and the row there; `content` is a path or encoded bytes.

    A row without an image has an ImageError as its content.
    """

    name: str
    row: int | None
    content: str | bytes | ImageError


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
    """All images of a run."""

    def __init__(self, files: list[str], tables: list[_Table]) -> None:
        self._files, self._tables = files, tables

    @property
    def has_rows(self) -> bool:
        """Whether some images are rows of a table."""
        return bool(self._tables)

    def count(self, done: Done) -> tuple[int, int]:
        """How many images there are, and how many of them are done."""
        rows = sum(table.count for table in self._tables)
        done_rows = sum(min(done.rows.get(table.name, 0), table.count) for table in self._tables)
        return len(self._files) + rows, sum(name in done.names for name in self._files) + done_rows

    def items(self, done: Done) -> Iterator[Item]:
        """The images that are not done: files first, then each table row by row."""
        for path in self._files:
            name = printable(path)
            if name not in done.names:
                yield Item(name, None, path)
        for table in self._tables:
            yield from table.items(done.rows.get(table.name, 0))

    def to_json(self) -> list[dict[str, Any]]:
        """What a later run must find the same: of tables their sizes, since rows are counted."""
        return [table.to_json() for table in self._tables]


def find_images(paths: Sequence[str], *, image_column: str | None = None, skip: Sequence[Path] = ()) -> Images:
    """The images that `paths` name, in order and each once.

    A folder stands for all image files below it, or for its parquet files where it has no image files; hidden files and
    those below `skip` are left out. A file that is named itself is an image whatever its suffix, or a parquet file.

    Raises:
        DatasetError: a path that is not there, a folder without images, a damaged parquet file, or one whose image
            column can't be found.
        DependencyError: parquet without pyarrow.
    """
    skipped = {path.resolve() for path in skip}
    files: dict[str, None] = {}
    tables: dict[str, None] = {}
    for path in map(os.path.expanduser, paths):
        if os.path.isdir(path):
            images, parquet, others = _walk(path, skipped)
            if not images and not parquet:
                raise DatasetError(
                    f"{printable(path)} holds no images ({others} other files)",
                    hint=f"known by their suffix are {' '.join(sorted(_SUFFIXES))} and .parquet",
                )
            if others:
                progress.note(f"{printable(path)}: {others} files that are no images by their suffix are left out.")
            (files if images else tables).update(dict.fromkeys(images or parquet))
        elif not os.path.exists(path):
            raise DatasetError(f"there is no {printable(path)}", hint="check the path")
        elif path.lower().endswith(".parquet"):
            tables[path] = None
        else:
            files[path] = None
    return Images(list(files), [_Table(path, image_column) for path in tables])


def printable(path: str) -> str:
    """A path as text: bytes that are no UTF-8 are written as escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


def _walk(folder: str, skipped: set[Path]) -> tuple[list[str], list[str], int]:
    """Image files and parquet files below a folder, sorted, and how many others there are."""
    images, parquet, others = [], [], 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(parent, name).resolve() not in skipped
        )
        for name in names:
            path = os.path.join(parent, name)
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or (skipped and Path(path).resolve() in skipped):
                continue
            if suffix in _SUFFIXES:
                images.append(path)
            elif suffix == ".parquet":
                parquet.append(path)
            else:
                others += 1
    return sorted(images), sorted(parquet), others


class _Table:
    """The images in one column of a parquet file: bytes, or structs of bytes and path as Hugging Face writes them."""

    def __init__(self, path: str, column: str | None) -> None:
        arrow = require("pyarrow", extra="bulk")
        parquet = require("pyarrow.parquet", extra="bulk")
        self.name = printable(path)
        self._path = path
        try:
            with parquet.ParquetFile(path) as file:
                self.count = file.metadata.num_rows
                schema = file.schema_arrow
        except (arrow.ArrowException, OSError) as error:
            raise DatasetError(
                f"{self.name} is damaged or no parquet file: {error}", hint="copy or download the file again"
            ) from error
        self._column = _image_column(schema, self.name, column)

    def to_json(self) -> dict[str, Any]:
        stat = os.stat(self._path)
        return {"table": self.name, "column": self._column, "rows": self.count, "size_bytes": stat.st_size}

    def items(self, start: int) -> Iterator[Item]:
        """The rows from `start` on; row groups before it are not read."""
        arrow = require("pyarrow", extra="bulk")
        parquet = require("pyarrow.parquet", extra="bulk")
        row = 0
        try:
            with parquet.ParquetFile(self._path) as file:
                for group in range(file.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    if row + size <= start:
                        row += size
                        continue
                    for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[self._column]):
                        for value in batch.column(0).to_pylist():
                            if row >= start:
                                yield Item(self.name, row, self._content(value, row))
                            row += 1
        except (arrow.ArrowException, OSError) as error:
            raise DatasetError(
                f"{self.name} can't be read from row {row} on: {error}",
                hint="copy or download the file again; what was answered before is kept",
            ) from error

    def _content(self, value: Any, row: int) -> str | bytes | ImageError:
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            if content is None and path is not None:
                return os.path.join(os.path.dirname(self._path), path)
            value = content
        if isinstance(value, bytes):
            return value
        return ImageError(f"there is no image in the column {self._column!r}", hint="remove that row from the table")


def _image_column(schema: Any, name: str, asked: str | None) -> str:
    types = require("pyarrow.types", extra="bulk")

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    possible = [field.name for field in schema if holds_bytes(field.type)]
    columns = f"its columns are {', '.join(schema.names)}"
    if asked is not None:
        if asked in possible:
            return asked
        problem = "holds no image files" if asked in schema.names else "is not there"
        raise DatasetError(f"the column {asked!r} of {name} {problem}; {columns}", hint="give another --image-column")
    usual = [column for column in _COLUMN_NAMES if column in possible]
    if len(possible) == 1 or usual:
        return possible[0] if len(possible) == 1 else usual[0]
    raise DatasetError(
        f"{'several columns' if possible else 'no column'} of {name} could hold the images; {columns}",
        hint="say which: --image-column NAME",
    )
