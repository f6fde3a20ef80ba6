"""What `predict --output` and `embed` share: the options of a run over many images, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vitdeploy.cli.terminal import echo, echo_json, echo_problem
from vitdeploy.data.images import is_address

if TYPE_CHECKING:
    from vitdeploy.bulk import BulkResult
    from vitdeploy.runtime import Classifier

__all__ = ["BulkOptions", "Opening", "answer_files", "bulk_options", "check_patterns", "engine_options"]

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


@dataclass(frozen=True)
class BulkOptions:
    """What `bulk_options` and `engine_options` were given, and `--csv-safe`, which is for classes alone."""

    overwrite: bool
    image_column: str | None
    workers: int | None
    batch_size: int | None
    engine: str
    address: str | None
    num_gpus: float | None
    csv_safe: bool = False

    def __post_init__(self) -> None:
        of_cluster = {"--address": self.address, "--num-gpus": self.num_gpus}
        given = [name for name, value in of_cluster.items() if value is not None]
        if given and not self.by_ray:
            raise click.UsageError(f"{', '.join(given)}: only with --engine ray.")
        if self.csv_safe and self.by_ray:
            raise click.UsageError("--csv-safe: Ray writes parquet, which needs none.")

    @property
    def by_ray(self) -> bool:
        return self.engine == "ray"

    def require_none(self) -> None:
        """Refuse them where no file is written.

        Raises:
            click.UsageError: one was given.
        """
        asked = {
            "--overwrite": self.overwrite,
            "--image-column": self.image_column,
            "--workers": self.workers,
            "--batch-size": self.batch_size,
            "--csv-safe": self.csv_safe,
            "--engine ray": self.by_ray,
        }
        if given := [name for name, value in asked.items() if value]:
            raise click.UsageError(f"{', '.join(given)}: only with --output.")


@dataclass(frozen=True)
class Opening:
    """What is run, and how it is opened: see `load`."""

    model: str
    backend: str
    precision: str
    threads: int | None
    revision: str | None
    threshold: float | None = None

    def load(self) -> Classifier:
        from vitdeploy.runtime import load

        return load(
            self.model,
            self.backend,
            self.precision,
            threads=self.threads,
            revision=self.revision,
            threshold=self.threshold,
        )


def answer_files(
    opening: Opening,
    images: tuple[str, ...],
    output: str,
    options: BulkOptions,
    *,
    top_k: int | None,
    as_json: bool,
) -> int:
    """Write the answers to all images, here or by Ray, and say what was done; the exit code: 1 if all images failed.

    `top_k` is None of an embedding, which gives vectors.
    """
    own = {} if top_k is None else {"top_k": top_k}
    shared: dict[str, Any] = {
        "image_column": options.image_column,
        "workers": options.workers,
        "batch": options.batch_size,
        "overwrite": options.overwrite,
        **own,
    }
    if options.by_ray:
        from vitdeploy.deploy import ray

        settings = ray.RaySettings(
            address=options.address,
            num_gpus=options.num_gpus or 0,
            backend=opening.backend,
            precision=opening.precision,
            threads=opening.threads,
            threshold=opening.threshold,
            **shared,
        )
        run = ray.embed_files if top_k is None else ray.predict_files
        done = run(opening.model, images, output, settings, revision=opening.revision)
        return _show(done, {"backend": done.backend, "precision": done.precision}, as_json)
    from vitdeploy import bulk

    bulk.check_output(output, overwrite=options.overwrite, inputs=images, vectors=top_k is None)
    with opening.load() as model:
        if top_k is None:
            result = bulk.embed_files(model, images, output, **shared)
        else:
            result = bulk.predict_files(model, images, output, csv_safe=options.csv_safe, **shared)
        how = {"backend": model.backend, "precision": model.precision}
    return _show(result, how, as_json)


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
