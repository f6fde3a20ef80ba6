"""`vitdeploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitdeploy.cli.terminal import echo, echo_json, program
from vitdeploy.cli.types import ImageSize, trust_remote_code
from vitdeploy.core.specs import EXTRA_OUTPUTS
from vitdeploy.core.text import quoted
from vitdeploy.models.tasks import EXPORTS, TASKS, TEMPLATE

__all__ = ["command"]


@click.command("export")
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="The bundle's folder.")
@click.option(
    "--task",
    type=click.Choice(EXPORTS),
    help="Its own classes, its embedding, or a classifier of words.  [default: what the checkpoint says]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Vectors of an embedding of length 1, or as they come.  [default: as the model compares them]",
)
@click.option(
    "--labels",
    "words",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The words of zero-shot, one a line.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help=f'A sentence around a word, as in "a photo of a {{}}."; several are averaged.  [default: {TEMPLATE}]',
)
@click.option(
    "--from",
    "calibration_from",
    type=click.Path(exists=True, file_okay=False),
    metavar="BUNDLE",
    help="Take the calibration over from a bundle of the same tower, as for other words.",
)
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
@click.option(
    "--output-scores",
    is_flag=True,
    help="A second output: the softmax of the logits, or the sigmoid of several labels.",
)
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
@click.option(
    "--selftest-images",
    type=click.Path(),
    metavar="FOLDER",
    help="Pictures of your own for the bundle's self-test, beside its 32; they are made small.",
)
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@trust_remote_code
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(model: str, output: str, words: Path | None, as_json: bool, **options: Any) -> None:
    """Export MODEL, a Hub id or a local folder, to a bundle.

    The graph takes raw uint8 images, (batch, height, width, 3), and gives logits, or an embedding of a checkpoint that
    is no classifier: what the image processor does is inside. It is checked against PyTorch before it is written.

    \b
    Examples:
      vitdeploy export runs/vit-cifar10 --output bundles/vit-cifar10
      vitdeploy export google/vit-base-patch16-224 --output bundles/vit-384 \\
          --image-size 384
      vitdeploy export openai/clip-vit-base-patch32 --output bundles/clip \\
          --task embedding
      vitdeploy export openai/clip-vit-base-patch32 --output bundles/pets \\
          --task zero-shot --labels labels.txt --template "a photo of a {}."
    """
    from vitdeploy.compiler.export import export
    from vitdeploy.compiler.settings import ExportSettings
    from vitdeploy.core.settings import with_options

    options["outputs"] = tuple(name for name in EXTRA_OUTPUTS if options.pop(f"output_{name}"))
    labels = () if words is None else _lines(words)
    bundle = export(model, output, with_options(ExportSettings(), {**options, "labels": labels}))
    if as_json:
        echo_json(bundle.manifest.to_json())
        return
    graph = bundle.find(kind="onnx", precision="fp32")
    assert graph is not None
    manifest = bundle.manifest
    what = manifest.embedding or f"{manifest.width} {TASKS[manifest.task].kind.numbers}"
    echo(f"{bundle.path / graph.path}  {graph.size_bytes / 1e6:.1f} MB, {what}")
    _show_passes(bundle.manifest.provenance["passes"])
    data = "" if bundle.find(kind="calibration") else " --calibration-data DATASET"
    echo(f"Next: {program()} build-engine {quoted(bundle.path)} --fp16 --int8{data}")


def _lines(file: Path) -> tuple[str, ...]:
    """The words of a file, one a line; empty lines are left out."""
    from vitdeploy.core.errors import InputError

    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} can't be read: {error}", hint="save it as text in UTF-8, one word a line") from error
    return tuple(filter(None, map(str.strip, lines)))


def _show_passes(passes: list[dict[str, Any]]) -> None:
    """What was cleaned; --verbose has said which passes found nothing that fits them."""
    changed = [f"{entry['name']} {entry['changed']}" for entry in passes if entry["changed"]]
    echo(f"Graph: {', '.join(changed)}")
