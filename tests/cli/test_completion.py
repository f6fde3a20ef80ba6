"""One command gives a shell the completion of vitdeploy, which the shells themselves then try."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.command_line import invoke

SHELL_NAMES = ("bash", "zsh", "fish")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and a `vitdeploy` that the shell finds."""
    program = tmp_path / "bin" / "vitdeploy"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vitdeploy "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_it_is_installed_for_the_shell_in_use_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/bash")
    (home / ".bashrc").write_text("alias ll='ls -l'")  # no end of line
    for _ in range(2):
        done = invoke("completion")
        assert done.exit_code == 0, done.stderr
    script = home / ".local/share/vitdeploy/completion.bash"
    lines = (home / ".bashrc").read_text().splitlines()
    assert lines[0] == "alias ll='ls -l'" and len(lines) == 2 and str(script) in lines[1]
    assert str(script) in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "wanted"), [(("comp",), {"compare", "completion"}), (("bench", "--back"), {"--backend"})]
)
def test_bash_completes(home: Path, words: tuple[str, ...], wanted: set[str]) -> None:
    assert invoke("completion", "bash").exit_code == 0
    typed = " ".join(("vitdeploy", *words))
    # what Tab does in a shell that has read its startup file
    script = f". ~/.bashrc; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _vitdeploy_completion vitdeploy"
    script += '; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == wanted, done.stderr


@pytest.mark.parametrize("shell", SHELL_NAMES)
def test_the_script_can_be_printed_and_nothing_is_written(home: Path, shell: str) -> None:
    before = set(home.rglob("*"))
    done = invoke("completion", shell, "--print")
    assert done.exit_code == 0 and "_VITDEPLOY_COMPLETE" in done.stdout
    assert set(home.rglob("*")) == before


def test_fish_reads_its_own_folder(home: Path) -> None:
    assert invoke("completion", "fish").exit_code == 0
    assert "vitdeploy" in (home / ".config/fish/completions/vitdeploy.fish").read_text()
    assert not (home / ".bashrc").exists() and not (home / ".zshrc").exists()


def test_an_unknown_shell_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/dash")
    done = invoke("completion")
    assert done.exit_code == 2 and "vitdeploy completion bash" in done.stderr
