"""Text of strangers, such as labels and file names, as terminals and logs may show it."""

from __future__ import annotations

import json
import re
import shlex

__all__ = ["first_line", "on_one_line", "quoted", "visible", "visible_json"]

_LONGEST = 300
# Controls (C0, DEL, C1) but newline and tab; marks, overrides and isolates of the bidirectional algorithm; separators
# of lines and paragraphs; halves of surrogate pairs, which no encoding has.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with what a terminal could obey, or show out of order, written as escapes: ESC as \\x1b.

    >>> visible("\\x1b[31mred\\u202e")
    '\\\\x1b[31mred\\\\u202e'
    """
    return _UNSAFE.sub(_escape, text)


def on_one_line(text: str) -> str:
    """`visible`, newlines and tabs too: for a name in a line, which must not become two."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def visible_json(text: str) -> str:
    """JSON whose strings hold none of these characters raw; it means the same."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def first_line(error: BaseException) -> str:
    """What an error of others says, in one line of 300 characters at most; its class where it says nothing."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # a heading alone says nothing
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def quoted(word: object) -> str:
    """A path or name as one word of a command line that is shown to be copied.

    >>> quoted("my photos")
    "'my photos'"
    """
    return shlex.quote(str(word))
