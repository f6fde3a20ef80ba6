"""How a classifier serves its callers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vitdeploy.core.settings import AT_LEAST_ONE, AT_LEAST_ZERO, check
from vitdeploy.data.images import most_pixels

__all__ = ["Serving"]


@dataclass(frozen=True)
class Serving:
    """How a classifier serves its callers; `vitdeploy.load` says what each means."""

    max_batch: Annotated[int, AT_LEAST_ONE] = 1
    max_delay_ms: Annotated[float, AT_LEAST_ZERO] = 2.0
    max_queue: Annotated[int, AT_LEAST_ONE] = 256
    when_full: Literal["wait", "raise"] = "wait"
    max_pixels: Annotated[int, AT_LEAST_ONE] = field(default_factory=most_pixels)

    def __post_init__(self) -> None:
        check(self)
