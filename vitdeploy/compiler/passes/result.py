"""What a pass reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitdeploy.core import progress

__all__ = ["PassResult"]


@dataclass(frozen=True)
class PassResult:
    """`changed` places were rewritten; where there are none, `declined` says why."""

    name: str
    changed: int
    declined: str | None = None

    def report(self) -> None:
        """Say why the pass declined, to those who want to know."""
        if self.declined is not None:
            progress.detail(f"{self.name} declined: {self.declined}.")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "changed": self.changed, "declined": self.declined}
