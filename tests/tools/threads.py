"""Which threads a test began: those of objects that an earlier one forgot may end at any time."""

from __future__ import annotations

import threading

__all__ = ["Threads"]


class Threads:
    """The threads that began since this was made."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def begun(self, *starts: str) -> list[str]:
        """The names of those that run, and begin with one of `starts` (none given: all)."""
        running = (thread.name for thread in threading.enumerate() if thread not in self._before)
        return [name for name in running if name.startswith(starts or "")]
