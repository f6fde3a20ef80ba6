"""Text on terminals and pipes of any encoding."""

from __future__ import annotations

import codecs
import io
import sys

__all__ = ["any_encoding"]

_ASCII = {
    "✓": "+",
    "≤": "<=",
    "≥": ">=",
    "×": "x",
    "…": "...",
    "–": "-",
    "—": "-",
    "→": "->",
    "±": "+-",
    "·": ".",
    "µ": "u",
}
_ASCII |= dict.fromkeys("━╸╺─", "-")


def any_encoding() -> None:
    """Let standard output and error take any text: what their encoding does not have is written another way."""
    codecs.register_error("vitdeploy", _spelled_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="vitdeploy")


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = [_ASCII.get(sign) or sign.encode("ascii", "backslashreplace").decode("ascii") for sign in text]
    return "".join(plain), error.end
