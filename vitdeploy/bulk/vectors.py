"""The files that embeddings are written to: parquet with a fixed-size list an image, and NumPy's own format.

A parquet row has the image, its vector (null where the image can't be used) and the error; the vector is a column of
type fixed_size_list<float32>[dimensions], which vector databases and dataframes read as one array. A .npy file holds
the vectors alone, float32 (images, dimensions), NaN where an image can't be used; FILE.npy.images.jsonl beside it has a
line a row, with image and error.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.bulk.formats import Format, Layout, Parquet, Row
from vitdeploy.core.errors import DependencyError, require

__all__ = ["VECTOR_FORMATS"]

_BESIDE = ".images.jsonl"


def _matrix(rows: list[Row], layout: Layout) -> npt.NDArray[np.float32]:
    """The vectors of rows, (rows, dimensions), NaN where there is none."""
    assert layout.dimensions is not None
    nothing = np.full(layout.dimensions, np.nan, np.float32)
    return np.stack([nothing if row["embedding"] is None else row["embedding"] for row in rows])


_WITH_NULLS = 26  # of pyarrow; 24 writes none, and 25 some that it can't read


class VectorParquet(Parquet):
    """A column of fixed-size lists; the file's metadata say where the vectors come from."""

    def check(self) -> None:
        super().check()
        found = require("pyarrow", extra="bulk").__version__
        if int(found.partition(".")[0]) < _WITH_NULLS:
            raise DependencyError(
                f"vectors in parquet need pyarrow {_WITH_NULLS}, and {found} is installed: it can't write a list of"
                " fixed size that is null, as that of an image that can't be used, and read it back",
                hint=f"pip install 'pyarrow>={_WITH_NULLS}', which needs Python 3.11; or name a .npy file",
            )

    def schema(self, layout: Layout) -> Any:
        """The columns, and their types."""
        arrow = require("pyarrow", extra="bulk")
        vector = arrow.list_(arrow.float32(), layout.dimensions)
        return arrow.schema([*self.key(layout), ("embedding", vector), ("error", arrow.string())])

    def table(self, rows: list[Row], layout: Layout) -> Any:
        """Rows as a table of that schema."""
        arrow = require("pyarrow", extra="bulk")
        schema, none = self.schema(layout), np.array([row["embedding"] is None for row in rows])
        vectors = np.where(none[:, np.newaxis], np.float32(0), _matrix(rows, layout))  # what is null has a place, too
        column = arrow.FixedSizeListArray.from_arrays(
            arrow.array(vectors.reshape(-1)), layout.dimensions, mask=arrow.array(none)
        )
        columns = [arrow.array([row[name] for row in rows], schema.field(name).type) for name in layout.key]
        errors = arrow.array([row["error"] for row in rows], arrow.string())
        return arrow.Table.from_arrays([*columns, column, errors], schema=schema)


class Npy:
    """One array; a part holds its vectors and, as text, what the file beside the whole says of them."""

    suffix: str = ".npy"
    beside: str | None = _BESIDE

    def check(self) -> None:
        pass

    def encode(self, rows: list[Row], layout: Layout) -> bytes:
        """A part: the text's length in a line, the text, the numbers."""
        keys = (*layout.key, "error")
        text = "".join(json.dumps({name: row[name] for name in keys}, ensure_ascii=False) + "\n" for row in rows)
        encoded = text.encode()
        return b"%d\n%s%s" % (len(encoded), encoded, _matrix(rows, layout).astype("<f4").tobytes())

    def read(self, part: Path, layout: Layout) -> Iterator[tuple[str, int | None, str | None]]:
        text, numbers = _parted(part)
        lines = [json.loads(line) for line in text.splitlines()]
        assert layout.dimensions is not None
        if len(numbers) != 4 * layout.dimensions * len(lines):
            raise ValueError("its vectors are not as many as its images")
        for row in lines:
            yield row["image"], row.get("row"), row["error"]

    def join(self, parts: Iterable[Path], output: Path, layout: Layout, origin: dict[str, Any]) -> None:
        parts = list(parts)
        count = sum(_parted(part)[0].count(b"\n") for part in parts)
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, layout.dimensions)}
        with open(output, "wb") as file, open(output.with_name(output.name + _BESIDE), "wb") as names:
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
            for part in parts:
                text, numbers = _parted(part)
                names.write(text)
                shutil.copyfileobj(io.BytesIO(numbers), file)


def _parted(part: Path) -> tuple[bytes, bytes]:
    """A part's text and its numbers."""
    head, _, rest = part.read_bytes().partition(b"\n")
    size = int(head)
    return rest[:size], rest[size:]


VECTOR_FORMATS: tuple[Format, ...] = (VectorParquet(), Npy())
