"""`vitdeploy embed`."""

from __future__ import annotations

from typing import Any

import click

from vitdeploy.cli.bulk import bulk_options, by_engine, check_patterns, engine_options, show_bulk
from vitdeploy.cli.parameters import backend_option, precision_option
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
@backend_option("What runs the model: auto, {names}.")
@precision_option("Precision of the form to run.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the backend's choice.")
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
    overwrite: bool,
    image_column: str | None,
    workers: int | None,
    batch_size: int | None,
    engine: str,
    address: str | None,
    num_gpus: float | None,
    revision: str | None,
    as_json: bool,
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
    check_patterns(images)
    options: dict[str, Any] = {
        "image_column": image_column,
        "workers": workers,
        "batch": batch_size,
        "overwrite": overwrite,
    }
    of_ray = by_engine(engine, address, num_gpus)
    if of_ray is not None:
        from vitdeploy.deploy.ray import embed_files as embed_by_ray

        form: dict[str, Any] = {"backend": backend, "precision": precision, "threads": threads, "revision": revision}
        done = embed_by_ray(bundle, images, output, **form, **options, **of_ray)
        return show_bulk(done, {"backend": done.backend, "precision": done.precision}, as_json)
    from vitdeploy.bulk import check_output, embed_files
    from vitdeploy.runtime import load

    check_output(output, overwrite=overwrite, inputs=images, vectors=True)
    with load(bundle, backend, precision, threads=threads, revision=revision) as model:
        result = embed_files(model, images, output, **options)
        how = {"backend": model.backend, "precision": model.precision}
    return show_bulk(result, how, as_json)
