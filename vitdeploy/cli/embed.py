"""`vitdeploy embed`."""

from __future__ import annotations

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
from vitdeploy.cli.types import outside_paths_option, revision_option

__all__ = ["command"]


@click.command("embed")
@click.argument("bundle")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--output",
    required=True,
    type=click.Path(),
    help="Write one vector per image to this .parquet or .npy file; with --engine ray a folder.",
)
@opening_options
@bulk_options
@engine_options
@outside_paths_option
@revision_option
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(
    bundle: str,
    images: tuple[str, ...],
    output: str,
    backend: str,
    precision: str,
    threads: int | None,
    revision: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Write the embedding of each IMAGE, a file, a folder of images or a parquet file, with a bundle.

    The bundle is one of an embedding (export --task embedding): a folder, or OWNER/NAME on the Hugging Face Hub, which
    is fetched into its cache.

    A .parquet file has a row an image: image, row (of a table), embedding, a list of fixed size that vector databases
    read, null where the image can't be used, and then the error. A .npy file has the vectors alone, with NaN there, and
    OUTPUT.images.jsonl beside it says which image each row is of.

    With --engine ray the images are shared out among the machines of a Ray cluster, as predict says.

    Finished rows are kept in OUTPUT.partial, and a command that was stopped goes on from there when it is given again.
    The exit code is 1 if no image can be used.

    \b
    Examples:
      vitdeploy embed bundles/dinov2 photos --output vectors.parquet
      vitdeploy embed bundles/clip cat.png dog.jpg --output vectors.npy
    """
    check_patterns(images, "; or give the folder")
    check_options(options, writes=True)
    opening = Opening(bundle, revision, {"backend": backend, "precision": precision, "threads": threads})
    return answer_files(opening, images, output, options, embed=True, as_json=as_json)
