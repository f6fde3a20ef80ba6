"""A sequence in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["in_parts"]

_Item = TypeVar("_Item")


def in_parts(items: Iterable[_Item], size: Callable[[_Item], float], most: float) -> Iterator[list[_Item]]:
    """The items in their order, as many together as make `most` of `size`, but at least one; no part is empty."""
    held: list[_Item] = []
    taken = 0.0
    for item in items:
        need = size(item)
        if held and taken + need > most:
            yield held
            held, taken = [], 0.0
        held.append(item)
        taken += need
    if held:
        yield held
