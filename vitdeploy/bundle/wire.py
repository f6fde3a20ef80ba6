"""Protobuf's wire format (https://protobuf.dev/programming-guides/encoding/): the fields of a message, and messages of
fields.

Data may come from a stranger: what is not a message is a ValueError.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

__all__ = ["FIXED32", "FIXED64", "LENGTH", "VARINT", "Data", "fields", "framed", "head", "number", "numbered"]

Data = bytes | mmap.mmap | memoryview
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""How a field's content ends: a number of some bytes, 8 bytes, behind its length, 4 bytes."""
_CUT = "it ends in the middle of a field"


def fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(field, its wire type, where it begins, where its content does, where that ends) of each field.

    Raises:
        ValueError: it is not a message.
    """
    at = start
    while at < end:
        begin = at
        tag, at = number(data, at, end)
        wire = tag & 7
        if wire == LENGTH:
            length, at = number(data, at, end)
            stop = at + length
        elif wire == VARINT:
            stop = number(data, at, end)[1]
        elif wire in (FIXED64, FIXED32):
            stop = at + (8 if wire == FIXED64 else 4)
        else:
            raise ValueError(f"it has a field of the wire type {wire}")
        if stop > end:
            raise ValueError(_CUT)
        yield tag >> 3, wire, begin, at, stop
        at = stop


def number(data: Data, at: int, end: int) -> tuple[int, int]:
    """A varint at `at`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError(_CUT)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("it has a number of more than 10 bytes")


def framed(field: int, content: Data) -> bytes:
    """A message, text or bytes as a field of another message."""
    return head(field, len(content)) + bytes(content)


def head(field: int, length: int) -> bytes:
    """What stands before the content of such a field."""
    return bytes(_varint(field << 3 | LENGTH) + _varint(length))


def numbered(field: int, value: int) -> bytes:
    """An int64 as a field of a message."""
    return bytes(_varint(field << 3 | VARINT) + _varint(value % (1 << 64)))


def _varint(value: int) -> bytearray:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return made
