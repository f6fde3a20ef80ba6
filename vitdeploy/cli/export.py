"""`vitdeploy export`."""

from __future__ import annotations

import click

from vitdeploy.cli.terminal import echo_json, program
from vitdeploy.cli.types import ImageSize

__all__ = ["command"]


@click.command("export")
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="The bundle's folder.")
@click.option(
    "--input-size",
    type=ImageSize(),
    metavar="HxW",
    help="Make the graph for raw images of this one size. Default: any size.",
)
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(
    model: str, output: str, input_size: tuple[int, int] | None, revision: str | None, overwrite: bool, as_json: bool
) -> None:
    """Export MODEL, a Hub id or a local folder, to a bundle.

    The graph takes raw uint8 images, (batch, height, width, 3), and gives logits: what the image processor does is
    inside. It is checked against PyTorch before it is written.

    \b
    Example:
      vitdeploy export runs/vit-cifar10 --output bundles/vit-cifar10
    """
    from vitdeploy.compiler.export import export

    bundle = export(model, output, input_size=input_size, revision=revision, overwrite=overwrite)
    if as_json:
        echo_json(bundle.manifest.to_json())
        return
    graph = bundle.find(kind="onnx", precision="fp32")
    assert graph is not None
    classes = len(bundle.manifest.labels)
    click.echo(f"{bundle.path / graph.path}  {graph.size_bytes / 1e6:.1f} MB, {classes} classes")
    click.echo(f"Next: {program()} build-engine {bundle.path} --fp16 --int8 --calibration-data DATASET")
