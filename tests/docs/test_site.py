"""The site builds without a warning, from the pages as they are, and its reference is what the code says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.reference import FOLDER, PAGES

ROOT = Path(__file__).parents[2]


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    program = shutil.which("mkdocs", path=path)
    if program is None:
        pytest.skip("mkdocs is not installed: pip install '.[docs]'")
    command = [program, "build", "--strict", "--config-file", source / "mkdocs.yml", "--site-dir", site]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["NO_MKDOCS_2_WARNING"] = "1"
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


@pytest.mark.full
def test_the_site_builds_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    for page in ("", "tutorial/", "howto/slow-int8/", "repo/SECURITY/", "reference/python/"):
        text = (tmp_path / page / "index.html").read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?://', text), page
    assert (tmp_path / "repo" / "examples" / "classify.py").is_file(), "what pages link to is there"


@pytest.mark.full
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("docs", "calibration", "examples"):
        shutil.copytree(ROOT / name, source / name)
    for path in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml"):
        shutil.copy(path, source)
    for link in ("nowhere.md", "bench.md#no-such-heading"):
        (source / "docs" / "index.md").write_text(f"# Start\n\n[here]({link})\n", encoding="utf-8")
        done = build(source, tmp_path / "site")
        assert done.returncode == 1 and link.rpartition("#")[2] in done.stderr, done.stderr


def test_every_page_of_the_menu_is_there_and_every_page_is_in_it() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r": (\S+\.md)$", menu, flags=re.M))
    for page in named:
        assert (ROOT / (page.removeprefix("repo/") if page.startswith("repo/") else f"docs/{page}")).is_file(), page
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith("results/")} <= named


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_what_the_code_says(name: str) -> None:
    written = (FOLDER / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "if the change is meant: make goldens"
