"""What `predict --output` and `embed` share: the options of a run over many images, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vitdeploy.cli.terminal import echo, echo_json, echo_problem
from vitdeploy.data.images import is_address

if TYPE_CHECKING:
    from vitdeploy.bulk import BulkResult

__all__ = ["bulk_options", "by_engine", "check_patterns", "engine_options", "show_bulk"]

_FAILURES_SHOWN = 5
_Command = TypeVar("_Command", bound="Callable[..., Any] | click.Command")


def bulk_options(command: _Command) -> _Command:
    """How many images are read and run: `overwrite`, `image_column`, `workers`, `batch_size`."""
    for option in (
        click.option(
            "--batch-size", type=click.IntRange(min=1), help="Most images per call of the model. Default: 32."
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="Threads that decode for --output. Default: one per processor.",
        ),
        click.option(
            "--image-column", help="The column of parquet files that holds the images. Default: found by its type."
        ),
        click.option(
            "--overwrite",
            is_flag=True,
            help="Replace an --output that exists, or a stopped run that had other options.",
        ),
    ):
        command = option(command)
    return command


def engine_options(command: _Command) -> _Command:
    """What carries out a run: `engine`, `address`, `num_gpus`."""
    for option in (
        click.option(
            "--num-gpus",
            type=click.FloatRange(min=0),
            help="GPUs of each of Ray's workers; 0.5 lets two share one. Default: 0.",
        ),
        click.option(
            "--address", help="Of the Ray cluster: auto, HOST:PORT. Default: RAY_ADDRESS, or this machine alone."
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="What carries out --output: this process, or the workers of a Ray cluster.",
        ),
    ):
        command = option(command)
    return command


def by_engine(engine: str, address: str | None, num_gpus: float | None) -> dict[str, Any] | None:
    """What Ray is told; None where it is not asked.

    Raises:
        click.UsageError: an option that is for Ray alone.
    """
    of_cluster = {"--address": address, "--num-gpus": num_gpus}
    if engine == "ray":
        return {"address": address, "num_gpus": num_gpus or 0}
    if given := [name for name, value in of_cluster.items() if value is not None]:
        raise click.UsageError(f"{', '.join(given)}: only with --engine ray.")
    return None


def check_patterns(images: tuple[str, ...]) -> None:
    """Refuse a pattern that the shell did not expand.

    Raises:
        InputError: there is one.
    """
    from vitdeploy.core.errors import InputError

    for image in images:
        if re.search(r"[*?\[]", image) and not Path(image).exists() and not is_address(image):
            raise InputError(
                f"there is no file {image}: the pattern is in quotes, or nothing matches it",
                hint="write it without quotes, so that the shell expands it; or give the folder and --output FILE.csv",
            )


def show_bulk(result: BulkResult, how: dict[str, str], as_json: bool) -> int:
    """Say what a run did; the exit code: 1 if all images failed."""
    if as_json:
        echo_json({**how, **result.to_json()})
    else:
        rate = f", {result.images_per_second:.1f} images/s" if result.images_per_second else ""
        earlier = f", {result.resumed} of them before" if result.resumed else ""
        echo(f"{result.images} images{earlier}, {result.failed} failed{rate} ({how['precision']} on {how['backend']})")
        echo(result.output)
    for image, row, error in result.failures[:_FAILURES_SHOWN]:
        place = image if row is None else f"{image}, row {row}"
        echo_problem("Failed", error if row is None and image in error else f"{place}: {error}")
    if result.failed > _FAILURES_SHOWN:
        echo(f"... and {result.failed - _FAILURES_SHOWN} more: the rows of {result.output} with an error", err=True)
    return 1 if result.failed == result.images else 0
