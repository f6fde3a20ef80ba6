"""`vitdeploy explain`."""

from __future__ import annotations

from pathlib import Path

import click

from vitdeploy.cli.terminal import echo_json

__all__ = ["command"]


@click.command("explain")
@click.argument("model", metavar="BUNDLE_OR_MODEL")
@click.argument("image", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to write. Default: IMAGE's name and -explained."
)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Form of a bundle to look into. Default: fp32."
)
@click.option(
    "--add-to-bundle", is_flag=True, help="Keep the pictures in the bundle, for bench's report. They show IMAGE."
)
@click.option("--overwrite", is_flag=True, help="Replace an OUTPUT that an earlier call wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def command(
    model: str,
    image: str,
    output: Path | None,
    precision: str | None,
    add_to_bundle: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw what a bundle, or a checkpoint (Hub id or folder), does with IMAGE.

    Three PNG files: attention rollout over the image, cosine similarity of the position embeddings, and the patches
    as the model sees them. A bundle is looked into without PyTorch (onnx and onnxruntime are needed).

    \b
    vitdeploy explain bundles/vit cat.png --output cat-explained
    """
    from vitdeploy.explain import explain

    folder = output or Path(f"{Path(image).stem}-explained")
    result = explain(model, image, folder, precision=precision, add_to_bundle=add_to_bundle, overwrite=overwrite)
    facts = result.to_json()
    if as_json:
        echo_json({**facts, "output": str(folder)})
        return
    inside, strongest = result.inside, facts["strongest_patch"]
    click.echo(f"prediction  {inside.prediction.label}, {inside.prediction.score:.1%}")
    click.echo(
        f"attention   of {inside.looking}: strongest at row {strongest['row'] + 1}, column {strongest['column'] + 1} of"
        f" {inside.grid[0]}x{inside.grid[1]} patches, {strongest['times_even']:.1f} times an even spread"
    )
    for path in result.pictures:
        click.echo(f"written     {path}")
    for name in result.in_bundle:
        click.echo(f"in bundle   {name}")
