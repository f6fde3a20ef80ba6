"""Takes what the pages link to outside docs/ into the site, so that a link that works in the repository works there.

The file ROOT/x becomes repo/x of the site; links to and from such files are written anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_BEGIN = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "calibration/README.md")


def _targets(page: str) -> list[str]:
    """The repository's files that a page links to, as paths from the root."""
    found = []
    for _, target, _ in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if ":" not in target:
            found.append(os.path.normpath(PurePosixPath(page).parent / target))
    return found


def _on_site(path: str) -> str:
    """Where a file of the repository is in the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repo/{path}"


def _in_repository(path: str) -> str:
    return path.removeprefix("repo/") if path.startswith("repo/") else f"docs/{path}"


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/, and those they link to."""
    pages = [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    waiting = [*_BEGIN, *(target for page in pages for target in _targets(page))]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or path.startswith("docs/") or not (ROOT / path).is_file():
            continue
        seen.add(path)
        files.append(File.generated(config, _on_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting += _targets(path)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let relative links lead to the places on the site."""
    here = PurePosixPath(page.file.src_uri)
    original = PurePosixPath(_in_repository(str(here)))

    def moved(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if ":" in target:
            return match[0]
        path = _on_site(os.path.normpath(original.parent / target))
        return f"{before}{PurePosixPath(os.path.relpath(path, here.parent))}{after}"

    return _LINK.sub(moved, markdown)
