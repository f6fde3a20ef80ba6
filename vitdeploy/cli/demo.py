"""`vitdeploy demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vitdeploy.cli.parameters import defaults_of
from vitdeploy.cli.terminal import echo, echo_json, program
from vitdeploy.core.text import quoted
from vitdeploy.demo import demo

if TYPE_CHECKING:
    from vitdeploy.demo import DemoResult

__all__ = ["command", "show_result"]


@click.command("demo")
@defaults_of(demo)
@click.option("-o", "--output", type=click.Path(file_okay=False), help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo wrote.")
@click.option(
    "--epochs",
    type=click.FloatRange(min=0, min_open=True),
    help="Train for this many epochs. Default: what the digits need.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of weights, order and benchmark.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(output: str, overwrite: bool, epochs: float | None, seed: int, as_json: bool) -> None:
    """Run the whole pipeline on this machine, offline.

    Trains a small ViT on scikit-learn's handwritten digits, exports it with preprocessing in the graph, makes its FP16
    and INT8 forms and the TensorRT engines that this machine can build, and compares every form with PyTorch. Then the
    same weights give each test image a vector, and the images most like one are found by it.

    \b
    Example:
      vitdeploy demo --output demo
    """
    result = demo(output, overwrite=overwrite, epochs=epochs, seed=seed)
    if as_json:
        echo_json(result.report.to_json())
        return
    show_result(result)


def show_result(result: DemoResult) -> None:
    """Print what was trained and measured, where it lies, and what to try next."""
    from vitdeploy.cli.bench import show_report

    count = result.training.metrics.get("test_samples")
    of = f" of {count:g} held-out images" if count else ""
    echo()
    echo(f"Trained to {result.training.test_accuracy:.2%}{of}.\n")
    show_report(result.report)
    for name, path in (
        ("checkpoint", result.checkpoint),
        ("bundle", result.bundle),
        ("vectors", result.vectors),
        ("report", result.report_json),
        ("report", result.report_html),
    ):
        echo(f"{name:<11} {path}")
    count = len(result.found)
    echo(f"\nSearch by an image: the {count} test images nearest to a {result.asked} are {', '.join(result.found)};")
    echo(f"{result.alike:.0%} of all images' {count} nearest show the same digit.")
    echo(f"\nNext: {program()} predict {quoted(result.bundle)} {quoted(result.image)}")
