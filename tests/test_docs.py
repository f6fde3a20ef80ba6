"""The documents name only what exists: files behind links, commands, options, library calls."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from tests.tools.command_names import name_of, options_of
from tests.tools.documents import PAGES, ROOT, blocks
from vitdeploy.cli.app import COMMANDS


def anchors(page: Path) -> set[str]:
    """What a link may name on a page: its headings, as GitHub and the site spell them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in re.findall(r"^#+ (.+)$", text, flags=re.M))
    return {re.sub(r"\s", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            there = page.parent / target if target else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def commands(page: Path) -> list[list[str]]:
    """Each `vitdeploy ...` line of a page's shell blocks."""
    found = []
    for block in blocks(page):
        if block.is_program and block.language != "python":
            for line in block.script.replace("\\\n", " ").splitlines():
                if line.strip().startswith("vitdeploy "):
                    found.append(shlex.split(line, comments=True)[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    for name, *arguments in commands(page):
        assert name in COMMANDS, name
        whole = name_of((name, *arguments))
        for argument in arguments:
            if argument.startswith("-") and argument not in ("--help", "-", "--"):
                assert argument.partition("=")[0] in options_of(whole), f"{whole} {argument}"


def test_every_command_is_shown_in_the_readme_or_on_a_page() -> None:
    named = {name for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) for name, *_ in commands(page)}
    assert set(COMMANDS) <= named | {"demo"}  # the demo is `make demo` there


def test_library_calls_exist() -> None:
    calls = re.findall(r"`(vitdeploy(?:\.\w+)+)\(", (ROOT / "docs" / "library.md").read_text())
    assert len(calls) >= 7
    for call in calls:
        module, _, name = call.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name)), call


def test_python_in_the_documents_compiles_and_imports_what_exists() -> None:
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S):
            compile(block, str(page), "exec")
            for module, names in re.findall(r"^from (vitdeploy[\w.]*) import (.+)$", block, flags=re.M):
                for name in names.split(","):
                    assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name}"
