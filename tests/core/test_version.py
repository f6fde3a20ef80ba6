"""The version is written once, and a clone says which commit it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tools.command_line import invoke
from vitdeploy import __version__
from vitdeploy.core.version import full_version


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *who, *arguments], cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "Begin")
    return tmp_path


def test_a_clone_says_its_commit_and_whether_it_was_changed(clone: Path) -> None:
    commit = git(clone, "rev-parse", "--short=12", "HEAD")
    assert full_version(clone) == f"{__version__} (commit {commit})"
    (clone / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert full_version(clone) == f"{__version__} (commit {commit}, changed)"


def test_a_package_in_an_environment_inside_another_repository_says_its_version_alone(clone: Path) -> None:
    site = clone / ".venv" / "lib" / "site-packages"
    site.mkdir(parents=True)
    assert full_version(site) == __version__


def test_without_git_the_version_stays(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert full_version(clone) == __version__


def test_the_command_line_says_it() -> None:
    done = invoke("--version")
    assert done.exit_code == 0 and done.stdout == f"vitdeploy, version {full_version()}\n"


def test_the_version_is_written_in_one_file() -> None:
    root = Path(__file__).parents[2]
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    assert 'attr = "vitdeploy.__version__"' in text and f'"{__version__}"' not in text
    source = (root / "vitdeploy" / "__init__.py").read_text(encoding="utf-8")
    assert source.count(f'__version__ = "{__version__}"') == 1
