"""Tables come from somewhere else: paths in them stay below their folder unless the user says otherwise, and a small
file does not fill the memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from vitdeploy.core.errors import DatasetError, ImageError

__all__ = ["are_outside_paths_allowed", "check_unpacked", "outside_paths", "path_in_table"]

_LARGE, _RATIO = 256 * 2**20, 20  # bytes of a column in a row group, and times its size in the file

_allowed: ContextVar[bool] = ContextVar("vitdeploy_outside_paths", default=False)


@contextmanager
def outside_paths(allowed: bool) -> Iterator[None]:
    """Whether tables that are opened inside the block may name images anywhere on the disk."""
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def are_outside_paths_allowed() -> bool:
    """What holds for a table that is opened here."""
    return _allowed.get()


def path_in_table(folder: str | os.PathLike[str], path: str, *, allowed: bool) -> str:
    """Where the file `path` of a table in `folder` lies.

    Raises:
        ImageError: it leaves the folder, and that is not allowed.
    """
    place = os.path.normpath(os.path.join(folder, path))
    top = os.path.normpath(folder)
    if not allowed and (os.path.isabs(path) or os.path.relpath(place, top).split(os.sep, 1)[0] == os.pardir):
        raise ImageError(
            f"the path {path!r} leaves the folder of its table",
            hint="copy the images below the table's folder, or give --allow-outside-paths if you trust the table",
        )
    return place


def check_unpacked(metadata: Any, name: str) -> None:
    """Refuse a parquet file of which a part, that can only be unpacked as a whole, is large and was packed far better
    than images can be: they are packed already.

    Raises:
        DatasetError: it has such a part; `metadata` are pyarrow's of the file.
    """
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            size = column.total_uncompressed_size
            if size > _LARGE and size > _RATIO * column.total_compressed_size:
                raise DatasetError(
                    f"{name} unpacks to {size >> 20} MiB from {column.total_compressed_size >> 10} KiB (the column"
                    f" {column.path_in_schema!r}, row group {group}), which images don't",
                    hint="if it is what it should be, write it again with smaller row groups",
                )
