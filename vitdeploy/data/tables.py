"""Datasets in tables: parquet files, folders in the Hub's layout, and the Hub itself, through `datasets`.

`datasets` keeps an Arrow copy in its own cache (HF_HOME), never beside the data, and maps it into memory:
images stay encoded until they are asked for. It would read a parquet file so many rows at a time; here it is given
them so many bytes at a time, since a file of 20 kB may hold a thousand rows of 200 MB.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.core import progress
from vitdeploy.core.errors import DatasetError, ImageError, VitdeployError, require
from vitdeploy.core.storage import open_regular, parse_json, refuse_pointer
from vitdeploy.core.text import first_line
from vitdeploy.data.columns import (
    find_columns,
    is_list,
    label_names,
    label_sets_of,
    own_names,
    rarest_labels,
    to_label_ids,
)
from vitdeploy.data.dataset import ImageDataset
from vitdeploy.data.outside import are_outside_paths_allowed, check_unpacked, path_in_table
from vitdeploy.data.splits import choose_split, own_split, split_of
from vitdeploy.models import hub

__all__ = ["has_hub_layout", "load_from_hub", "load_hub_layout", "load_parquet", "parquet_files"]

_DISK_PROBLEMS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
_HELD_BYTES, _HELD_ROWS = 64 << 20, 1000  # of a parquet file in memory at a time
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
        paths = (Path(parent, name) for name in names if name.endswith(".parquet") and not name.startswith("."))
        found += [path for path in paths if path.is_file()]  # a pipe does not count
    return sorted(found)


def load_hub_layout(folder: Path, split: str, image_column: str | None, label_column: str | None) -> ImageDataset:
    """A split of a local folder that looks like a dataset repository of the Hub."""
    name = folder.resolve().name
    rows = {str(file.resolve()): (file, count) for file, count in _check_files(parquet_files(folder)).items()}
    with _reading(str(folder), hint="check README.md against the files of the folder, or copy it again"):
        tables = _load(str(folder), name, verification_mode="no_checks")
        used = _data_files(folder)
        origins = {split: [rows[file] for file in files] for split, files in used.items() if rows.keys() >= set(files)}
        return _dataset(tables, name, "local", split, list(tables), image_column, label_column, origins)


def _data_files(folder: Path) -> dict[str, list[str]]:
    """The files that each split of a folder in the Hub's layout is read from, in the order of its rows."""
    datasets = require("datasets", extra="build")
    with hub.quiet_libraries():
        found = datasets.load_dataset_builder(str(folder)).config.data_files or {}
    return {str(split): [os.path.realpath(str(file)) for file in files] for split, files in found.items()}


def load_parquet(
    path: Path, files: list[Path], split: str, image_column: str | None, label_column: str | None
) -> ImageDataset:
    """A split of parquet files; the split of a file is a word in its name or in its folder's below `path`."""
    name = path.resolve().name
    rows = _check_files(files)
    own = own_split(name) or ""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^A-Za-z]+", file.name if file == path else file.relative_to(path).as_posix())
        found = next((known for word in words if (known := split_of(word))), own)
        by_split.setdefault(found, []).append(file)
    if "" in by_split and len(by_split) > 1:
        raise DatasetError(
            f"{by_split[''][0]} belongs to no split, while other files of {path} do",
            hint="put train, test or validation in its name, or move it away",
        )
    existing = [] if "" in by_split else list(by_split)
    data_files = {found or _UNSPLIT: list(map(str, paths)) for found, paths in by_split.items()}
    with _reading(str(path), hint="copy or write the parquet files again; all must have the same columns"):
        tables = _load("parquet", name, data_files=data_files)
        origins = {found or _UNSPLIT: [(file, rows[file]) for file in paths] for found, paths in by_split.items()}
        return _dataset(tables, name, "local", split, existing, image_column, label_column, origins)


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
    verification = options.pop("verification_mode", None)
    with hub.quiet_libraries(), progress.task(f"Opening {name}"):
        builder = datasets.load_dataset_builder(path, **options)
        if isinstance(builder, require("datasets.packaged_modules.parquet.parquet", extra="build").Parquet):
            builder._generate_tables = _by_bytes(builder, builder._generate_tables)
        builder.download_and_prepare(verification_mode=verification)
        return builder.as_dataset()


