"""Labels in a file beside the images: metadata.csv or metadata.jsonl, as Hugging Face's image folders have them."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from vitdeploy.core.errors import DatasetError
from vitdeploy.core.storage import open_regular
from vitdeploy.data.columns import LABEL_NAMES

__all__ = ["METADATA_FILES", "find_metadata", "read_metadata"]

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
_NUMBER = re.compile(r"\s*-?[0-9]{1,18}\s*")
_FILE_NAMES = ("file_name", "filename", "file", "path", "image")


def find_metadata(folder: Path, *, needs_labels: bool) -> Path | None:
    """The metadata file of a folder, if it names images (and labels)."""
    for file in (folder / name for name in METADATA_FILES):
        if file.is_file():
            columns = list(_table(file)[0])
            if any(name in columns for name in _FILE_NAMES) or not needs_labels:
                return file if not needs_labels or any(name in columns for name in LABEL_NAMES) else None
    return None


def read_metadata(
    folder: Path, file: Path | None, image_column: str | None, label_column: str | None
) -> list[tuple[Path, Any]]:
    """The image and the label of each row; of several labels an image their list, which CSV has as JSON: ["cat"].

    Raises:
        DatasetError: there is no file, it is damaged or lacks a column, or a row names an image that is not there.
    """
    if file is None:
        raise DatasetError(
            f"{folder} has no {' or '.join(METADATA_FILES)}, while another split has one",
            hint="give each split one, or class folders",
        )
    rows = _table(file)
    image = _column(file, list(rows[0]), image_column, _FILE_NAMES, "image")
    label = _column(file, list(rows[0]), label_column, LABEL_NAMES, "label")
    found = []
    for number, row in enumerate(rows):
        name, value = row.get(image), row.get(label)
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise DatasetError(
                f"row {number} of {file} names no image inside its folder, but {name!r}",
                hint="write the path from the folder of the metadata file, or remove the row",
            )
        if not (folder / name).is_file():
            raise DatasetError(
                f"there is no image {folder / name}, which row {number} of {file.name} names",
                hint="copy the images again, or remove the row",
            )
        found.append((folder / name, value))
    _refuse_contradictions(file, found)
    if all(isinstance(value, str) and _NUMBER.fullmatch(value) for _, value in found):
        return [(path, int(str(value))) for path, value in found]  # in the order of numbers
    if file.suffix == ".csv" and all(_is_bracketed(value) for _, value in found):
        return [(path, _list(value, f"row {number} of {file}")) for number, (path, value) in enumerate(found)]
    return found


def _refuse_contradictions(file: Path, rows: list[tuple[Path, Any]]) -> None:
    known: dict[Path, tuple[int, Any]] = {}
    for number, (path, value) in enumerate(rows):
        if value in (None, "") or value != value:  # no label, which is said of all rows at once
            continue
        first, other = known.setdefault(path, (number, value))
        if other != value:
            raise DatasetError(
                f"rows {first} and {number} of {file} give {path.name} two labels: {other!r} and {value!r}",
                hint='keep one of them; of several labels an image write one row with a list: ["cat", "dog"]',
            )


def _is_bracketed(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")


def _list(text: Any, what: str) -> list[Any]:
    """The labels of a cell."""
    try:
        found = json.loads(text)
        if not all(isinstance(label, (str, int)) for label in found):
            raise ValueError("it holds something else than texts and whole numbers")
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{what} has {text[:80]!r} for its labels: {error}", hint='write each list as JSON: ["cat", "dog"], or []'
        ) from error
    labels: list[Any] = found
    return labels


def _table(file: Path) -> list[dict[str, Any]]:
    """The rows of a file, at least one."""
    try:
        with open_regular(file) as opened:
            text = opened.read().decode("utf-8-sig")
        if file.suffix == ".csv":
            rows = _csv_rows(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError("it has no rows" if not rows else "a line is not an object")
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise DatasetError(
            f"{file} can't be read: {error}",
            hint="write it as CSV or JSON Lines in UTF-8: file_name and label of each image",
        ) from error
    return rows


def _csv_rows(text: str) -> list[Any]:
    """Each row by the names of its columns; raises ValueError where a cell belongs to none, or to two."""
    table = csv.DictReader(io.StringIO(text))
    columns = list(table.fieldnames or ())
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise ValueError(f"it has two columns {twice[0]!r}")
    rows: list[Any] = list(table)
    for number, row in enumerate(rows):
        if any(cell.strip() for cell in row.get(None, ())):
            raise ValueError(f'row {number} has more cells than columns: a text with a comma needs quotes, "a, b"')
    return rows


def _column(file: Path, columns: list[str], given: str | None, usual: tuple[str, ...], role: str) -> str:
    if given is not None and given in columns:
        return given
    found = [name for name in usual if name in columns] if given is None else []
    if not found:
        what = f"column {given!r}" if given is not None else f"column of the {role}s"
        raise DatasetError(
            f"{file} has no {what}; its columns are {', '.join(map(str, columns))}",
            hint=f"say which: --{role}-column NAME",
        )
    return found[0]
