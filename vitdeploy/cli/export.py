"""`vitdeploy export`."""

from __future__ import annotations

from typing import Any

import click

from vitdeploy.cli.terminal import echo_json, program
from vitdeploy.cli.types import ImageSize

__all__ = ["command"]

_OUTPUTS = ("scores", "features", "attention")


@click.command("export")
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="The bundle's folder.")
@click.option(
    "--input-size",
    type=ImageSize(),
    metavar="HxW",
    help="Make the graph for raw images of this one size. Default: any size.",
)
@click.option(
    "--image-size",
    type=ImageSize(),
    metavar="HxW",
    help="What the model sees after preprocessing, if not the checkpoint's size: positions are interpolated.",
)
@click.option("--output-scores", is_flag=True, help="A second output: the softmax of the logits.")
@click.option(
    "--output-features", is_flag=True, help="A further output: the pooled embedding that the classifier reads."
)
@click.option("--output-attention", is_flag=True, help="A further output: the last layer's attention, for pictures.")
@click.option(
    "--merge-qkv/--separate-qkv",
    default=False,
    show_default="separate",
    help="Queries, keys and values by one product or by three.",
)
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(model: str, output: str, as_json: bool, **options: Any) -> None:
    """Export MODEL, a Hub id or a local folder, to a bundle.

    The graph takes raw uint8 images, (batch, height, width, 3), and gives logits: what the image processor does is
    inside. It is checked against PyTorch before it is written.

    \b
    Examples:
      vitdeploy export runs/vit-cifar10 --output bundles/vit-cifar10
      vitdeploy export google/vit-base-patch16-224 --output bundles/vit-384 --image-size 384
    """
    from vitdeploy.compiler.export import export

    outputs = ("logits", *(name for name in _OUTPUTS if options.pop(f"output_{name}")))
    bundle = export(model, output, outputs=outputs, **options)
    if as_json:
        echo_json(bundle.manifest.to_json())
        return
    graph = bundle.find(kind="onnx", precision="fp32")
    assert graph is not None
    classes = len(bundle.manifest.labels)
    click.echo(f"{bundle.path / graph.path}  {graph.size_bytes / 1e6:.1f} MB, {classes} classes")
    _show_passes(bundle.manifest.provenance["passes"])
    click.echo(f"Next: {program()} build-engine {bundle.path} --fp16 --int8 --calibration-data DATASET")


def _show_passes(passes: list[dict[str, Any]]) -> None:
    """What was cleaned, and which passes found nothing that fits them."""
    changed = [f"{entry['name']} {entry['changed']}" for entry in passes if entry["changed"]]
    click.echo(f"Graph: {', '.join(changed)}")
    for entry in passes:
        if not entry["changed"] and entry["name"] != "merge-qkv":
            click.echo(f"  {entry['name']} declined: {entry['declined']}")
