"""What `--help` of each command prints, on any machine the same.

python -m tests.tools.help_pages    writes tests/cli/goldens and docs/reference anew
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from tests.tools.command_line import invoke
from tests.tools.command_names import every_command

__all__ = ["FOLDER", "NAMES", "golden", "help_page"]

FOLDER = Path(__file__).parents[1] / "cli" / "goldens"
NAMES = ("vitdeploy", *every_command())
COLUMNS = 100


def golden(name: str) -> Path:
    """Where the page of a command is kept; `vitdeploy` is the whole."""
    return FOLDER / f"{name.replace(' ', '-')}.txt"


def help_page(name: str, columns: int = COLUMNS) -> str:
    """The page in a terminal of so many columns."""
    with mock.patch.dict(os.environ, COLUMNS=str(columns)):
        done = invoke(*(() if name == "vitdeploy" else name.split()), "--help")
    assert done.exit_code == 0 and not done.stderr, done.stderr
    return done.stdout


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name in NAMES:
        golden(name).write_text(help_page(name), encoding="utf-8")
    from tests.tools import reference  # it has these pages too

    reference.main()


if __name__ == "__main__":
    main()
