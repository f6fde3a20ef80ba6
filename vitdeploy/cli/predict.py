"""`vitdeploy predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from vitdeploy.cli.bulk import (
    Opening,
    answer_files,
    bulk_options,
    check_options,
    check_patterns,
    engine_options,
    opening_options,
)
from vitdeploy.cli.terminal import echo_json, echo_problem, new_console, program
from vitdeploy.cli.types import outside_paths_option, revision_option, trust_remote_code
from vitdeploy.core import progress
from vitdeploy.core.specs import TOP_K
from vitdeploy.core.text import on_one_line, quoted

__all__ = ["command"]


@click.command("predict")
@click.argument("model", metavar="BUNDLE_OR_MODEL")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "-k", "--top-k", type=click.IntRange(min=1), default=TOP_K, show_default=True, help="Classes shown per image."
)
@opening_options
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Score from which a label counts, of several labels an image. Default: the model's own.",
)
@click.option(
    "--output",
    type=click.Path(),
    help="Write one row per image to this .parquet, .csv or .jsonl file; IMAGE may then be folders and parquet files.",
)
@bulk_options
@click.option(
    "--csv-safe",
    is_flag=True,
    help="In CSV, put a ' before texts that a spreadsheet would compute: = + - @.",
)
@engine_options
@outside_paths_option
@revision_option
@trust_remote_code
@click.option("--json", "as_json", is_flag=True, help="Print the predictions as JSON.")
def command(
    model: str,
    images: tuple[str, ...],
    top_k: int,
    backend: str,
    precision: str,
    threads: int | None,
    threshold: float | None,
    output: str | None,
    revision: str | None,
    trust_remote_code: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Classify each IMAGE, a file, with a bundle; "-" reads one from standard input.

    The bundle is a folder, or OWNER/NAME on the Hugging Face Hub, which is fetched into its cache. The folder of a
    checkpoint will do for a first look: PyTorch runs it then.

    Where an image may have several labels, those in bold are the ones that it has: their score reaches the threshold.

    An image that can't be used is named on standard error, the others are still answered, and the exit code is 1.

    With --output an IMAGE may also be a folder of images or a parquet file, of any number of images. Finished rows are
    kept in OUTPUT.partial, and a command that was stopped goes on from there when it is given again. An image that
    can't be used is a row with its error; the exit code is 1 if all are.

    With --engine ray the images are shared out among the machines of a Ray cluster; IMAGE and --output may then be
    addresses (s3://, gs://, hdfs://), and OUTPUT is a folder of parquet files.

    \b
    Examples:
      vitdeploy predict bundles/vit cat.png dog.jpg --top-k 3
      vitdeploy predict runs/vit cat.png
      vitdeploy predict bundles/vit photos --output results.parquet
      vitdeploy predict bundles/vit s3://b/in --output s3://b/out --engine ray
    """
    check_patterns(images, "; or give the folder and --output FILE.csv")
    if _is_checkpoint(model):
        _bundles_only(model, backend, precision, output)
    check_options(options, writes=output is not None)
    how = {"backend": backend, "precision": precision, "threads": threads, "threshold": threshold}
    opening = Opening(model, revision, how)
    if output is not None:
        return answer_files(opening, images, output, {**options, "top_k": top_k}, embed=False, as_json=as_json)
    _check_files(images)
    sources: list[Any] = [sys.stdin.buffer.read() if image == "-" else image for image in images]
    if _is_checkpoint(model):
        from vitdeploy.runtime.checkpoint import predict_checkpoint

        answers = predict_checkpoint(
            model, sources, top_k, threads=threads, threshold=threshold, trust_remote_code=trust_remote_code
        )
        progress.note(f"Note: {model} is a checkpoint, run by PyTorch. For a device: {_export(model)}")
        return _show(images, answers, {"backend": "pytorch", "precision": "fp32"}, as_json)
    with opening.load() as classifier:
        answers = classifier.predict(sources, top_k, errors="return")
        form = {"backend": classifier.backend, "precision": classifier.precision}
    return _show(images, answers, form, as_json)


def _is_checkpoint(model: str) -> bool:
    """Whether what is to be run is the folder of a checkpoint."""
    from vitdeploy.bundle import Bundle
    from vitdeploy.models.folders import is_checkpoint

    path = Path(model).expanduser()
    return not Bundle.is_bundle(path) and is_checkpoint(path)


def _bundles_only(model: str, backend: str, precision: str, output: str | None) -> None:
    """Refuse what only bundles can do."""
    from vitdeploy.core.errors import InputError

    asked = {"--backend": backend != "auto", "--precision": precision != "auto", "--output": output is not None}
    if given := [name for name, is_given in asked.items() if is_given]:
        raise InputError(
            f"{model} is a checkpoint, and {given[0]} is for bundles", hint=f"export it first: {_export(model)}"
        )


def _export(model: str) -> str:
    return f"{program()} export {quoted(model)} --output {quoted(Path('bundles', Path(model).name))}"


def _check_files(images: tuple[str, ...]) -> None:
    """Refuse what only a run with --output takes."""
    from vitdeploy.bundle import Bundle
    from vitdeploy.core.errors import InputError

    for image in images:
        if Bundle.is_bundle(Path(image)):
            raise InputError(f"{image} is a bundle, not an image", hint="name the bundle first, then the images")
        if Path(image).is_dir() or image.lower().endswith(".parquet"):
            what = "is a folder" if Path(image).is_dir() else "holds many images"
            raise InputError(f"{image} {what}", hint="write the classes to a file: --output results.parquet")


def _show(images: tuple[str, ...], answers: list[Any], how: dict[str, str], as_json: bool) -> int:
    from vitdeploy.core.errors import ImageError

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
        message = error.message if image in error.message else f"{image}: {error.message}"
        echo_problem("Error", message, error.hint)
    return 1 if failed else 0


def _table(good: list[tuple[str, Any]], how: dict[str, str]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, caption=f"{how['precision']} on {how['backend']}", caption_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    several = any(prediction.labels is not None for _, prediction in good)
    if several:
        table.add_column("has it")
    for image, prediction in good:
        given = prediction.top_k[:1] if prediction.labels is None else prediction.labels
        shown = (*given, *(score for score in prediction.top_k if score not in given))  # all that it has
        for place, score in enumerate(shown):
            is_given = place < len(given)
            table.add_row(
                Text(on_one_line(image) if place == 0 else ""),
                Text(on_one_line(score.label), style="bold" if is_given else "dim"),
                Text(score.text, style="" if is_given else "dim"),
                *(["yes" if is_given else ""] if several else ()),
            )
    console = new_console()
    if not console.is_terminal:
        console.width = 160  # a pipe has no width: nothing is folded
    console.print(table)
