"""How a bundle is made and what is built in it: the settings objects of `export` and of `build`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated

from vitdeploy.backends.tensorrt.options import EngineOptions
from vitdeploy.compiler.quantization.counts import VALIDATION_IMAGES
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.core.errors import InputError
from vitdeploy.core.settings import GROUP, OneOf, check, frozen
from vitdeploy.core.specs import ANSWERS, EXTRA_OUTPUTS, LabelWay
from vitdeploy.data.labels import BY_NAME
from vitdeploy.evaluation.limits import Limits
from vitdeploy.models.tasks import TaskRequest

__all__ = ["BuildSettings", "ExportSettings"]


@dataclass(frozen=True)
class ExportSettings:
    """What graph is made of a checkpoint; sequences may be given as lists.

    Args:
        request: what the graph answers: `task`, `normalize`, `labels`, `templates`.
        input_size: (height, width) of the raw images if they all have one size; the graph is then static in it.
        image_size: (height, width) of the pixel values that the model sees, if not the checkpoint's. Its position
            embeddings are interpolated as transformers does.
        outputs: beside the answer, of "scores", "features", "attention": see `frontend.tracing`.
        merge_qkv: compute queries, keys and values by one product.
        calibration_from: a bundle of the same tower, whose calibration is taken over: for other words, say.
        selftest_images: a folder of pictures that the bundle's self-test has beside its own; they are made small.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run Python code that comes with the checkpoint.
        overwrite: replace a bundle that is there.

    Raises:
        InputError: an output or a task that is not known, or what does not belong to the task.
    """

    request: Annotated[TaskRequest, GROUP] = field(default_factory=TaskRequest)
    input_size: tuple[int, int] | None = None
    image_size: tuple[int, int] | None = None
    outputs: Annotated[tuple[str, ...], OneOf("output", (*ANSWERS, *EXTRA_OUTPUTS))] = ()
    merge_qkv: bool = False
    calibration_from: str | os.PathLike[str] | None = None
    selftest_images: str | os.PathLike[str] | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        frozen(self)
        check(self)


@dataclass(frozen=True)
class BuildSettings:
    """How forms and engines are built.

    Args:
        target: "tensorrt", "tensorrt-rtx", "onnx" (no engine), or "auto": what this machine can build.
        recipe: how to calibrate INT8, with its dataset; None uses the bundle's calibration. FP16 looks for values that
            it can't hold on the same images.
        fp8_recipe: how to calibrate FP8; None: as INT8.
        limits: what INT8 and FP8 must keep: `max_drop`, `min_cosine`, `min_recall`, `neighbours`. As few layers as
            possible are kept out of them for it; with no limit none is, whatever that costs.
        validation_images: on how many images, other than those that calibrate, the limits are judged.
        match_labels: how their classes are found among the model's, "name" or "position": see `data.labels`.
        engine_options: batch and image sizes, workspace ... of the engines.
        force: build again what is up to date, and keep an INT8 whose calibration fails its check.

    Raises:
        InputError: a value out of range, or limits with nothing to judge them by.
    """

    target: str = "auto"
    recipe: Recipe | None = None
    fp8_recipe: Recipe | None = None
    limits: Annotated[Limits, GROUP] = field(default_factory=Limits)
    validation_images: int = VALIDATION_IMAGES
    match_labels: LabelWay = BY_NAME
    engine_options: EngineOptions | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.validation_images < 1:
            raise InputError("a budget needs validation images", hint="give a number above 0, like 2000")
        if self.limits and self.recipe is None:
            raise InputError(
                "a budget needs images to measure what is lost on", hint="add --calibration-data or --calibration"
            )
