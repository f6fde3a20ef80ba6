"""What a terminal could obey is shown, not sent."""

from __future__ import annotations

import json

import pytest

from vitdeploy.core.text import on_one_line, visible, visible_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;TITLE\x07", "\\x1b]0;TITLE\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202emoc.live\u2066", "\\u202emoc.live\\u2066"),
        ("a\rb\x7f", "a\\x0db\\x7f"),
        ("\udcff", "\\udcff"),
        ("two\nlines\tand [bold] é 猫 😀", "two\nlines\tand [bold] é 猫 😀"),
    ],
)
def test_controls_become_escapes_and_the_rest_stays(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_name_stays_on_its_line() -> None:
    assert on_one_line("new\nline\t\x1b") == "new\\nline\\t\\x1b"


def test_json_means_the_same() -> None:
    value = {"label": "\x1b\x9b\u202e\x7f\u2028é", "list": [1, "\n"]}
    text = visible_json(json.dumps(value, indent=2, ensure_ascii=False))
    assert json.loads(text) == value and text.isprintable() is False and visible(text) == text
