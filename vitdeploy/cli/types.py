"""Option types that several commands share."""

from __future__ import annotations

import re

import click

from vitdeploy.core.specs import LABEL_WAYS, ShapeRange

__all__ = [
    "ImageSize",
    "Names",
    "ShapeRanges",
    "match_labels",
    "outside_paths_option",
    "revision_option",
    "trust_remote_code",
]

match_labels = click.option(
    "--match-labels",
    type=click.Choice(LABEL_WAYS),
    default=LABEL_WAYS[0],
    show_default=True,
    help="Find the dataset's classes among the model's by name (or number), or by position.",
)

trust_remote_code = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that comes with the checkpoint. Read it first."
)


def _outside_paths(context: click.Context, _: click.Parameter, allowed: bool) -> None:
    from vitdeploy.data.outside import outside_paths

    context.with_resource(outside_paths(allowed))


outside_paths_option = click.option(
    "--allow-outside-paths",
    is_flag=True,
    expose_value=False,
    callback=_outside_paths,
    help="Read images that parquet files name outside their own folder.",
)

revision_option = click.option(
    "--revision", help="Branch, tag or commit of a bundle on the Hub. Default: its default branch."
)


class ImageSize(click.ParamType):  # type: ignore[type-arg]
    """`HxW` in pixels, or one number for a square: (height, width)."""

    name = "HxW"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value))
        if not found:
            self.fail(f"{value!r} is not a size; write HEIGHTxWIDTH, such as 480x640", param, ctx)
        height, width = int(found[1]), int(found[2] or found[1])
        if height < 1 or width < 1:
            self.fail(f"{value!r} has no pixels", param, ctx)
        return height, width


class ShapeRanges(click.ParamType):  # type: ignore[type-arg]
    """Ranges separated by commas, each `MIN:OPT:MAX` of `dimensions` numbers joined by x, or one value for all three:
    for each range a ShapeRange a dimension."""

    name = "MIN:OPT:MAX"

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[ShapeRange, ...], ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self._one(text.strip(), param, ctx) for text in str(value).split(","))

    def _one(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[ShapeRange, ...]:
        parts = text.split(":")
        numbers = [part.split("x") for part in parts]
        numbers = [number * self._dimensions if len(number) == 1 else number for number in numbers]
        form = "x".join(["N"] * self._dimensions)
        if len(parts) not in (1, 3) or any(
            len(number) != self._dimensions or not all(digits.isdecimal() for digits in number) for number in numbers
        ):
            self.fail(f"{text!r} is not {form} or {form}:{form}:{form}", param, ctx)
        minimum, optimum, maximum = numbers * 3 if len(parts) == 1 else numbers
        try:
            return tuple(
                ShapeRange(int(low), int(best), int(high))
                for low, best, high in zip(minimum, optimum, maximum, strict=True)
            )
        except ValueError as error:
            self.fail(f"{text!r}: {error}", param, ctx)


class Names(click.ParamType):  # type: ignore[type-arg]
    """Words separated by commas."""

    name = "A,B"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(word.strip() for word in str(value).split(","))
        if not all(words):
            self.fail(f"{value!r} has an empty part", param, ctx)
        return words
