"""Option types that several commands share."""

from __future__ import annotations

import re

import click

__all__ = ["ImageSize"]


class ImageSize(click.ParamType):
    """`HxW` in pixels, or one number for a square: (height, width)."""

    name = "HxW"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value))
        if not found:
            self.fail(f"{value!r} is no size; write HEIGHTxWIDTH, as in 480x640", param, ctx)
        height, width = int(found[1]), int(found[2] or found[1])
        if height < 1 or width < 1:
            self.fail(f"{value!r} has no pixels", param, ctx)
        return height, width
