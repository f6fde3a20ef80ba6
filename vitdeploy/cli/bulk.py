"""What `predict --output` and `embed` share: the options of a run over many images, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vitdeploy.cli.parameters import backend_option, precision_option
from vitdeploy.cli.terminal import echo, echo_json, echo_problem
from vitdeploy.core.addresses import is_address

if TYPE_CHECKING:
    from vitdeploy.bulk import BulkResult
    from vitdeploy.runtime import Classifier

__all__ = [
    "Opening",
    "answer_files",
    "bulk_options",
    "check_options",
    "check_patterns",
    "engine_options",
    "opening_options",
]

_FAILURES_SHOWN = 5
_Command = TypeVar("_Command", bound="Callable[..., Any] | click.Command")


def bulk_options(command: _Command) -> _Command:
    """How many images are read and run: fields of `AnswerSettings`."""
    for option in (
        click.option(
            "--batch-size", "batch", type=click.IntRange(min=1), help="Most images per call of the model. Default: 32."
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


def opening_options(command: _Command) -> _Command:
    """Which form of a bundle is opened, and how: `backend`, `precision`, `threads`."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the backend's choice."),
        precision_option("Precision of the form to run."),
        backend_option("What runs the model: auto, {names}."),
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


@dataclass(frozen=True)
class Opening:
    """What is run, and how it is opened: `how` are further arguments of `load`."""

    model: str
    revision: str | None
    how: Mapping[str, Any]

    def load(self) -> Classifier:
        from vitdeploy.runtime import load

        return load(self.model, revision=self.revision, **self.how)


def check_options(options: Mapping[str, Any], *, writes: bool) -> None:
    """Refuse what `bulk_options`, `engine_options` and `--csv-safe` were given that needs another option.

    Args:
        options: all of them, by name.
        writes: whether a file is written (--output).

    Raises:
        click.UsageError: that option is not there.
    """
    flags = {option.name: option.opts[0] for option in click.get_current_context().command.params}
    by_ray = options["engine"] == "ray"
    if not by_ray and (of_ray := [flags[name] for name in ("address", "num_gpus") if options[name] is not None]):
        raise click.UsageError(f"{', '.join(of_ray)}: only with --engine ray.")
    if by_ray and options.get("csv_safe"):
        raise click.UsageError("--csv-safe: Ray writes parquet, which needs none.")
    given = [flags[name] for name, value in options.items() if value and name != "engine"]
    given += ["--engine ray"] if by_ray else []
    if given and not writes:
        raise click.UsageError(f"{', '.join(given)}: only with --output.")


def answer_files(
    opening: Opening, images: tuple[str, ...], output: str, options: Mapping[str, Any], *, embed: bool, as_json: bool
) -> int:
    """Write the answers to all images, here or by Ray, and say what was done; the exit code: 1 if all images failed.

    `options` are the engine, and fields of `BulkSettings` or of `RaySettings`, None for the default.
    """
    settings = {name: value for name, value in options.items() if value is not None}
    if settings.pop("engine") == "ray":
        from vitdeploy.deploy import ray

        settings.pop("csv_safe", None)
        run = ray.embed_files if embed else ray.predict_files
        how = ray.RaySettings(**settings, **opening.how)
        done = run(opening.model, images, output, how, revision=opening.revision)
        return _show(done, {"backend": done.backend, "precision": done.precision}, as_json)
    from vitdeploy import bulk

    asked = bulk.BulkSettings(**settings)
    bulk.check_output(output, overwrite=asked.overwrite, inputs=images, vectors=embed)
    with opening.load() as model:
        result = (bulk.embed_files if embed else bulk.predict_files)(model, images, output, asked)
        form = {"backend": model.backend, "precision": model.precision}
    return _show(result, form, as_json)


def check_patterns(images: tuple[str, ...], instead: str = "") -> None:
    """Refuse a pattern that the shell did not expand; `instead`: what else the hint names.

    Raises:
        InputError: there is one.
    """
    from vitdeploy.core.errors import InputError

    for image in images:
        if re.search(r"[*?\[]", image) and not Path(image).exists() and not is_address(image):
            raise InputError(
                f"there is no file {image}: the pattern is in quotes, or nothing matches it",
                hint=f"write it without quotes, so that the shell expands it{instead}",
            )


def _show(result: BulkResult, how: dict[str, str], as_json: bool) -> int:
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
