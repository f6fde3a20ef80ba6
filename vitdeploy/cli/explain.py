"""`vitdeploy explain`."""

from __future__ import annotations

from pathlib import Path

import click

from vitdeploy.cli.terminal import echo, echo_json
from vitdeploy.cli.types import trust_remote_code
from vitdeploy.core.precisions import precisions
from vitdeploy.core.text import on_one_line

__all__ = ["command"]


@click.command("explain")
@click.argument("model", metavar="BUNDLE_OR_MODEL")
@click.argument("image", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to write. Default: IMAGE's name and -explained."
)
@click.option("--precision", type=click.Choice(precisions()), help="Form of a bundle to explain. Default: fp32.")
@click.option(
    "--add-to-bundle", is_flag=True, help="Keep the pictures in the bundle, for bench's report. They show IMAGE."
)
@trust_remote_code
@click.option("--overwrite", is_flag=True, help="Replace an OUTPUT that an earlier call wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def command(
    model: str,
    image: str,
    output: Path | None,
    precision: str | None,
    add_to_bundle: bool,
    trust_remote_code: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw how a bundle or a checkpoint (Hub id or folder) sees IMAGE.

    Three PNG files: attention rollout over the image, cosine similarity of the position embeddings, and the patches
    as the model sees them. A bundle is looked into without PyTorch (onnx and onnxruntime are needed).

    \b
    vitdeploy explain bundles/vit cat.png --output cat-explained
    """
    from vitdeploy.cli.bulk import check_patterns
    from vitdeploy.explain import explain

    check_patterns((image,))
    folder = output or Path(f"{Path(image).stem}-explained")
    result = explain(
        model,
        image,
        folder,
        precision=precision,
        add_to_bundle=add_to_bundle,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
    )
    facts = result.to_json()
    if as_json:
        echo_json({**facts, "output": str(folder)})
        return
    inside, strongest = result.inside, facts["strongest_patch"]
    echo(f"prediction  {on_one_line(inside.prediction.label)}, {inside.prediction.top_k[0].text}")
    echo(
        f"attention   of {inside.looking}: strongest at row {strongest['row'] + 1}, column {strongest['column'] + 1} of"
        f" {inside.grid[0]}x{inside.grid[1]} patches, {strongest['times_even']:.1f} times an even spread"
    )
    for path in result.pictures:
        echo(f"written     {path}")
    for name in result.in_bundle:
        echo(f"in bundle   {name}")
