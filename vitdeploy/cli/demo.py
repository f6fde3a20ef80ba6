"""`vitdeploy demo`."""

from __future__ import annotations

import click

from vitdeploy.cli.terminal import echo_json, program

__all__ = ["command"]


@click.command("demo")
@click.option(
    "-o", "--output", default="demo", show_default=True, type=click.Path(file_okay=False), help="Folder to write."
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo wrote.")
@click.option(
    "--epochs", type=click.FloatRange(min=0, min_open=True), help="Train shorter or longer than the digits need."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights, order and benchmark."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(output: str, overwrite: bool, epochs: float | None, seed: int, as_json: bool) -> None:
    """Run the whole story on this machine, offline.

    Trains a small ViT on scikit-learn's handwritten digits, exports it with preprocessing in the graph, makes its FP16
    and INT8 forms and the TensorRT engines that this machine can build, and compares every form with PyTorch.

    \b
    Example:
      vitdeploy demo --output demo
    """
    from vitdeploy.demo import demo

    result = demo(output, overwrite=overwrite, epochs=epochs, seed=seed)
    if as_json:
        echo_json(result.report.to_json())
        return
    from vitdeploy.cli.bench import show_report

    count = result.training.metrics.get("test_samples")
    of = f" of {count:g} held-out images" if count else ""
    click.echo(f"\nTrained to {result.training.test_accuracy:.2%}{of}.\n")
    show_report(result.report)
    for name, path in (
        ("checkpoint", result.checkpoint),
        ("bundle", result.bundle),
        ("report", result.report_json),
        ("report", result.report_html),
    ):
        click.echo(f"{name:<11} {path}")
    click.echo(f"\nNext: {program()} predict {result.bundle} {result.image}")
