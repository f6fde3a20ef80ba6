"""`vitdeploy finetune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.terminal import echo_json, program

if TYPE_CHECKING:
    from vitdeploy.training import DryRun, FinetuneResult

Callback = Callable[..., Any]
_AUGMENTATIONS = ("none", "shift", "flip-shift")
_PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def _read_config(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """Make the file's settings the defaults of the options that follow."""
    if value is not None:
        from vitdeploy.training import read_settings

        ctx.default_map = {**(ctx.default_map or {}), **read_settings(value)}


def _flag(name: str, text: str) -> Callable[[Callback], Callback]:
    return click.option(f"--{name}/--no-{name}", default=False, help=text)


@click.command()
@click.argument("model")
@click.option("--dataset", required=True, help="cifar10, digits, a Hub id, or a path: parquet files or class folders.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder to write the checkpoint to.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="TOML file of settings, named like these options; the command line wins.",
)
@click.option("--overwrite", is_flag=True, help="Replace an OUTPUT that an earlier run wrote.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run, if there is one.")
@click.option("--dry-run", is_flag=True, help="Print settings, steps, estimated time and memory; write nothing.")
@click.option("--epochs", type=float, help="Passes over the training images. Default: 3; linear probe: 30.")
@click.option("--max-steps", type=int, help="Stop after this many optimizer steps, whatever --epochs says.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images a pass, in each process.")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Batches averaged for one optimizer step.")
@click.option("--learning-rate", type=float, help="AdamW's peak. Default: 5e-5; linear probe: 1e-3.")
@click.option(
    "--layer-decay",
    type=float,
    default=0.85,
    show_default=True,
    help="Learning rate of a layer as a share of that of the layer above; 1: all the same.",
)
@click.option("--warmup-ratio", type=float, default=0.1, show_default=True, help="Part of the steps that warm up.")
@click.option("--weight-decay", type=float, default=0.01, show_default=True, help="AdamW's; not for biases and norms.")
@click.option("--clip-grad-norm", type=float, default=1.0, show_default=True, help="Largest gradient norm; 0: any.")
@click.option("--label-smoothing", type=float, default=0.0, show_default=True, help="Spread this much of each target.")
@click.option(
    "--augment",
    type=click.Choice(_AUGMENTATIONS),
    default="none",
    show_default=True,
    help="Shift the training images at random; flip-shift also mirrors them (not for digits or text).",
)
@click.option("--randaugment", type=int, default=0, show_default=True, help="RandAugment's magnitude, 1-29; 0: none.")
@click.option("--mixup", type=float, default=0.0, show_default=True, help="Alpha of mixup; 0: none.")
@click.option("--cutmix", type=float, default=0.0, show_default=True, help="Alpha of CutMix; 0: none.")
@click.option("--drop-path", type=float, default=0.0, show_default=True, help="Stochastic depth at the last layer.")
@click.option(
    "--ema", type=float, default=0.0, show_default=True, help="Decay of the weights' moving average; 0: none."
)
@click.option("--freeze", type=int, default=0, show_default=True, help="Freeze embeddings and this many first layers.")
@_flag("linear-probe", "Train a new head only, on features that are computed once.")
@click.option("--image-size", type=int, help="Pixels a side, other than the checkpoint's.")
@click.option(
    "--precision",
    type=click.Choice(_PRECISIONS),
    default="auto",
    show_default=True,
    help="Of the computation; auto: bf16 or fp16 on a GPU, fp32 on a CPU. Weights stay in fp32.",
)
@_flag("gradient-checkpointing", "Less memory for more time: compute activations twice.")
@_flag("compile", "Run the model through torch.compile.")
@click.option("--patience", type=int, help="Stop after this many evaluations without a better one.")
@click.option("--save-every", type=int, help="Steps between checkpoints to resume from. Default: at each evaluation.")
@click.option("--limit-train", type=int, help="Use a stratified sample of this many training images.")
@click.option("--limit-test", type=int, help="Use a stratified sample of this many test images.")
@click.option("--validation", type=int, help="Training images set aside to choose the best weights by; 0: none.")
@click.option("--image-column", help="Column with the images, where it can't be found.")
@click.option("--label-column", help="Column with the classes, where it can't be found.")
@_flag("skip-bad", "Decode every image once before training; list and skip those that can't be.")
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
@click.option("--qat", metavar="BUNDLE", help="Tune with BUNDLE's INT8 rounding inside, and export back into it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--threads", type=int, help="CPU threads; 1 is fastest for very small models. Default: one a core.")
@click.option("--workers", type=int, help="Processes that prepare images. Default: 0 on a CPU, up to 8 beside a GPU.")
@_flag("tensorboard", "Write event files for TensorBoard too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(as_json: bool, dry_run: bool, **options: Any) -> None:
    """Fine-tune MODEL, a Hub id or a local folder, on a dataset with train and test images.

    Writes the model, its image processor, the metrics and the training curve to OUTPUT, then prints the accuracy on
    the test images and one prediction. Runs under torchrun and accelerate launch as it is.

    \b
    vitdeploy finetune google/vit-base-patch16-224-in21k --dataset cifar10 --output runs/vit --augment flip-shift
    vitdeploy finetune runs/vit --dataset cifar10 --output runs/vit-qat --qat bundles/vit --max-steps 200
    vitdeploy finetune runs/backbone --dataset ./photos --output runs/photos --epochs 5 --limit-train 2000
    vitdeploy finetune runs/backbone --dataset ./photos --output runs/photos --config photos.toml --dry-run
    """
    bundle = options.pop("qat")
    if bundle is not None:
        from vitdeploy.cli.qat import tune_bundle

        tune_bundle(bundle, {**options, "dry_run": dry_run}, as_json)
        return
    from vitdeploy import training

    config = training.FinetuneConfig(**options)
    if dry_run:
        plan = training.dry_run(config)
        if as_json:
            echo_json(plan.to_json())
        else:
            _print_plan(plan)
        return
    result = training.finetune(config)
    if not training.is_main_process():
        return
    if as_json:
        echo_json(result.to_json())
    else:
        _print_result(result)


def _print_result(result: FinetuneResult) -> None:
    test, sample = result.data["test"], result.sample
    tested = f"{test['count']} images of {test['name']}/test, looked at once"
    click.echo(f"test accuracy        {result.test_accuracy:.2%} of {tested}")
    if result.validation_accuracy is not None:
        count, step = result.data["validation"]["count"], result.curve.best_step
        click.echo(f"validation accuracy  {result.validation_accuracy:.2%} of {count} images, best at step {step}")
    for split, bad in result.skipped.items():
        for line in bad:
            click.echo(f"skipped in {split:9} {line}")
    click.echo(f"training             {result.steps} steps, {result.seconds:.0f} s in all")
    click.echo(f"one test image       {sample.label!r}, predicted {sample.predicted!r} with score {sample.score:.2f}")
    click.echo(f"written to           {result.output}")
    click.echo(f"next                 {program()} export {result.output} --output bundles/{result.output.name}")


def _print_plan(plan: DryRun) -> None:
    from vitdeploy.training.settings import to_toml

    click.echo(to_toml(plan.settings, "the resolved settings, as --config takes them"))
    images = ", ".join(f"{count} {split}" for split, count in plan.images.items())
    memory = plan.memory_bytes
    parts = ", ".join(f"{name} {_megabytes(size)}" for name, size in memory.items() if name != "total")
    click.echo(f"images               {images}")
    click.echo(f"parameters           {plan.parameters:,}, of which {plan.trainable:,} learn")
    click.echo(f"steps                {plan.steps} of {plan.images_per_step} images, {plan.evaluations} evaluations")
    click.echo(f"estimated time       {_duration(plan.seconds)} on this machine ({plan.device}, {plan.precision})")
    click.echo(f"estimated memory     {_megabytes(memory['total'])}: {parts}")
    for note in plan.notes:
        click.echo(f"note                 {note}")
    click.echo("Nothing was written.")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
