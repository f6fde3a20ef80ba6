"""`vitdeploy finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitdeploy.cli.terminal import echo_json, program

_AUGMENTATIONS = ("none", "shift", "flip-shift")


@click.command()
@click.argument("model")
@click.option("--dataset", required=True, help="cifar10, digits, a Hub id, or a path: parquet files or class folders.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder to write the checkpoint to.")
@click.option("--overwrite", is_flag=True, help="Replace an OUTPUT that an earlier run wrote.")
@click.option("--epochs", type=float, default=3.0, show_default=True, help="Passes over the training images.")
@click.option("--max-steps", type=int, help="Stop after this many steps, whatever --epochs says.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images a step.")
@click.option("--learning-rate", type=float, default=5e-5, show_default=True, help="AdamW's peak learning rate.")
@click.option("--weight-decay", type=float, default=0.01, show_default=True, help="AdamW's weight decay.")
@click.option("--warmup-ratio", type=float, default=0.1, show_default=True, help="Part of the steps that warm up.")
@click.option("--label-smoothing", type=float, default=0.0, show_default=True, help="Spread this much of each target.")
@click.option(
    "--augment",
    type=click.Choice(_AUGMENTATIONS),
    default="none",
    show_default=True,
    help="Shift the training images at random; flip-shift also mirrors them (not for digits or text).",
)
@click.option("--image-size", type=int, help="Pixels a side, other than the checkpoint's.")
@click.option("--limit-train", type=int, help="Use a stratified sample of this many training images.")
@click.option("--limit-test", type=int, help="Use a stratified sample of this many test images.")
@click.option("--validation", type=int, help="Training images set aside to choose the best weights by; 0: none.")
@click.option("--image-column", help="Column with the images, where it can't be found.")
@click.option("--label-column", help="Column with the classes, where it can't be found.")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--distill", metavar="TEACHER", help="Learn from this classifier too: a Hub id or a local folder.")
@click.option(
    "--distill-kind",
    type=click.Choice(["auto", "soft", "hard"]),
    default="auto",
    show_default=True,
    help="The teacher's probabilities or its decisions. auto: hard for students with DeiT's distillation token.",
)
@click.option("--distill-temperature", type=float, default=3.0, show_default=True, help="Of soft labels.")
@click.option("--distill-weight", type=float, default=0.5, show_default=True, help="The teacher's part of the loss.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--threads", type=int, help="CPU threads; 1 is fastest for very small models. Default: one a core.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(as_json: bool, **options: Any) -> None:
    """Fine-tune MODEL, a Hub id or a local folder, on a dataset with train and test images.

    Writes the model, its image processor, the metrics and the training curve to OUTPUT, then prints the accuracy on
    the test images and one prediction.

    \b
    vitdeploy finetune google/vit-base-patch16-224-in21k --dataset cifar10 --output runs/vit --augment flip-shift
    vitdeploy finetune runs/backbone --dataset ./photos --output runs/photos --epochs 5 --limit-train 2000
    """
    from vitdeploy.training import FinetuneConfig, finetune

    result = finetune(FinetuneConfig(**options))
    if as_json:
        echo_json(result.to_json())
        return
    test, sample = result.data["test"], result.sample
    click.echo(f"test accuracy        {result.test_accuracy:.2%} of {test['count']} images of {test['name']}/test")
    if result.validation_accuracy is not None:
        count, step = result.data["validation"]["count"], result.curve.best_step
        click.echo(f"validation accuracy  {result.validation_accuracy:.2%} of {count} images, best at step {step}")
    click.echo(f"training             {result.steps} steps, {result.seconds:.0f} s in all")
    click.echo(f"one test image       {sample.label!r}, predicted {sample.predicted!r} with score {sample.score:.2f}")
    click.echo(f"written to           {result.output}")
    click.echo(f"next                 {program()} export {result.output} --output bundles/{result.output.name}")
