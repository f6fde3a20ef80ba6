"""`vitdeploy build-engine`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.terminal import echo_json, program
from vitdeploy.cli.types import Names, ShapeRanges

if TYPE_CHECKING:
    from vitdeploy.compiler.build import BuildResult
    from vitdeploy.compiler.engine import EngineOptions, Profile
    from vitdeploy.compiler.recipe import Recipe
    from vitdeploy.specs import ShapeRange

__all__ = ["command"]


@click.command("build-engine")
@click.argument("bundle", type=click.Path())
@click.option("--fp32", is_flag=True, help="An engine in FP32.")
@click.option("--fp16", is_flag=True, help="The FP16 form, and an engine from it.")
@click.option("--bf16", is_flag=True, help="The BF16 form, and an engine from it.")
@click.option("--int8", is_flag=True, help="The INT8 form, and an engine from it.")
@click.option("--calibration", "recipe_file", type=click.Path(), metavar="RECIPE.toml", help="How to calibrate INT8.")
@click.option(
    "--calibration-data", metavar="D", help="Calibration images: a dataset or a folder; wins over the recipe's."
)
@click.option(
    "--int8-also",
    type=Names(),
    metavar="PARTS",
    help="Quantise more: attention, patch-embedding, classifier (a list with commas).",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100, min_open=True),
    metavar="POINTS",
    help="Keep layers out of INT8 until it loses no more top-1 than this, with 95 % confidence.",
)
@click.option(
    "--validation-images",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Measure that on so many images that do not calibrate.",
)
@click.option(
    "--target",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "onnx"]),
    help="auto: what this machine can build. onnx: the forms only, for ONNX Runtime and OpenVINO.",
)
@click.option(
    "--batch",
    type=ShapeRanges(1),
    multiple=True,
    metavar="MIN:OPT:MAX",
    help="Images a call. Default: 1:1:8. Several, repeated or with commas: a profile each.",
)
@click.option(
    "--image-size",
    type=ShapeRanges(2),
    multiple=True,
    metavar="MIN:OPT:MAX",
    help="Raw images, as in 1x1:480x640:1080x1920. Several: a profile each, with the --batch of its place.",
)
@click.option(
    "--workspace", type=int, metavar="MIB", help="The most scratch memory of kernels. Default: TensorRT's own."
)
@click.option("--optimization-level", type=click.IntRange(0, 5), help="0 builds fast, 5 tries most. Default: 3.")
@click.option("--max-aux-streams", type=click.IntRange(min=0), help="The most CUDA streams beside the main one.")
@click.option("--compute-capability", type=Names(), metavar="8.6,8.9", help="GPUs of a TensorRT-RTX engine.")
@click.option("--timing-cache", type=click.Path(dir_okay=False), help="Kernel timings of earlier TensorRT builds.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: an engine for all GPUs from Ampere on.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: an engine for later versions of the same major.")
@click.option(
    "--strip-weights",
    is_flag=True,
    help="TensorRT: an engine without weights, which it takes from the graph on loading.",
)
@click.option("--force", is_flag=True, help="Build again what is up to date.")
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def command(bundle: str, target: str, force: bool, as_json: bool, **options: Any) -> None:
    """Add FP16 and INT8 forms, and TensorRT engines from them, to BUNDLE.

    INT8 is calibrated on images of the training split. The bundle keeps the result, so that INT8 can be built again
    without images.

    \b
    Examples:
      vitdeploy build-engine bundles/vit --fp16 --int8 --calibration-data cifar10
      vitdeploy build-engine bundles/vit --int8 --calibration calibration/cifar10.toml --target onnx
      vitdeploy build-engine bundles/vit --fp16 --batch 1,1:8:32 --image-size 480x640,224:224:1080x1920
    """
    from vitdeploy.bundle import Bundle
    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.engine import choose_target

    precisions = [name for name in ("fp32", "fp16", "bf16", "int8") if options[name]]
    if not precisions:
        raise click.UsageError("No precision was asked for: add --fp16, --bf16, --int8 or more of them.")
    opened = Bundle.open(bundle)
    chosen = choose_target(target)
    result = build(
        opened,
        precisions,
        target=chosen,
        recipe=_recipe(options["recipe_file"], options["calibration_data"], options["int8_also"]),
        max_drop=options["max_drop"],
        validation_images=options["validation_images"],
        engine_options=None if chosen == "onnx" else _engine_options(chosen, options),
        force=force,
    )
    if as_json:
        echo_json(
            {
                "target": result.target,
                "built": [artifact.to_json() for artifact in result.built],
                "kept": [artifact.to_json() for artifact in result.kept],
                "stale": [artifact.to_json() for artifact in result.stale],
            }
        )
    else:
        _show(result)


def _recipe(file: str | None, data: str | None, also: tuple[str, ...] | None) -> Recipe | None:
    from vitdeploy.compiler.recipe import Placement, Recipe, read_recipe

    parts = [part.replace("-", "_") for part in also or ()]
    unknown = [part for part in parts if part not in vars(Placement())]
    if unknown:
        known = ", ".join(name.replace("_", "-") for name in vars(Placement()))
        raise click.BadParameter(f"{unknown[0]!r} is not one of {known}", param_hint="--int8-also")
    if file is None and data is None:
        if parts:
            raise click.UsageError("--int8-also needs images: add --calibration-data or --calibration.")
        return None
    recipe = Recipe() if file is None else read_recipe(file)
    wanted: dict[str, Any] = dict.fromkeys(parts, True)
    recipe = replace(recipe, **wanted)
    return recipe if data is None else recipe.with_data(data)


def _engine_options(flavour: str, options: dict[str, Any]) -> EngineOptions:
    from vitdeploy.compiler.engine import EngineOptions

    return EngineOptions(
        flavour=flavour,
        profiles=_profiles(options["batch"], options["image_size"]),
        workspace_mib=options["workspace"],
        optimization_level=options["optimization_level"],
        max_aux_streams=options["max_aux_streams"],
        compute_capabilities=options["compute_capability"] or (),
        timing_cache=None if options["timing_cache"] is None else Path(options["timing_cache"]),
        hardware_compatible=options["hardware_compatible"],
        version_compatible=options["version_compatible"],
        strip_weights=options["strip_weights"],
    )


def _profiles(
    batches: tuple[tuple[tuple[ShapeRange, ...], ...], ...], sizes: tuple[tuple[tuple[ShapeRange, ...], ...], ...]
) -> tuple[Profile, ...]:
    """The first batch with the first image size, and so on; one that is given once goes with each of the others."""
    from vitdeploy.compiler.engine import Profile

    batch: list[ShapeRange] = [ranges[0] for given in batches for ranges in given]
    size = [ranges for given in sizes for ranges in given]
    count = max(len(batch), len(size), 1)
    if len(batch) not in (0, 1, count) or len(size) not in (0, 1, count):
        raise click.UsageError(
            f"{len(batch)} of --batch and {len(size)} of --image-size make no profiles: give as many of both, or one"
        )
    profiles = []
    for place in range(count):
        height, width = size[place % len(size)] if size else (None, None)
        profiles.append(Profile(batch[place % len(batch)] if batch else None, height, width))
    return tuple(profiles)


def _show(result: BuildResult) -> None:
    from vitdeploy.runtime.engine_command import rebuild_command

    folder = result.bundle.path
    for artifact in result.built:
        if artifact.kind in ("onnx", "engine", "calibration"):
            click.echo(f"{folder / artifact.path}  {artifact.size_bytes / 1e6:.1f} MB")
    for artifact in result.kept:
        click.echo(f"{folder / artifact.path}  up to date")
    for artifact in result.stale:
        again = rebuild_command(artifact, folder, artifact.target)
        click.echo(f"{folder / artifact.path}  out of date, built from an earlier graph: {again}")
    click.echo(f"Next: {program()} bench {folder} --dataset DATASET --baseline MODEL")
