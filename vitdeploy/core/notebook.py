"""Small pieces of HTML for what a notebook shows of results: tables, bars, pictures. Text of any origin is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["bar", "cell", "picture", "table"]


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), caption: str = "") -> str:
    """A table of cells that are markup (`cell` makes it of text) under a head and a caption of text."""
    lines = [f"<tr>{''.join(f'<td>{content}</td>' for content in row)}</tr>" for row in rows]
    top = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead>" if head else ""
    said = f"<caption style='text-align:left'>{escape(caption)}</caption>" if caption else ""
    return f"<table>{said}{top}<tbody>{''.join(lines)}</tbody></table>"


def cell(text: object, *, bold: bool = False) -> str:
    """Text as markup."""
    return f"<b>{escape(str(text))}</b>" if bold else escape(str(text))


def bar(share: float) -> str:
    """A bar of that share of 160 pixels, 0..1."""
    width = round(160 * min(max(share, 0.0), 1.0))
    return f"<div style='width:{width}px;height:0.8em;background:#2563eb'></div>"


def picture(png: bytes, title: str) -> str:
    """A PNG file as an image inside the page."""
    return f"<img alt='{escape(title, quote=True)}' src='data:image/png;base64,{b64encode(png).decode()}'>"
