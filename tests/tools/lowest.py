"""The lowest version of each package that pyproject.toml allows, as constraints for pip.

python -m tests.tools.lowest > lowest.txt
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["lowest"]

_FILE = Path(__file__).parents[2] / "pyproject.toml"
_REQUIREMENT = re.compile(r'"([A-Za-z][\w.-]*)>=([\d.]+)[^";]*(;[^"]*)?"')


def lowest(text: str) -> list[str]:
    """One line a package, such as "click==8.1"; where several extras want a package, the highest of its bounds."""
    table = text.partition("\n[project]\n")[2].partition("\n[project.scripts]")[0]
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, version, marker in _REQUIREMENT.findall(table):
        key = tuple(map(int, version.split(".")))
        if name not in found or found[name][0] < key:
            # 1.7 stands for the first release of 1.7, whether it is called 1.7 or 1.7.0
            found[name] = (key, f"{name}=={version}{marker.strip() and ' ' + marker.strip()}")
    return [line for _, (_, line) in sorted(found.items())]


if __name__ == "__main__":
    print(*lowest(_FILE.read_text(encoding="utf-8")), sep="\n")
