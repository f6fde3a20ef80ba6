"""Parquet files with images: which column holds them, and its rows as encoded images or paths of files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from vitdeploy.bulk.files import Files
from vitdeploy.core.errors import DatasetError, ImageError, require
from vitdeploy.data.columns import IMAGE_NAMES, PATH_NAMES
from vitdeploy.data.outside import are_outside_paths_allowed, check_unpacked

__all__ = ["Item", "Table"]


@dataclass(frozen=True)
class Item:
    """One image: the path of its file, or of its table and the row there; `content` is a path, or the encoded image.

    A row without an image has an ImageError as its content.
    """

    name: str
    row: int | None
    content: str | bytes | BinaryIO | ImageError


class Table:
    """The images in one column of a parquet file: bytes, paths, or structs of both as Hugging Face writes them.

    Args:
        path: of the file, in `place`.
        column: its name; None: the one that its type or name gives away.
        place: the file system.

    Raises:
        DatasetError: it is no parquet file, or it is not clear which column holds the images.
    """

    def __init__(self, path: str, column: str | None, place: Files) -> None:
        arrow = require("pyarrow", extra="bulk")
        parquet = require("pyarrow.parquet", extra="bulk")
        self.path, self.place, self.name = path, place, place.name(path)
        self._outside = are_outside_paths_allowed()
        try:
            with parquet.ParquetFile(place.parquet(path)) as file:
                check_unpacked(file.metadata, self.name)
                self.groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                schema = file.schema_arrow
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{self.name} is damaged or no parquet file: {error}", hint="copy or download the file again"
            ) from error
        self.count = sum(self.groups)
        self.column = _image_column(schema, self.name, column)

    def to_json(self) -> dict[str, Any]:
        return {
            "table": self.name,
            "column": self.column,
            "rows": self.count,
            "size_bytes": self.place.size(self.path),
        }

    def items(self, start: int, stop: int | None = None) -> Iterator[Item]:
        """The rows from `start` on, up to `stop`; row groups before and behind are not read."""
        arrow = require("pyarrow", extra="bulk")
        parquet = require("pyarrow.parquet", extra="bulk")
        row, stop = 0, self.count if stop is None else stop
        try:
            with parquet.ParquetFile(self.place.parquet(self.path)) as file:
                for group, size in enumerate(self.groups):
                    if row + size <= start or row >= stop:
                        row += size
                        continue
                    # One row at a time: a file of 20 kB may hold a thousand rows of 200 MB.
                    for batch in file.iter_batches(1, row_groups=[group], columns=[self.column]):
                        for value in batch.column(0).to_pylist():
                            if row >= stop:
                                return
                            if row >= start:
                                yield Item(self.name, row, self._content(value))
                            row += 1
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{self.name} can't be read from row {row} on: {error}",
                hint="copy or download the file again; what was answered before is kept",
            ) from error

    def _content(self, value: Any) -> str | bytes | ImageError:
        if isinstance(value, str):
            value = {"path": value}
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            if content is None and path:
                try:
                    return self.place.place(self.path, path, allowed=self._outside)
                except ImageError as error:
                    return error
            value = content
        if isinstance(value, bytes):
            return value
        return ImageError(f"there is no image in the column {self.column!r}", hint="remove that row from the table")


def _image_column(schema: Any, name: str, asked: str | None) -> str:
    types = require("pyarrow.types", extra="bulk")

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    possible = [field.name for field in schema if holds_bytes(field.type)]
    is_results = b"vitdeploy" in (schema.metadata or {})  # of predict --output: what it names was answered
    if (not possible and not is_results) or asked is not None:  # texts: paths of files
        paths = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]
        possible += [name for name in paths if name == asked or name in (*IMAGE_NAMES, *PATH_NAMES)]
    columns = f"its columns are {', '.join(schema.names)}"
    if asked is not None:
        if asked in possible:
            return asked
        problem = "holds no image files" if asked in schema.names else "is not there"
        raise DatasetError(f"the column {asked!r} of {name} {problem}; {columns}", hint="give another --image-column")
    usual = [column for column in (*IMAGE_NAMES, *PATH_NAMES) if column in possible]
    if len(possible) == 1 or usual:
        return possible[0] if len(possible) == 1 else usual[0]
    raise DatasetError(
        f"{'several columns' if possible else 'no column'} of {name} could hold the images; {columns}",
        hint="say which: --image-column NAME",
    )
