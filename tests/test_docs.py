"""The documents name only what exists: files behind links, commands, options, library calls."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from vitdeploy.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "calibration" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


def commands(page: Path) -> list[list[str]]:
    """Each `vitdeploy ...` line of a page's code, indented or fenced."""
    found, fenced = [], False
    for line in page.read_text().replace("\\\n", " ").splitlines():
        fenced ^= line.lstrip().startswith("```")
        match = re.match(r"(?:\$ )?(vitdeploy [a-z].*)", line.strip())
        if match and (fenced or line.startswith("    ")):
            found.append(shlex.split(match[1], comments=True)[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    for name, *arguments in commands(page):
        assert name in COMMANDS, name
        command = app.get_command(click.Context(app), name)
        assert command is not None
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for argument in arguments:
            if argument.startswith("-") and argument not in ("--help", "-"):
                assert argument.partition("=")[0] in options, f"{name} {argument}"


def test_the_readme_names_every_command() -> None:
    named = {name for name, *_ in commands(ROOT / "README.md")}
    assert set(COMMANDS) <= named | {"demo", "analyze"}  # the demo is `make demo` there, analyze in docs/int8.md


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
