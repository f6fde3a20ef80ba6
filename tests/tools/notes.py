"""What commands and the library say while they work, kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from vitdeploy.core import progress


class Notes:
    """A reporter that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def task(self, description: str, total: float | None, unit: str) -> AbstractContextManager[Any]:
        return progress.silent()

    def note(self, message: str) -> None:
        self.said.append(message)


@contextmanager
def kept_notes() -> Iterator[list[str]]:
    """The notes of the block, as they come."""
    notes = Notes()
    with progress.use(notes):
        yield notes.said
