"""Text of strangers, such as labels and file names, as terminals and logs may show it."""

from __future__ import annotations

import re
import shlex

__all__ = ["on_one_line", "quoted", "visible", "visible_json"]

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


def quoted(word: object) -> str:
    """A path or name as one word of a command line that is shown to be copied.

    >>> quoted("my photos")
    "'my photos'"
    """
    return shlex.quote(str(word))
