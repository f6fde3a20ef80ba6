"""`vitdeploy analyze`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from vitdeploy.bundle import CALIBRATIONS
from vitdeploy.cli.terminal import echo_json, new_console
from vitdeploy.cli.types import match_labels, outside_paths_option
from vitdeploy.compiler.quantization.counts import ANALYSIS_IMAGES
from vitdeploy.core.precisions import title

if TYPE_CHECKING:
    from vitdeploy.compiler.quantization.int8 import Analysis

__all__ = ["command"]

_COSTS = {"drop": "{:+.2f}", "agreement": "{:.2f} %", "cosine": "{:.5f}", "recall": "{:.4f}"}


@click.command("analyze")
@click.argument("bundle", type=click.Path())
@click.option(
    "--dataset", required=True, metavar="D", help="Images, labelled for a classifier: a name, Hub id or path."
)
@click.option(
    "--split", default="train", show_default=True, help="Which part of the dataset; test and all are refused."
)
@match_labels
@click.option(
    "--precision",
    type=click.Choice(tuple(CALIBRATIONS)),
    help="What to rank the layers of. Default: INT8, or FP8 where that is all there is.",
)
@click.option(
    "--count", type=click.IntRange(min=1), default=ANALYSIS_IMAGES, show_default=True, help="How many images."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@outside_paths_option
def command(
    bundle: str, dataset: str, split: str, precision: str | None, count: int, as_json: bool, **options: str
) -> None:
    """Rank the INT8 or FP8 layers of BUNDLE by the accuracy they cost.

    For each layer: its share of the multiply-accumulates (MACs), the signal-to-noise ratio of its output (SQNR) and of
    the answer when only this layer is rounded, and what top-1 loses then. Of an embedding: the cosine to FP32's
    vectors, how many of its 10 nearest neighbours are found (recall), how often the nearest is the same (agreement),
    and what a classifier by neighbours loses where the images have classes. The images are others than those that
    calibrated the bundle. The result stays in the bundle as analysis.json, and the report of bench shows it.

    \b
    Example:
      vitdeploy analyze bundles/vit --dataset cifar10
    """
    from dataclasses import replace

    from vitdeploy.bundle import Bundle
    from vitdeploy.compiler.quantization.int8 import analyze, recipe_of

    opened = Bundle.open(bundle)
    recipe = replace(recipe_of(opened, precision), split=split).with_data(dataset)
    analysis = analyze(opened, recipe, precision=precision, count=count, **options)
    if as_json:
        echo_json(analysis.to_json())
    else:
        _show(new_console(), analysis)


def _show(console: Console, analysis: Analysis) -> None:
    costs = [name for name in _COSTS if any(row.costs.get(name) is not None for row in analysis.rows)]
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("MACs", "SQNR dB", "answer dB", *costs):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(analysis.rows, key=lambda row: row.damage, reverse=True):
        table.add_row(
            row.layer,
            f"{row.macs_share:.2%}",
            f"{row.sqnr_db:.1f}",
            f"{row.logits_db:.1f}",
            *(_COSTS[name].format(row.costs[name]) for name in costs),
        )
    console.print(table)
    data = analysis.data
    console.print(
        f"{data['count']} images of {data['name']}/{data['split']}; each layer alone in {title(analysis.precision)},"
        " the others in FP32; the most damaging per share of the MACs first. Kept as analysis.json."
    )
    sentence = (data["matching"] or {}).get("sentence")  # of an embedding no classes are matched
    if sentence:
        console.print(f"Note: {sentence}.", markup=False)
