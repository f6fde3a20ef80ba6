"""`vitdeploy predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.terminal import echo_json
from vitdeploy.runtime.selection import BACKENDS, PRECISIONS

if TYPE_CHECKING:
    from vitdeploy.bulk import BulkResult

__all__ = ["command"]

_FAILURES_SHOWN = 5


@click.command("predict")
@click.argument("bundle", type=click.Path(file_okay=False))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "-k", "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes shown per image."
)
@click.option(
    "--backend", type=click.Choice(("auto", *BACKENDS)), default="auto", show_default=True, help="What runs the model."
)
@click.option(
    "--precision",
    type=click.Choice(("auto", *PRECISIONS)),
    default="auto",
    show_default=True,
    help="Which form of the model.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the backend's choice.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    help="Write one row an image to this .parquet, .csv or .jsonl file; IMAGE may then be folders and parquet files.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace an --output that exists, or a stopped run that had other options."
)
@click.option("--image-column", help="The column of parquet files that holds the images. Default: found by its type.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Threads that decode for --output. Default: one a processor."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Most images of one call of the model. Default: 32.")
@click.option("--json", "as_json", is_flag=True, help="Print the predictions as JSON.")
def command(
    bundle: str,
    images: tuple[str, ...],
    top_k: int,
    backend: str,
    precision: str,
    threads: int | None,
    output: str | None,
    overwrite: bool,
    image_column: str | None,
    workers: int | None,
    batch_size: int | None,
    as_json: bool,
) -> int:
    """Classify each IMAGE, a file, with BUNDLE; "-" reads one from standard input.

    An image that can't be used is named on standard error, the others are still answered, and the exit code is 1.

    With --output an IMAGE may also be a folder of images or a parquet file, of any number of images. Finished rows are
    kept in OUTPUT.partial, and a command that was stopped goes on from there when it is given again. An image that
    can't be used is a row with its error; the exit code is 1 if all are.

    \b
    Examples:
      vitdeploy predict bundles/vit cat.png dog.jpg --top-k 3
      vitdeploy predict bundles/vit photos --output results.parquet
    """
    if output is not None:
        from vitdeploy.bulk import check_output, predict_files
        from vitdeploy.runtime import load

        check_output(output, overwrite=overwrite)
        with load(bundle, backend, precision, threads=threads) as classifier:
            result = predict_files(
                classifier,
                images,
                output,
                top_k=top_k,
                image_column=image_column,
                workers=workers,
                batch=batch_size,
                overwrite=overwrite,
            )
            how = {"backend": classifier.backend, "precision": classifier.precision}
        return _show_bulk(result, how, as_json)
    bulk_only = {
        "--overwrite": overwrite,
        "--image-column": image_column,
        "--workers": workers,
        "--batch-size": batch_size,
    }
    if given := [name for name, value in bulk_only.items() if value]:
        raise click.UsageError(f"{', '.join(given)}: only with --output.")
    _check_files(images)
    from vitdeploy.runtime import load

    with load(bundle, backend, precision, threads=threads) as classifier:
        sources: list[Any] = [sys.stdin.buffer.read() if image == "-" else image for image in images]
        answers = classifier.predict(sources, top_k, errors="return")
        how = {"backend": classifier.backend, "precision": classifier.precision}
    return _show(images, answers, how, as_json)


def _check_files(images: tuple[str, ...]) -> None:
    """Refuse what only a run with --output takes."""
    from vitdeploy.errors import InputError

    for image in images:
        if Path(image).is_dir() or image.lower().endswith(".parquet"):
            raise InputError(
                f"{image} holds many images", hint="write their classes to a file: --output results.parquet"
            )


def _show_bulk(result: BulkResult, how: dict[str, str], as_json: bool) -> int:
    if as_json:
        echo_json({**how, **result.to_json()})
    else:
        rate = f", {result.images_per_second:.1f} images/s" if result.images_per_second else ""
        earlier = f", {result.resumed} of them before" if result.resumed else ""
        click.echo(
            f"{result.images} images{earlier}, {result.failed} failed{rate} ({how['precision']} on {how['backend']})"
        )
        click.echo(result.output)
    for image, row, error in result.failures[:_FAILURES_SHOWN]:
        place = image if row is None else f"{image}, row {row}"
        click.secho("Failed: ", fg="red", bold=True, nl=False, err=True)
        click.echo(error if row is None and image in error else f"{place}: {error}", err=True)
    if result.failed > _FAILURES_SHOWN:
        click.echo(
            f"... and {result.failed - _FAILURES_SHOWN} more: the rows of {result.output} with an error", err=True
        )
    return 1 if result.failed == result.images else 0


def _show(images: tuple[str, ...], answers: list[Any], how: dict[str, str], as_json: bool) -> int:
    from vitdeploy.errors import ImageError

    failed = [(image, answer) for image, answer in zip(images, answers, strict=True) if isinstance(answer, ImageError)]
    good = [
        (image, answer) for image, answer in zip(images, answers, strict=True) if not isinstance(answer, ImageError)
    ]
    if as_json:
        predictions = [{"image": image, **answer.to_json()} for image, answer in good]
        errors = [{"image": image, "error": error.message, "hint": error.hint} for image, error in failed]
        echo_json({**how, "predictions": predictions, "errors": errors})
    elif good:
        _table(good, how)
    for image, error in failed:
        click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(error.message if image in error.message else f"{image}: {error.message}", err=True)
        if error.hint:
            click.secho("Hint: ", fg="yellow", bold=True, nl=False, err=True)
            click.echo(error.hint, err=True)
    return 1 if failed else 0


def _table(good: list[tuple[str, Any]], how: dict[str, str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, caption=f"{how['precision']} on {how['backend']}", caption_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    for image, prediction in good:
        for place, score in enumerate(prediction.top_k):
            table.add_row(
                Text(image if place == 0 else ""),
                Text(score.label, style="bold" if place == 0 else "dim"),
                Text(f"{score.score:.1%}", style="" if place == 0 else "dim"),
            )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a pipe has no width: nothing is folded
    console.print(table)
