"""`vitdeploy finetune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.parameters import GroupedCommand, defaults_of, section
from vitdeploy.cli.terminal import echo, echo_json, program
from vitdeploy.cli.types import match_labels, outside_paths_option, trust_remote_code
from vitdeploy.core.text import quoted
from vitdeploy.training.config import AUGMENTATIONS, DISTILL_KINDS, PRECISIONS, FinetuneConfig

if TYPE_CHECKING:
    from vitdeploy.training import DryRun, FinetuneResult

Callback = Callable[..., Any]


def _read_config(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """Make the file's settings the defaults of the options that follow."""
    if value is not None:
        from vitdeploy.training import read_settings

        ctx.default_map = {**(ctx.default_map or {}), **read_settings(value)}


def _flag(name: str, text: str) -> Callable[[Callback], Callback]:
    return click.option(f"--{name}/--no-{name}", help=text)


@click.command("finetune", cls=GroupedCommand)
@defaults_of(FinetuneConfig)
@click.argument("model")
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
@click.option(
    "--resume", is_flag=True, help="Continue from the last checkpoint of an interrupted run, if there is one."
)
@click.option("--dry-run", is_flag=True, help="Print settings, steps, estimated time and memory; write nothing.")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@trust_remote_code
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@outside_paths_option
@section("Data")
@click.option("--dataset", required=True, help="cifar10, digits, a Hub id, or a path: parquet files or class folders.")
@click.option("--limit-train", type=int, help="Use a stratified sample of this many training images.")
@click.option("--limit-test", type=int, help="Use a stratified sample of this many test images.")
@click.option("--validation", type=int, help="Training images set aside to choose the best weights by; 0: none.")
@click.option("--validation-split", help="Choose the best weights by this split, not by a part of train.")
@click.option("--test-split", help="Looked at once; without test: validation.")
@click.option("--image-column", help="Column with the images, where it can't be found.")
@click.option("--label-column", help="Column with the classes, where it can't be found.")
@match_labels
@_flag("skip-bad", "Decode every image once before training; list and skip those that can't be.")
@section("Recipe")
@click.option("--epochs", type=float, help="Passes over the training images. Default: 3; linear probe: 30.")
@click.option("--max-steps", type=int, help="Stop after this many optimizer steps, whatever --epochs says.")
@click.option("--batch-size", type=int, help="Images per pass, in each process.")
@click.option("--accumulate", type=int, help="Batches averaged for one optimizer step.")
@click.option("--learning-rate", type=float, help="AdamW's peak. Default: 5e-5; linear probe: 1e-3.")
@click.option(
    "--layer-decay",
    type=float,
    help="Learning rate of a layer as a share of that of the layer above; 1: equal rates.",
)
@click.option("--warmup-ratio", type=float, help="Part of the steps that warm up.")
@click.option("--weight-decay", type=float, help="AdamW's; not for biases and norms.")
@click.option("--clip-grad-norm", type=float, help="Largest gradient norm; 0: no limit.")
@click.option("--label-smoothing", type=float, help="Spread this much of each target.")
@click.option("--drop-path", type=float, help="Stochastic depth at the last layer.")
@click.option("--ema", type=float, help="Decay of the weights' moving average; 0: none.")
@click.option("--freeze", type=int, help="Freeze embeddings and this many first layers.")
@_flag("linear-probe", "Train a new head only, on features that are computed once.")
@click.option("--image-size", type=int, help="Pixels a side, other than the checkpoint's.")
@click.option("--patience", type=int, help="Stop after this many evaluations without a better one.")
@click.option("--seed", type=int, help="Seed of everything random.")
@section("Augmentation")
@click.option(
    "--augment",
    type=click.Choice(AUGMENTATIONS),
    help="Shift the training images at random; flip-shift also mirrors them (not for digits or text).",
)
@click.option("--randaugment", type=int, help="RandAugment's magnitude, 1-29; 0: none.")
@click.option("--mixup", type=float, help="Alpha of mixup; 0: none.")
@click.option("--cutmix", type=float, help="Alpha of CutMix; 0: none.")
@section("Distillation and quantisation")
@click.option("--distill", metavar="TEACHER", help="Learn from this classifier too: a Hub id or a local folder.")
@click.option(
    "--distill-kind",
    type=click.Choice(DISTILL_KINDS),
    help="The teacher's probabilities or its decisions. auto: hard for students with DeiT's distillation token.",
)
@click.option("--distill-temperature", type=float, help="Temperature of soft labels.")
@click.option("--distill-weight", type=float, help="The teacher's part of the loss.")
@click.option("--qat", metavar="BUNDLE", help="Tune with BUNDLE's INT8 rounding inside, and export back into it.")
@section("Machine")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Of the computation; auto: bf16 or fp16 on a GPU, fp32 on a CPU. Weights stay in fp32.",
)
@_flag("gradient-checkpointing", "Save memory by computing activations twice.")
@_flag("compile", "Run the model through torch.compile.")
@click.option("--threads", type=int, help="CPU threads; 1 is fastest for very small models. Default: one per core.")
@click.option("--workers", type=int, help="Processes that prepare images. Default: 0 on a CPU, up to 8 beside a GPU.")
@click.option("--save-every", type=int, help="Steps between checkpoints to resume from. Default: at each evaluation.")
@_flag("tensorboard", "Write event files for TensorBoard too.")
def command(as_json: bool, dry_run: bool, **options: Any) -> None:
    """Fine-tune MODEL, a Hub id or a local folder, on a dataset with train and test images.

    Writes the model, its image processor, the metrics and the training curve to OUTPUT, then prints the accuracy on
    the test images and one prediction. Runs under torchrun and accelerate launch as it is.

    \b
    vitdeploy finetune google/vit-base-patch16-224-in21k --dataset cifar10 \\
        --output runs/vit --augment flip-shift
    vitdeploy finetune runs/vit --dataset cifar10 --output runs/vit-qat \\
        --qat bundles/vit --max-steps 200
    vitdeploy finetune runs/backbone --dataset ./photos --output runs/photos \\
        --epochs 5 --limit-train 2000
    vitdeploy finetune runs/backbone --dataset ./photos --output runs/photos \\
        --config photos.toml --dry-run
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
    part = (
        f" ({test['name']} has no splits: a fixed part of its {test['carved_from']})" if "carved_from" in test else ""
    )
    tested = f"{test['count']} images of {test['name']}/{test['split']}{part}, looked at once"
    found = result.multi_label
    if found is None:
        echo(f"test accuracy        {result.test_accuracy:.2%} of {tested}")
    else:
        low, high = found.ci95
        echo(f"test mAP             {found.mean_average_precision:.2%} ({low:.1%} to {high:.1%}) of {tested}")
        echo(f"test F1              {found.f1_micro or 0:.2%} micro, {found.f1_macro or 0:.2%} macro")
        echo(f"test exact match     {found.exact_match:.2%}")
    if result.validation_accuracy is not None:
        count, step = result.data["validation"]["count"], result.curve.best_step
        name, value = "accuracy", result.validation_accuracy
        if found is not None:
            name, value = "mAP", result.metrics["validation_mean_average_precision"]
        echo(f"{f'validation {name}':<21}{value:.2%} of {count} images, best at step {step}")
    if found is not None:
        why = "" if result.threshold is None else ", the best for micro F1 on the validation images"
        echo(f"threshold            {found.threshold:.4g}: a label counts from this score{why}")
    for split, bad in result.skipped.items():
        for line in bad:
            echo(f"skipped in {split:9} {line}")
    echo(f"training             {result.steps} steps, {result.seconds:.0f} s in all")
    echo(f"one test image       {sample.label!r}, predicted {sample.predicted!r} with score {sample.score:.2f}")
    echo(f"written to           {result.output}")
    name = quoted(Path("bundles", result.output.name))
    echo(f"next                 {program()} export {quoted(result.output)} --output {name}")


def _print_plan(plan: DryRun) -> None:
    from vitdeploy.training.settings import to_toml

    echo(to_toml(plan.settings, "the resolved settings, as --config takes them"))
    images = ", ".join(f"{count} {split}" for split, count in plan.images.items())
    memory = plan.memory_bytes
    parts = ", ".join(f"{name} {_megabytes(size)}" for name, size in memory.items() if name != "total")
    echo(f"images               {images}")
    echo(f"parameters           {plan.parameters:,}, of which {plan.trainable:,} learn")
    echo(f"steps                {plan.steps} of {plan.images_per_step} images, {plan.evaluations} evaluations")
    most = "at most " if plan.busy else ""
    busy = f"; other programs used {plan.other_share:.0%} of it: try again without them" if plan.busy else ""
    echo(
        f"estimated time       {most}{_duration(plan.seconds)} on this machine ({plan.device}, {plan.precision}){busy}"
    )
    echo(f"estimated memory     {_megabytes(memory['total'])}: {parts}")
    for note in plan.notes:
        echo(f"note                 {note}")
    echo("Nothing was written.")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
