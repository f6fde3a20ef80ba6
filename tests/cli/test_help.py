"""Every `--help`, word for word: `make goldens` writes the pages anew, and the change is read in the diff."""

from __future__ import annotations

import pytest

from tests.tools.help_pages import FOLDER, NAMES, golden, help_page


@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("name", NAMES)
def test_no_page_is_wider_than_the_terminal(name: str, columns: int) -> None:
    page = help_page(name, columns)
    assert max(map(len, page.splitlines())) <= columns
    assert "\\b" not in page, "Click keeps lines behind the character, not behind its name"


@pytest.mark.parametrize("name", NAMES)
def test_help_is_the_recorded_page(name: str) -> None:
    assert help_page(name) == golden(name).read_text(encoding="utf-8"), "if the change is meant: make goldens"


def test_each_page_is_a_command() -> None:
    assert {*FOLDER.iterdir()} == {golden(name) for name in NAMES}
