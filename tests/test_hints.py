"""Every error says what to do next, and what it says can be done: commands, options, extras, pages and names are there.

Hints are read from the sources here; those that errors really showed are tried again by `invoke`
(tests/tools/command_line.py), with the values they had.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.command_line import invoke
from tests.tools.hints import command_lines, dead_ends, hints, refused, without_hint


def test_no_hint_leads_nowhere() -> None:
    found = hints()
    assert len(found) > 350
    assert [f"{hint}: {wrong}" for hint in found if (wrong := dead_ends(hint.text))] == []


def test_each_command_line_of_a_hint_is_one_that_vitdeploy_takes() -> None:
    lines = [(hint, line) for hint in hints() for line in command_lines(hint.text)]
    assert len(lines) > 20
    assert [f"{hint}: {why}" for hint, line in lines if (why := refused(line, written=True))] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("vitdeploy export MODEL --output X", None),
        ("vitdeploy export X --output BUNDLE makes one of it", None),
        ("vitdeploy bench X --dataset DATA --rounds X", None),
        ("vitdeploy doctor says what this machine lacks", None),
        ("vitdeploy compare BEFORE.json AFTER.json", None),
        ("vitdeploy deploy triton", "Missing argument"),
        ("vitdeploy build-engine --target tensorrt", "Missing argument"),
        ("vitdeploy build-engine makes it", "Missing argument"),
        ("vitdeploy export MODEL", "Missing option"),
        ("vitdeploy predict BUNDLE IMAGE --backend tensorboard", "is not one of"),
        ("vitdeploy bench BUNDLE --dataset D --rounds many", "not a valid"),
        ("vitdeploy exprot MODEL", "no command"),
    ],
)
def test_a_command_line_that_is_refused_is_found(line: str, says: str | None) -> None:
    why = refused(line, written=True)
    assert why == says or (why is not None and says is not None and says in why)


def test_every_error_has_a_hint() -> None:
    assert without_hint() == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("vitdeploy export MODEL --output X", []),
        ("make one first: vitdeploy exprot MODEL --output X", ["vitdeploy exprot"]),
        ("vitdeploy export MODEL --outptu X", ["export --outptu", "--outptu"]),
        ("vitdeploy predict X --calibration-data D", ["predict --calibration-data"]),
        ("choose a --imagesize of 1 or more", ["--imagesize"]),
        ("pip install 'vitdeploy[cpu]'", []),
        ("pip install 'vitdeploy[gup]'", ["[gup]"]),
        ("see docs/int8.md", []),
        ("see docs/int9.md", ["docs/int9.md"]),
        ("vitdeploy.data.images.decode makes such arrays", []),
        ("vitdeploy.data.images.decoed makes such arrays", ["vitdeploy.data.images.decoed"]),
    ],
)
def test_a_dead_end_is_found(text: str, wrong: list[str]) -> None:
    assert dead_ends(text) == wrong


def test_a_hint_that_is_shown_is_followed(tmp_path: Path) -> None:
    """The first errors of a new user: each hint is taken, and leads on."""
    done = invoke("predict", tmp_path / "bundle", "cat.png")
    assert done.exit_code == 1 and f"vitdeploy export MODEL --output {tmp_path / 'bundle'}" in done.stderr
    done = invoke("export", tmp_path / "nothing", "--output", tmp_path / "bundle")
    assert done.exit_code == 1 and "Hint: " in done.stderr
