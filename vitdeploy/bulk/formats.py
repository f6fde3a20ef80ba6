"""The files that results are written to: parquet, CSV and JSON lines, in parts that are joined at the end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vitdeploy.bulk.sources import printable
from vitdeploy.errors import ImageError, InputError, require
from vitdeploy.specs import Prediction

__all__ = ["FORMATS", "Format", "Layout", "Row", "format_of", "to_row"]

Row = dict[str, Any]
_ROWS_A_GROUP = 65_536


@dataclass(frozen=True)
class Layout:
    """Which columns there are: `has_rows` adds the row in the table, `classes` are listed for each image."""

    has_rows: bool
    classes: int

    @property
    def key(self) -> list[str]:
        """The columns that name an image."""
        return ["image", "row"] if self.has_rows else ["image"]


def to_row(name: str, row: int | None, answer: Prediction | ImageError) -> Row:
    """One image's result; a failure has its error and nothing else."""
    found: Row = dict.fromkeys(("image", "row", "label", "index", "score", "top_k", "error"))
    found |= {"image": name, "row": row}
    if isinstance(answer, ImageError):
        return found | {"error": printable(answer.message)}
    return found | answer.to_json()


class Format(Protocol):
    """One kind of file."""

    suffix: str

    def check(self) -> None:
        """Raise DependencyError where a package is missing."""

    def encode(self, rows: list[Row], layout: Layout) -> bytes:
        """The content of a part."""

    def read(self, part: Path, layout: Layout) -> Iterator[tuple[str, int | None, str | None]]:
        """Image, row and error of each row of a part."""

    def join(self, parts: Iterable[Path], output: Path, layout: Layout, origin: dict[str, Any]) -> None:
        """Write the whole file; `origin` says where it comes from, where the format has a place for it."""


class JsonLines:
    """One JSON object a line."""

    suffix = ".jsonl"

    def check(self) -> None:
        pass

    def encode(self, rows: list[Row], layout: Layout) -> bytes:
        lines = [json.dumps(_without(row, layout), ensure_ascii=False) for row in rows]
        return ("\n".join(lines) + "\n").encode()

    def read(self, part: Path, layout: Layout) -> Iterator[tuple[str, int | None, str | None]]:
        with open(part, encoding="utf-8", newline="\n") as file:
            for line in file:
                row = json.loads(line)
                yield row["image"], row.get("row"), row["error"]

    def join(self, parts: Iterable[Path], output: Path, layout: Layout, origin: dict[str, Any]) -> None:
        _concatenate(b"", parts, output)


class Csv:
    """Comma-separated, UTF-8, with a header; the second best class is in `label_2` and `score_2`, and so on."""

    suffix = ".csv"

    def check(self) -> None:
        pass

    def encode(self, rows: list[Row], layout: Layout) -> bytes:
        return self._text(self._line(row, layout) for row in rows)

    def read(self, part: Path, layout: Layout) -> Iterator[tuple[str, int | None, str | None]]:
        with open(part, encoding="utf-8", newline="") as file:
            for line in csv.reader(file):
                yield line[0], int(line[1]) if layout.has_rows and line[1] else None, line[-1] or None

    def join(self, parts: Iterable[Path], output: Path, layout: Layout, origin: dict[str, Any]) -> None:
        more = [f"{name}_{place}" for place in range(2, layout.classes + 1) for name in ("label", "score")]
        header = [*layout.key, "label", "index", "score", *more, "error"]
        _concatenate(self._text([header]), parts, output)

    def _line(self, row: Row, layout: Layout) -> list[Any]:
        best = row["top_k"] or []
        more = [value for score in best[1:] for value in (score["label"], score["score"])]
        more += [None] * (2 * (layout.classes - 1) - len(more))
        return [*(row[name] for name in layout.key), row["label"], row["index"], row["score"], *more, row["error"]]

    def _text(self, lines: Iterable[list[Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        return text.getvalue().encode()


class Parquet:
    """Typed columns; the file's metadata say where the results come from, under the key `vitdeploy`."""

    suffix = ".parquet"

    def check(self) -> None:
        require("pyarrow.parquet", extra="bulk")

    def encode(self, rows: list[Row], layout: Layout) -> bytes:
        arrow, parquet = require("pyarrow", extra="bulk"), require("pyarrow.parquet", extra="bulk")
        table = arrow.Table.from_pylist([_without(row, layout) for row in rows], schema=_schema(layout))
        buffer = io.BytesIO()
        parquet.write_table(table, buffer)
        return buffer.getvalue()

    def read(self, part: Path, layout: Layout) -> Iterator[tuple[str, int | None, str | None]]:
        parquet = require("pyarrow.parquet", extra="bulk")
        for row in parquet.read_table(part, columns=[*layout.key, "error"]).to_pylist():
            yield row["image"], row.get("row"), row["error"]

    def join(self, parts: Iterable[Path], output: Path, layout: Layout, origin: dict[str, Any]) -> None:
        arrow, parquet = require("pyarrow", extra="bulk"), require("pyarrow.parquet", extra="bulk")
        schema = _schema(layout).with_metadata({"vitdeploy": json.dumps(origin)})
        waiting: list[Any] = []
        with parquet.ParquetWriter(output, schema) as writer:
            for part in parts:
                waiting.append(parquet.read_table(part).replace_schema_metadata(schema.metadata))
                if sum(len(table) for table in waiting) >= _ROWS_A_GROUP:
                    writer.write_table(arrow.concat_tables(waiting), _ROWS_A_GROUP)
                    waiting = []
            if waiting:
                writer.write_table(arrow.concat_tables(waiting), _ROWS_A_GROUP)


def _schema(layout: Layout) -> Any:
    arrow = require("pyarrow", extra="bulk")
    score = [("label", arrow.string()), ("index", arrow.int32()), ("score", arrow.float64())]
    key = {"image": arrow.string(), "row": arrow.int64()}
    return arrow.schema(
        [(name, key[name]) for name in layout.key]
        + score
        + [("top_k", arrow.list_(arrow.struct(score))), ("error", arrow.string())]
    )


def _without(row: Row, layout: Layout) -> Row:
    return row if layout.has_rows else {name: value for name, value in row.items() if name != "row"}


def _concatenate(head: bytes, parts: Iterable[Path], output: Path) -> None:
    with open(output, "wb") as file:
        file.write(head)
        for part in parts:
            file.write(part.read_bytes())


FORMATS: tuple[Format, ...] = (Parquet(), Csv(), JsonLines())


def format_of(output: Path) -> Format:
    """The format that an output's suffix names.

    Raises:
        InputError: it names none.
    """
    for known in FORMATS:
        if output.suffix.lower() == known.suffix:
            return known
    raise InputError(
        f"{output} has a suffix that is no known format",
        hint=f"end the name with {', '.join(known.suffix for known in FORMATS[:-1])} or {FORMATS[-1].suffix}",
    )
