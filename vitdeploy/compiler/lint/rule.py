"""A row of the table of rules, and what it found in a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vitdeploy.compiler.lint.findings import Place, Severity
from vitdeploy.compiler.lint.graph import LintGraph

__all__ = ["Finding", "Rule"]


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Args:
        id: its name, and that of its page in docs/lint.
        severity: of all that it finds.
        title: what is wrong, as a headline.
        remedy: what to do, in a sentence.
        targets: for which it is worth saying.
        check: the places in a graph.
        refused: `build-engine` makes no INT8 or FP8 form that has it.
    """

    id: str
    severity: Severity
    title: str
    remedy: str
    targets: tuple[str, ...]
    check: Callable[[LintGraph], Iterable[Place]]
    refused: bool = False

    @property
    def page(self) -> str:
        return f"docs/lint/{self.id}.md"


@dataclass(frozen=True)
class Finding:
    """A rule and all places in a graph where it holds, at least one."""

    rule: Rule
    places: tuple[Place, ...]
    targets: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule.id,
            "severity": self.rule.severity,
            "title": self.rule.title,
            "remedy": self.rule.remedy,
            "page": self.rule.page,
            "targets": list(self.targets),
            "places": [place.to_json() for place in self.places],
        }
