"""The files that results are written to, in parts that are joined at the end: parquet, CSV and JSON lines of classes;
of vectors those of `vectors`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitdeploy.bulk.files import printable
from vitdeploy.core.errors import ImageError, InputError, require
from vitdeploy.core.specs import Prediction
from vitdeploy.core.text import visible, visible_json

__all__ = ["FORMATS", "Format", "Layout", "Parquet", "Row", "format_of", "to_row"]

Row = dict[str, Any]
_ROWS_A_GROUP = 65_536


@dataclass(frozen=True)
class Layout:
    """Which columns there are: `has_rows` adds the row in the table, `classes` are listed for each image.

    `csv_safe`: in CSV a text that a spreadsheet would take for a formula has a `'` in front. `dimensions`: of vectors,
    which then are all there is of an image. `several`: an image may have several labels, and those that it has are a
    column.
    """

    has_rows: bool
    classes: int = 0
    csv_safe: bool = False
    dimensions: int | None = None
    several: bool = False

    @property
    def key(self) -> list[str]:
        """The columns that name an image."""
        return ["image", "row"] if self.has_rows else ["image"]


def to_row(name: str, row: int | None, answer: Prediction | ImageError | npt.NDArray[np.float32]) -> Row:
    """One image's result; a failure has its error and nothing else."""
    found: Row = dict.fromkeys(("image", "row", "label", "index", "score", "top_k", "labels", "embedding", "error"))
    found |= {"image": name, "row": row}
    if isinstance(answer, ImageError):
        return found | {"error": visible(printable(answer.message))}
    return found | (answer.to_json() if isinstance(answer, Prediction) else {"embedding": answer})


class Format(Protocol):
    """One kind of file."""

    suffix: str
    beside: str | None

    def check(self) -> None:
        """Raise DependencyError where a package is missing."""

    def encode(self, rows: list[Row], layout: Layout) -> bytes:
        """The content of a part."""

    def read(self, part: Path, layout: Layout) -> Iterator[tuple[str, int | None, str | None]]:
        """Image, row and error of each row of a part."""

    def join(self, parts: Iterable[Path], output: Path, layout: Layout, origin: dict[str, Any]) -> None:
        """Write the whole file, and where the format has one the file beside it, whose name is longer by `beside`.

        `origin` says where they come from, where the format has a place for it.
        """


class JsonLines:
    """One JSON object a line."""

    suffix: str = ".jsonl"
    beside: str | None = None

    def check(self) -> None:
        pass

    def encode(self, rows: list[Row], layout: Layout) -> bytes:
        lines = [visible_json(json.dumps(_shown(row, layout), ensure_ascii=False)) for row in rows]
        return ("\n".join(lines) + "\n").encode()

    def read(self, part: Path, layout: Layout) -> Iterator[tuple[str, int | None, str | None]]:
        with open(part, encoding="utf-8", newline="\n") as file:
            for line in file:
                row = json.loads(line)
                yield row["image"], row.get("row"), row["error"]

    def join(self, parts: Iterable[Path], output: Path, layout: Layout, origin: dict[str, Any]) -> None:
        _concatenate(b"", parts, output)


_NEUTRAL = tuple(f"'{sign}" for sign in ("=", "+", "-", "@", "\t", "\r", "'"))


def _neutral(cell: Any) -> Any:
    """A text as it is, or with a `'` before what a spreadsheet would compute (or another `'`)."""
    return f"'{cell}" if isinstance(cell, str) and f"'{cell}".startswith(_NEUTRAL) else cell


