"""`vitdeploy predict`."""

from __future__ import annotations

import sys
from typing import Any

import click

from vitdeploy.cli.terminal import echo_json

__all__ = ["command"]

_BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
_PRECISIONS = ("auto", "fp32", "fp16", "int8")


@click.command("predict")
@click.argument("bundle", type=click.Path(file_okay=False))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "-k", "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes shown per image."
)
@click.option("--backend", type=click.Choice(_BACKENDS), default="auto", show_default=True, help="What runs the model.")
@click.option(
    "--precision", type=click.Choice(_PRECISIONS), default="auto", show_default=True, help="Which form of the model."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the backend's choice.")
@click.option("--json", "as_json", is_flag=True, help="Print the predictions as JSON.")
def command(
    bundle: str,
    images: tuple[str, ...],
    top_k: int,
    backend: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Classify each IMAGE, a file, with BUNDLE; "-" reads one from standard input.

    An image that can't be used is named on standard error, the others are still answered, and the exit code is 1.

    \b
    Example:
      vitdeploy predict bundles/vit cat.png dog.jpg --top-k 3
    """
    from vitdeploy.runtime import load

    with load(bundle, backend, precision, threads=threads) as classifier:
        sources: list[Any] = [sys.stdin.buffer.read() if image == "-" else image for image in images]
        answers = classifier.predict(sources, top_k, errors="return")
        how = {"backend": classifier.backend, "precision": classifier.precision}
    return _show(images, answers, how, as_json)


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
