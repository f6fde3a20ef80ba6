"""How a classifier serves its callers."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy.errors import InputError
from vitdeploy.images import MAX_PIXELS

__all__ = ["Serving"]


@dataclass(frozen=True)
class Serving:
    """How a classifier serves its callers; `vitdeploy.load` says what each means."""

    max_batch: int = 1
    max_delay_ms: float = 2.0
    max_queue: int = 256
    when_full: str = "wait"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_pixels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}", hint="give a whole number of at least 1")
        delay = self.max_delay_ms
        if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not 0 <= delay < float("inf"):
            raise InputError(f"max_delay_ms is {delay!r}", hint="give milliseconds, 0 or more")
        if self.when_full not in ("wait", "raise"):
            raise InputError(f"when_full is {self.when_full!r}", hint='one of "wait", "raise"')
