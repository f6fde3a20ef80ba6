"""Whether a tag may be published: it is the version, and the changelog has a dated section of it.

python -m tests.tools.release v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vitdeploy import __version__

__all__ = ["obstacles"]

_CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"


def obstacles(tag: str, version: str, changelog: str) -> list[str]:
    """Why the tag may not be published; nothing where it may."""
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, but vitdeploy/__init__.py says {version}: it would have to be v{version}")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, flags=re.M):
        found.append(f"CHANGELOG.md has no line '## [{version}] - YYYY-MM-DD'")
    return found


if __name__ == "__main__":
    problems = obstacles(sys.argv[1], __version__, _CHANGELOG.read_text(encoding="utf-8"))
    sys.exit("\n".join(problems) or 0)
