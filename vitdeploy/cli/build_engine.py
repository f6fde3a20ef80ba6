"""`vitdeploy build-engine`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.terminal import echo, echo_json, program
from vitdeploy.cli.types import Names, ShapeRanges, match_labels, outside_paths_option
from vitdeploy.compiler.engine.target import TARGETS
from vitdeploy.compiler.quantization.counts import VALIDATION_IMAGES
from vitdeploy.core.precisions import asked_by, precisions, title
from vitdeploy.core.text import quoted

if TYPE_CHECKING:
    from vitdeploy.compiler.build import BuildResult
    from vitdeploy.compiler.engine import Profile
    from vitdeploy.compiler.quantization.recipe import Recipe
    from vitdeploy.core.specs import ShapeRange

__all__ = ["command"]


def _a_flag_for_each_precision(function: Callable[..., None]) -> Callable[..., None]:
    for name in reversed(precisions()):  # the last decorator is the first in --help
        help_text = f"The {title(name)} form, and an engine from it." if name != "fp32" else "Build an FP32 engine."
        function = click.option(f"--{name}", is_flag=True, help=help_text)(function)
    return function


@click.command("build-engine")
@click.argument("bundle", type=click.Path())
@_a_flag_for_each_precision
@click.option(
    "--calibration", "recipe_file", type=click.Path(), metavar="RECIPE.toml", help="How to calibrate INT8 and FP8."
)
@click.option(
    "--calibration-data", metavar="D", help="Calibration images: a dataset or a folder; wins over the recipe's."
)
@click.option(
    "--int8-also",
    type=Names(),
    metavar="PARTS",
    help="Quantise more: attention, patch-embedding, classifier (a list with commas).",
)
@click.option("--fp8-also", type=Names(), metavar="PARTS", help="The same for FP8.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100, min_open=True),
    metavar="POINTS",
    help="Keep layers out of INT8 and FP8 until they lose no more top-1 (embedding: kNN), with 95 % confidence.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="X",
    help="Of an embedding: until the mean cosine to FP32 is at least this.",
)
@click.option(
    "--min-recall",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="X",
    help="Of an embedding: until at least this share of FP32's nearest neighbours is found (recall@k).",
)
@click.option(
    "--neighbours",
    type=click.IntRange(min=1),
    metavar="K",
    help="Of an embedding: how many are looked at.  [default: 10]",
)
@click.option(
    "--validation-images",
    type=click.IntRange(min=1),
    default=VALIDATION_IMAGES,
    show_default=True,
    help="Measure these on this many images that are not used to calibrate.",
)
@match_labels
@click.option(
    "--target",
    default="auto",
    show_default=True,
    type=click.Choice(TARGETS),
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
    "--workspace",
    "workspace_mib",
    type=int,
    metavar="MIB",
    help="Most scratch memory for kernels. Default: TensorRT's own.",
)
@click.option("--optimization-level", type=click.IntRange(0, 5), help="0 builds fastest, 5 optimises most. Default: 3.")
@click.option("--max-aux-streams", type=click.IntRange(min=0), help="Most CUDA streams beside the main one.")
@click.option(
    "--compute-capability",
    "compute_capabilities",
    type=Names(),
    default=(),
    metavar="8.6,8.9",
    help="GPUs of a TensorRT-RTX engine.",
)
@click.option(
    "--timing-cache", type=click.Path(dir_okay=False, path_type=Path), help="Kernel timings of earlier TensorRT builds."
)
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: an engine for all GPUs from Ampere on.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: an engine for later versions of the same major.")
@click.option(
    "--strip-weights",
    is_flag=True,
    help="TensorRT: an engine without weights, which it takes from the graph on loading.",
)
@click.option(
    "--force", is_flag=True, help="Rebuild what is up to date, and keep INT8 whose calibration fails its check."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
@outside_paths_option
def command(
    bundle: str,
    as_json: bool,
    recipe_file: str | None,
    calibration_data: str | None,
    int8_also: tuple[str, ...] | None,
    fp8_also: tuple[str, ...] | None,
    batch: tuple[tuple[tuple[ShapeRange, ...], ...], ...],
    image_size: tuple[tuple[tuple[ShapeRange, ...], ...], ...],
    **options: Any,
) -> None:
    """Add FP16, INT8 and FP8 forms, and TensorRT engines from them, to BUNDLE.

    INT8 and FP8 are calibrated on images of the training split. The bundle keeps the result, so that they can be built
    again without images. FP8 is for GPUs of compute capability 8.9 and later: Ada, Hopper, Blackwell.

    \b
    Examples:
      vitdeploy build-engine bundles/vit --fp16 --int8 --calibration-data cifar10
      vitdeploy build-engine bundles/vit --int8 --target onnx \\
          --calibration calibration/cifar10.toml
      vitdeploy build-engine bundles/vectors --int8 --target onnx \\
          --calibration-data photos --min-cosine 0.998 --min-recall 0.8
      vitdeploy build-engine bundles/vit --fp16 --batch 1,1:8:32 \\
          --image-size 480x640,224:224:1080x1920
    """
    from vitdeploy.bundle import Bundle
    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.engine import EngineOptions, choose_target
    from vitdeploy.compiler.settings import BuildSettings
    from vitdeploy.core.settings import field_names, with_options

    wanted = [name for name in precisions() if options.pop(name)]
    if not wanted:
        raise click.UsageError(f"No precision was asked for: add {asked_by()}.")
    opened = Bundle.open(bundle)
    options["target"] = target = choose_target(options["target"])
    engine = {name: options.pop(name) for name in field_names(EngineOptions) if name in options}
    settings = BuildSettings(
        recipe=_recipe(recipe_file, calibration_data, int8_also, "--int8-also"),
        fp8_recipe=_recipe(recipe_file, calibration_data, fp8_also, "--fp8-also"),
        engine_options=None if target == "onnx" else EngineOptions(target, _profiles(batch, image_size), **engine),
    )
    result = build(opened, wanted, with_options(settings, options))
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


def _recipe(file: str | None, data: str | None, also: tuple[str, ...] | None, option: str) -> Recipe | None:
    """How to calibrate, with what `option` adds; None: as the bundle has it."""
    from vitdeploy.compiler.quantization.recipe import Placement, Recipe, read_recipe
    from vitdeploy.core.settings import field_names

    parts = [part.replace("-", "_") for part in also or ()]
    unknown = [part for part in parts if part not in field_names(Placement)]
    if unknown:
        known = ", ".join(name.replace("_", "-") for name in field_names(Placement))
        raise click.BadParameter(f"{unknown[0]!r} is not one of {known}", param_hint=option)
    if file is None and data is None:
        if parts:
            raise click.UsageError(f"{option} needs images: add --calibration-data or --calibration.")
        return None
    recipe = Recipe() if file is None else read_recipe(file)
    wanted: dict[str, Any] = dict.fromkeys(parts, True)
    recipe = replace(recipe, **wanted)
    return recipe if data is None else recipe.with_data(data)


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
    from vitdeploy.backends.tensorrt.command import rebuild_command

    folder = result.bundle.path
    for artifact in result.built:
        if artifact.kind in ("onnx", "engine", "calibration", "fp8-calibration"):
            echo(f"{folder / artifact.path}  {artifact.size_bytes / 1e6:.1f} MB")
    for artifact in result.kept:
        echo(f"{folder / artifact.path}  up to date")
    for artifact in result.stale:
        again = rebuild_command(artifact, folder, artifact.target)
        echo(f"{folder / artifact.path}  out of date, built from an earlier graph: {again}")
    echo(f"Next: {program()} bench {quoted(folder)} --dataset DATASET --baseline MODEL")
