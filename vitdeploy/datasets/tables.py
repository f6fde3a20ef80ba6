"""Datasets in tables: parquet files, folders in the Hub's layout, and the Hub itself, through `datasets`.

`datasets` keeps an Arrow copy in its own cache (HF_HOME), never beside the data, and maps it into memory:
images stay encoded until they are asked for.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy import hub, progress
from vitdeploy.datasets.columns import find_columns, label_names, to_label_ids
from vitdeploy.datasets.core import ImageDataset
from vitdeploy.datasets.splits import choose_split, split_of
from vitdeploy.errors import DatasetError, VitdeployError, require

__all__ = ["has_hub_layout", "load_from_hub", "load_hub_layout", "load_parquet", "parquet_files"]

_DISK_PROBLEMS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
_UNSPLIT = "train"  # what `datasets` calls data without splits; "all" is a reserved word there
_LOCAL_COPY = "use a local copy: --dataset PATH (class folders, parquet files, or a clone of the Hub's repository)"


def has_hub_layout(folder: Path) -> bool:
    """Whether a folder's README.md opens with the metadata by which the Hub describes a dataset."""
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    return front is not None and re.search(r"^(configs|dataset_info):", front.group(1), re.MULTILINE) is not None


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files below a folder, hidden ones left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.endswith(".parquet") and not name.startswith(".")]
    return sorted(found)


def load_hub_layout(folder: Path, split: str, image_column: str | None, label_column: str | None) -> ImageDataset:
    """A split of a local folder that looks like a dataset repository of the Hub."""
    name = folder.resolve().name
    files = parquet_files(folder)
    _check_files(files)
    with _reading(str(folder), hint="check README.md against the files of the folder, or copy it again"):
        tables = _load(str(folder), name, verification_mode="no_checks")
    return _dataset(tables, name, "local", split, list(tables), image_column, label_column)


def load_parquet(
    path: Path, files: list[Path], split: str, image_column: str | None, label_column: str | None
) -> ImageDataset:
    """A split of parquet files; the split of a file is a word in its name or in its folder's below `path`."""
    name = path.resolve().name
    _check_files(files)
    by_split: dict[str, list[str]] = {}
    for file in files:
        words = re.split(r"[^A-Za-z]+", file.name if file == path else file.relative_to(path).as_posix())
        found = next((known for word in words if (known := split_of(word))), "")
        by_split.setdefault(found, []).append(str(file))
    if "" in by_split and len(by_split) > 1:
        raise DatasetError(
            f"{by_split[''][0]} belongs to no split, while other files of {path} do",
            hint="put train, test or validation in its name, or move it away",
        )
    existing = [] if "" in by_split else list(by_split)
    data_files = {found or _UNSPLIT: paths for found, paths in by_split.items()}
    with _reading(str(path), hint="copy or write the parquet files again; all must have the same columns"):
        tables = _load("parquet", name, data_files=data_files)
    return _dataset(tables, name, "local", split, existing, image_column, label_column)


def load_from_hub(
    repository: str, name: str, split: str, image_column: str | None, label_column: str | None
) -> ImageDataset:
    """A split of a dataset on the Hub, or of its copy in the local cache where the Hub can't be reached."""
    online = hub.is_reachable()
    with _reading(f"the dataset {repository!r}", hint=_LOCAL_COPY, online=online), hub.offline(not online):
        tables = _load(repository, name)
    return _dataset(tables, name, "hub", split, list(tables), image_column, label_column)


def _load(path: str, name: str, **options: Any) -> Any:
    datasets = require("datasets", extra="build")
    with hub.quiet_libraries(), progress.task(f"Opening {name}"):
        return datasets.load_dataset(path, **options)


def _dataset(
    tables: Any,
    name: str,
    kind: str,
    split: str,
    existing: list[str],
    image_column: str | None,
    label_column: str | None,
) -> ImageDataset:
    chosen = choose_split(name, split, existing)
    table = tables[chosen.name if existing else _UNSPLIT]
    image, label = find_columns(table.features, name, image_column, label_column)
    names, values = label_names(list(tables.values()), label, name)
    label_ids = to_label_ids(table, label, values, f"{name}/{chosen.name}")
    indices = chosen.indices(label_ids)
    return ImageDataset(name, kind, chosen.name, names, label_ids[indices], indices, RowSource(table, image))


class RowSource:
    """Images in a column of a Hugging Face dataset: structs of bytes and path, or plain bytes."""

    def __init__(self, table: Any, column: str) -> None:
        datasets = require("datasets", extra="build")
        self._column = column
        rows = table.select_columns([column])
        if isinstance(table.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        self._rows = rows

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        value = self._rows[index][self._column]
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            if content is None and path is not None:
                return Path(path).read_bytes()
            value = content
        if not isinstance(value, bytes):
            raise DatasetError(
                f"row {index} has no image in the column {self._column!r}", hint="remove that row from the dataset"
            )
        return value

    def where(self, index: int) -> str:
        return f"row {index}"


def _check_files(files: list[Path]) -> None:
    """Read the footer of each file, so that a damaged one is called by its name."""
    parquet = require("pyarrow.parquet", extra="build")
    arrow = require("pyarrow", extra="build")
    for file in files:
        try:
            parquet.read_schema(file)
        except (arrow.ArrowException, OSError) as error:
            raise DatasetError(
                f"{file} is damaged or no parquet file: {error}", hint="copy or download the file again"
            ) from error


@contextmanager
def _reading(what: str, *, hint: str, online: bool = True) -> Iterator[None]:
    """Turn what `datasets` raises inside the block into a DatasetError."""
    try:
        yield
    except (VitdeployError, MemoryError):
        raise
    except Exception as error:  # it has a class for each of its own problems, and passes on all others
        cause = _root(error)
        if isinstance(cause, OSError) and cause.errno in _DISK_PROBLEMS:
            raise DatasetError(
                f"{what} can't be prepared: {cause.strerror} ({cause.filename or 'the cache of datasets'})",
                hint="free some space, or let HF_HOME name a folder that you may write to",
            ) from error
        if not online:
            raise DatasetError(
                f"{what} can't be fetched: the Hugging Face Hub can't be reached, and it is not in the local cache",
                hint=hint,
            ) from error
        message = str(cause).strip().splitlines() or [type(cause).__name__]
        raise DatasetError(f"{what} can't be loaded: {message[0][:300]}", hint=hint) from error


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