def _by_bytes(builder: Any, own: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The tables that a builder of `datasets` makes of parquet files, of so many bytes each."""
    key = require("datasets.builder", extra="build").Key
    parquet = require("pyarrow.parquet", extra="build")

    def tables(files: list[str], row_groups_list: list[tuple[int, ...] | None]) -> Iterator[Any]:
        if builder.config.filters is not None:  # as a repository's README may say
            yield from own(files, row_groups_list)
            return
        for number, (path, groups) in enumerate(zip(files, row_groups_list, strict=True)):
            with parquet.ParquetFile(path) as file:
                rows = file.iter_batches(1, row_groups=groups, columns=builder.config.columns)
                for place, table in enumerate(_joined(rows)):
                    yield key(number, place), builder._cast_table(table)

    return tables


def _joined(rows: Iterable[Any]) -> Iterator[Any]:
    """Record batches of a row each, joined to tables of at most `_HELD_BYTES` and `_HELD_ROWS`.

    But a table has two rows, unless it is the last: `datasets` gathers those of one until there are a thousand.
    """
    arrow, held, size = require("pyarrow", extra="build"), list[Any](), 0
    for row in rows:
        if len(held) > 1 and (size + row.nbytes > _HELD_BYTES or len(held) == _HELD_ROWS):
            yield arrow.Table.from_batches(held).combine_chunks()
            held, size = [], 0
        held.append(row)
        size += row.nbytes
    if held:
        yield arrow.Table.from_batches(held).combine_chunks()


def _dataset(
    tables: Any,
    name: str,
    kind: str,
    split: str,
    existing: list[str],
    image_column: str | None,
    label_column: str | None,
    origins: Mapping[str, list[tuple[Path, int]]] | None = None,
) -> ImageDataset:
    chosen = choose_split(name, split, existing)
    key = chosen.name if existing else _UNSPLIT
    table = tables[key]
    image, label = find_columns(table.features, name, image_column, label_column)
    source = RowSource(table, image, (origins or {}).get(key, []))
    if is_list(table.features[label]):
        columns = {part: list(one[label]) for part, one in tables.items()}
        what = f"the column {label!r} of {name}"
        names, parts = label_sets_of(columns, own_names(table.features[label], what), what)
        sets = parts[key]
        label_ids = rarest_labels(sets)
    else:
        sets = None
        names, ids = label_names(list(tables.values()), label, name)
        label_ids = to_label_ids(table, label, ids, f"{name}/{chosen.name}")
    indices = chosen.indices(label_ids)
    return ImageDataset(
        name,
        kind,
        chosen.name,
        names,
        label_ids[indices],
        indices,
        source,
        carved_from=len(label_ids) if chosen.carve else None,
        label_sets=None if sets is None else sets[indices],
    )


class RowSource:
    """Images in a column of a Hugging Face dataset: structs of bytes and path, plain bytes, or paths.

    `origins` are the files of the rows, with the number of rows in each; a path in a row starts in its file's folder.
    """

    def __init__(self, table: Any, column: str, origins: Sequence[tuple[Path, int]] = ()) -> None:
        self._outside = are_outside_paths_allowed()
        self._files = [file for file, _ in origins]
        self._ends = np.cumsum([count for _, count in origins])
        datasets = require("datasets", extra="build")
        self._column = column
        rows = table.select_columns([column])
        if isinstance(table.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        self._rows = rows

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        try:
            value = self._rows[index][self._column]
        except UnicodeDecodeError as error:
            raise DatasetError(f"{self.where(index)} has a path that is no text", hint="remove that row") from error
        if isinstance(value, str) and self._files:
            value = {"path": value}
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            if content is None and path:
                # What the Hub's library makes of a dataset names files of its own cache.
                place = path_in_table(self._place(index)[0].parent, path, allowed=self._outside or not self._files)
                if not os.path.exists(place):
                    raise ImageError(
                        f"there is no image {place}, which {self.where(index)} names",
                        hint="copy the images to where the table says, from its folder, or remove the row",
                    )
                with open_regular(place) as file:
                    return file.read()
            value = content
        if not isinstance(value, bytes):
            what = f"but the path {value!r}" if isinstance(value, str) else "and no path"
            raise DatasetError(
                f"{self.where(index)} has no image in the column {self._column!r}, {what}",
                hint="remove that row, or name the column of the images: --image-column",
            )
        return value

    def where(self, index: int) -> str:
        file, row = self._place(index)
        return f"row {row} of {file.name}" if file.name else f"row {row}"

    def _place(self, index: int) -> tuple[Path, int]:
        """The file of a row, and which row of it that is; of other tables no file."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        if place == len(self._files):
            return Path(), index
        return self._files[place], index - (int(self._ends[place - 1]) if place else 0)


def _check_files(files: list[Path]) -> dict[Path, int]:
    """Read the footer of each file, so that a damaged one is called by its name; the number of rows of each.

    `datasets` takes the first file's classes for those of all, so files that number them otherwise are refused.
    """
    parquet = require("pyarrow.parquet", extra="build")
    arrow = require("pyarrow", extra="build")
    rows = {}
    known: dict[str, tuple[Path, list[Any]]] = {}
    for file in files:
        refuse_pointer(file, DatasetError)
        try:
            metadata = parquet.read_metadata(file)
            check_unpacked(metadata, str(file))
            rows[file] = metadata.num_rows
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{file} is damaged or no parquet file: {error}", hint="copy or download the file again"
            ) from error
        for column, names in _classes_in(metadata).items():
            other, theirs = known.setdefault(column, (file, names))
            if theirs != names:
                raise DatasetError(
                    f"{other} and {file} have different classes in the column {column!r}, or in another order",
                    hint="write both with the same names in the same order, or with texts as labels",
                )
    if files and not any(rows.values()):
        raise DatasetError(f"{files[0]} has no rows", hint="write the images and their classes into it again")
    return rows


def _classes_in(metadata: Any) -> dict[str, list[Any]]:
    """{column: names of its classes} that `datasets` noted in the footer of a parquet file."""
    try:
        features = parse_json((metadata.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, column in features.items()
            if (feature := column.get("feature", column)).get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # other programs write it otherwise, or not at all
        return {}


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
        raise DatasetError(f"{what} can't be loaded: {first_line(cause)}", hint=hint) from error


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