class Csv:
    """Comma-separated, UTF-8, with a header; the second best class is in `label_2` and `score_2`, and so on, and
    several labels in `labels`, as a list in JSON."""

    suffix: str = ".csv"
    beside: str | None = None

    def check(self) -> None:
        pass

    def encode(self, rows: list[Row], layout: Layout) -> bytes:
        return self._text(self._line(row, layout) for row in rows)

    def read(self, part: Path, layout: Layout) -> Iterator[tuple[str, int | None, str | None]]:
        with open(part, encoding="utf-8", newline="") as file:
            for line in csv.reader(file):
                name = line[0][1:] if layout.csv_safe and line[0].startswith(_NEUTRAL) else line[0]
                yield name, int(line[1]) if layout.has_rows and line[1] else None, line[-1] or None

    def join(self, parts: Iterable[Path], output: Path, layout: Layout, origin: dict[str, Any]) -> None:
        more = [f"{name}_{place}" for place in range(2, layout.classes + 1) for name in ("label", "score")]
        header = [*layout.key, "label", "index", "score", *more, *(["labels"] if layout.several else []), "error"]
        _concatenate(self._text([header]), parts, output)

    def _line(self, row: Row, layout: Layout) -> list[Any]:
        best = row["top_k"] or []
        more = [value for score in best[1:] for value in (score["label"], score["score"])]
        more += [None] * (2 * (layout.classes - 1) - len(more))
        if layout.several:
            names = row["labels"] and [score["label"] for score in row["labels"]]
            more.append(None if names is None else json.dumps(names, ensure_ascii=False))
        line = [*(row[name] for name in layout.key), row["label"], row["index"], row["score"], *more, row["error"]]
        return [_neutral(cell) for cell in line] if layout.csv_safe else line

    def _text(self, lines: Iterable[list[Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        return text.getvalue().encode()


class Parquet:
    """Typed columns; the file's metadata say where the results come from, under the key `vitdeploy`."""

    suffix: str = ".parquet"
    beside: str | None = None

    def check(self) -> None:
        require("pyarrow.parquet", extra="bulk")

    def encode(self, rows: list[Row], layout: Layout, origin: Mapping[str, Any] | None = None) -> bytes:
        parquet = require("pyarrow.parquet", extra="bulk")
        table = self.table(rows, layout)
        if origin is not None:
            table = table.replace_schema_metadata(_metadata(origin))
        buffer = io.BytesIO()
        parquet.write_table(table, buffer)
        return buffer.getvalue()

    def read(self, part: Path, layout: Layout) -> Iterator[tuple[str, int | None, str | None]]:
        parquet = require("pyarrow.parquet", extra="bulk")
        for row in parquet.read_table(part, columns=[*layout.key, "error"]).to_pylist():
            yield row["image"], row.get("row"), row["error"]

    def join(self, parts: Iterable[Path], output: Path, layout: Layout, origin: dict[str, Any]) -> None:
        arrow, parquet = require("pyarrow", extra="bulk"), require("pyarrow.parquet", extra="bulk")
        schema = self.schema(layout).with_metadata(_metadata(origin))
        waiting: list[Any] = []
        with parquet.ParquetWriter(output, schema) as writer:
            for part in parts:
                waiting.append(parquet.read_table(part).replace_schema_metadata(schema.metadata))
                if sum(len(table) for table in waiting) >= _ROWS_A_GROUP:
                    writer.write_table(arrow.concat_tables(waiting), _ROWS_A_GROUP)
                    waiting = []
            if waiting:
                writer.write_table(arrow.concat_tables(waiting), _ROWS_A_GROUP)

    def schema(self, layout: Layout) -> Any:
        """The columns, and their types."""
        arrow = require("pyarrow", extra="bulk")
        score = [("label", arrow.string()), ("index", arrow.int32()), ("score", arrow.float64())]
        lists = ("top_k", "labels") if layout.several else ("top_k",)
        best = [(name, arrow.list_(arrow.struct(score))) for name in lists]
        return arrow.schema([*self.key(layout), *score, *best, ("error", arrow.string())])

    def key(self, layout: Layout) -> list[tuple[str, Any]]:
        """The columns that name an image."""
        arrow = require("pyarrow", extra="bulk")
        key = {"image": arrow.string(), "row": arrow.int64()}
        return [(name, key[name]) for name in layout.key]

    def table(self, rows: list[Row], layout: Layout) -> Any:
        """Rows as a table of that schema."""
        arrow = require("pyarrow", extra="bulk")
        return arrow.Table.from_pylist([_shown(row, layout) for row in rows], schema=self.schema(layout))


def _metadata(origin: Mapping[str, Any]) -> dict[str, str]:
    return {"vitdeploy": json.dumps(origin)}


def _shown(row: Row, layout: Layout) -> Row:
    """A row of classes as it is written."""
    hidden = {"embedding"} | (set() if layout.has_rows else {"row"}) | (set() if layout.several else {"labels"})
    return {name: value for name, value in row.items() if name not in hidden}


def _concatenate(head: bytes, parts: Iterable[Path], output: Path) -> None:
    with open(output, "wb") as file:
        file.write(head)
        for part in parts:
            file.write(part.read_bytes())


FORMATS: tuple[Format, ...] = (Parquet(), Csv(), JsonLines())


def format_of(output: Path, formats: tuple[Format, ...] = FORMATS) -> Format:
    """The format that an output's suffix names, of some.

    Raises:
        InputError: it names none.
    """
    for known in formats:
        if output.suffix.lower() == known.suffix:
            return known
    raise InputError(
        f"{output} has a suffix of no supported format",
        hint=f"end the name with {', '.join(known.suffix for known in formats[:-1])} or {formats[-1].suffix}",
    )
