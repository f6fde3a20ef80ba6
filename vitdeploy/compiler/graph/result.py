"""What a pass reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["PassResult"]


@dataclass(frozen=True)
class PassResult:
    """`changed` places were rewritten; where there are none, `declined` says why."""

    name: str
    changed: int
    declined: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "changed": self.changed, "declined": self.declined}
