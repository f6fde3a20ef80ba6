"""`vitdeploy analyze`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from vitdeploy.cli.terminal import echo_json

if TYPE_CHECKING:
    from vitdeploy.compiler.int8 import Analysis

__all__ = ["command"]


@click.command("analyze")
@click.argument("bundle", type=click.Path())
@click.option("--dataset", required=True, metavar="D", help="Labelled images: a name, Hub id or path.")
@click.option("--split", default="train", show_default=True, help="Where they come from; the test split is refused.")
@click.option("--count", type=click.IntRange(min=1), default=256, show_default=True, help="How many images.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(bundle: str, dataset: str, split: str, count: int, as_json: bool) -> None:
    """Say what each INT8 layer of BUNDLE costs: which to blame, which to leave out.

    For each layer: its share of the multiply-accumulates (MACs), the signal-to-noise ratio of its output (SQNR) and of
    the logits when only this layer is in INT8, and what top-1 loses then. The images are others than those that
    calibrated the bundle. The result stays in the bundle as analysis.json, and the report of bench shows it.

    \b
    Example:
      vitdeploy analyze bundles/vit --dataset cifar10
    """
    from dataclasses import replace

    from vitdeploy.bundle import Bundle
    from vitdeploy.compiler.int8 import analyze, recipe_of

    opened = Bundle.open(bundle)
    analysis = analyze(opened, replace(recipe_of(opened), split=split).with_data(dataset), count=count)
    if as_json:
        echo_json(analysis.to_json())
    else:
        _show(Console(highlight=False), analysis)


def _show(console: Console, analysis: Analysis) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("MACs", "SQNR dB", "logits dB", "drop", "agreement"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(analysis.rows, key=lambda row: row.damage, reverse=True):
        table.add_row(
            row.layer,
            f"{row.macs_share:.2%}",
            f"{row.sqnr_db:.1f}",
            f"{row.logits_db:.1f}",
            f"{row.judgement.drop:+.2f}",
            f"{row.judgement.agreement:.2f} %",
        )
    console.print(table)
    data = analysis.data
    console.print(
        f"{data['count']} images of {data['name']}/{data['split']}; each layer alone in INT8, the others in FP32; the"
        " most damaging per share of the MACs first. Kept as analysis.json."
    )
