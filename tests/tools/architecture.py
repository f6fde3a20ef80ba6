"""The picture of vitdeploy's parts, drawn from their imports.

python -m tests.tools.architecture    draws it anew in docs/architecture.md
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.tools.imports import MODULES, imported_parts, parse, part_of

__all__ = ["PAGE", "arrows", "drawn", "picture"]

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
_BLOCK = re.compile(r"```mermaid\n.*?```\n", flags=re.S)


def part_imports() -> dict[str, set[str]]:
    """Each part of the package -> the parts that its files import."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        part = part_of(module)
        if not part.startswith("__"):
            found = {name for name in imported_parts(parse(module)).values() if not name.startswith("__")}
            graph.setdefault(part, set()).update(found - {part})
    return graph


def arrows(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """(part, importer), without those that follow from others: where a -> b -> c, a -> c is not drawn."""
    reached: dict[str, set[str]] = {}

    def reach(part: str) -> set[str]:
        if part not in reached:
            reached[part] = set().union(*({other} | reach(other) for other in graph[part]))
        return reached[part]

    return sorted(
        (other, part)
        for part, others in graph.items()
        for other in others
        if not any(other in reach(between) for between in others)
    )


def picture() -> str:
    """A Mermaid flowchart: an arrow leads from a part to those that import it."""
    lines = ["```mermaid", "flowchart LR", *(f"    {one} --> {other}" for one, other in arrows(part_imports())), "```"]
    return "\n".join(lines) + "\n"


def drawn() -> str:
    """The picture that the page has."""
    found = _BLOCK.search(PAGE.read_text(encoding="utf-8"))
    return found[0] if found else ""


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_BLOCK.sub(lambda _: picture(), text, count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
