"""The pieces in which a run is handed out: so many image files, or rows of one table, in the order of the whole.

A block is read, decoded, answered and written by one worker, so the pixels never travel; it is what a killed worker
loses at most, and what a later run goes on after.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from io import BytesIO
from itertools import count

from vitdeploy.bulk.files import Files
from vitdeploy.bulk.sources import Images
from vitdeploy.bulk.tables import Item, Table
from vitdeploy.core.errors import ImageError
from vitdeploy.data.outside import outside_paths

__all__ = ["AHEAD", "Block", "cut", "digest", "fetched", "items", "places"]

AHEAD = 32
"""Images that are read before the decoder asks for them."""

_MOST_PIECES = 8  # of a row group: each piece reads the group's column from its start


@dataclass(frozen=True)
class Block:
    """Files, or rows of a table from `start` to `stop`; `place` is their file system's number."""

    number: int
    place: int
    paths: tuple[str, ...] = ()
    table: str | None = None
    column: str | None = None
    start: int = 0
    stop: int = 0

    def __len__(self) -> int:
        return len(self.paths) or self.stop - self.start

    def title(self, place: Files) -> str:
        """Which images they are, for messages."""
        if self.table is not None:
            return f"what is in rows {self.start} to {self.stop - 1} of {place.name(self.table)}"
        return f"one of the images {place.name(self.paths[0])} to {place.name(self.paths[-1])}"

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Block:
        fields = json.loads(text)
        return cls(**{**fields, "paths": tuple(fields["paths"])})


def places(images: Images) -> list[Files]:
    """The file systems, by the numbers that blocks name."""
    return [*(place for place, _ in images.files), *(table.place for table in images.tables)]


def cut(images: Images, size: int) -> Iterator[Block]:
    """All images in blocks of `size`, in order. A block is of one table; it is larger or smaller where that saves
    reading a row group over and over."""
    numbers = count()
    for place, (_, paths) in enumerate(images.files):
        for start in range(0, len(paths), size):
            yield Block(next(numbers), place, tuple(paths[start : start + size]))
    for place, table in enumerate(images.tables, len(images.files)):
        for start, stop in _ranges(table.groups, size):
            yield Block(next(numbers), place, (), table.path, table.column, start, stop)


def _ranges(groups: Iterable[int], size: int) -> Iterator[tuple[int, int]]:
    """Rows (from, to) of a table with row groups of so many rows: whole groups, up to `size` rows, or at most
    `_MOST_PIECES` equal pieces of a large one."""
    start = stop = 0
    for rows in groups:
        if stop > start and stop - start + rows > size:
            yield start, stop
            start = stop
        stop += rows
        if rows > size:
            step = max(size, -(-rows // _MOST_PIECES))
            yield from ((first, min(first + step, stop)) for first in range(start, stop, step))
            start = stop
    if stop > start:
        yield start, stop


def digest(blocks: Iterable[Block]) -> str:
    """Hex SHA-256 of what is to be done, in which pieces."""
    whole = sha256()
    for block in blocks:
        whole.update(block.to_text().encode() + b"\n")
    return whole.hexdigest()


def items(block: Block, place: Files, *, outside: bool) -> Iterator[Item]:
    """The images of a block, in order; `outside`: a table may name files outside its folder."""
    if block.table is None:
        yield from (Item(place.name(path), None, path) for path in block.paths)
        return
    with outside_paths(outside):
        table = Table(block.table, block.column, place)
    yield from table.items(block.start, block.stop)


def fetched(wanted: Iterable[Item], place: Files, ahead: int = AHEAD) -> Iterator[Item]:
    """The same items with the encoded images in the place of paths, of which at most `ahead` are read beforehand.

    Raises:
        DatasetError: the file system does not answer.
    """
    waiting: deque[tuple[Item, Future[_NamedBytes | ImageError] | None]] = deque()
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="vitdeploy-read")
    try:
        for item in wanted:
            read = pool.submit(_read, place, item.content) if isinstance(item.content, str) else None
            waiting.append((item, read))
            if len(waiting) >= ahead:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _NamedBytes(BytesIO):
    """An encoded image that messages call by its file's name."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _read(place: Files, path: str) -> _NamedBytes | ImageError:
    try:
        return _NamedBytes(place.read(path), place.name(path))
    except ImageError as error:
        return error


def _ready(item: Item, read: Future[_NamedBytes | ImageError] | None) -> Item:
    return item if read is None else replace(item, content=read.result())
