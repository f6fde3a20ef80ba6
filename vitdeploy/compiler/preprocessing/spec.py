"""An image processor of transformers -> PreprocessSpec, or an error that names the setting which can't be reproduced.

Processors differ in their settings and, some, in their code. The settings are read; code is trusted only where a class
does what the common base class does, or is one of the two that are known here (BEiT, whose only change concerns
segmentation maps, and ConvNeXt with its crop_pct). Any other override is refused: a graph that does something slightly
different from training is the bug this package exists to prevent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec

__all__ = ["spec_from_processor"]

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_STEPS = (
    "preprocess",
    "process_image",
    "_preprocess_image_like_inputs",
    "_prepare_image_like_inputs",
    "_preprocess",
    "resize",
    "center_crop",
    "rescale",
    "normalize",
    "rescale_and_normalize",
    "_fuse_mean_std_and_rescale_factor",
)
_KNOWN = {
    "BeitImageProcessor": {"preprocess", "_preprocess_image_like_inputs", "_preprocess"},
    "ConvNextImageProcessor": {"resize", "_preprocess"},
    "DINOv3ViTImageProcessor": {"_preprocess"},  # rescales before it resizes, which only spares a rounding
    "TimmImageProcessor": {"center_crop"},  # ours: crops where torchvision does
}


def spec_from_processor(processor: Any) -> PreprocessSpec:
    """Read the settings of an image processor of transformers, of either backend (torchvision or Pillow).

    Raises:
        ModelError: a setting, or a step that the class does in its own way, can't be reproduced; the message names it.
    """
    kind = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    _check_code(processor, kind)
    if getattr(processor, "do_pad", None):
        raise _refused("do_pad", True, "images of unequal size are not padded to one size")
    crop = _crop(processor)
    resize = _resize(processor)
    if kind == "ConvNextImageProcessor" and resize is not None:
        if crop is not None:
            raise _refused("do_center_crop", True, "ConvNeXt's crop_pct crops already")
        resize, crop = _convnext(processor)
    mean, std = _normalisation(processor)
    rounding: Literal["down", "even"] = "even" if kind == "TimmImageProcessor" else "down"
    return PreprocessSpec(resize, crop, _rescale(processor), mean, std, crop_rounding=rounding)


def _check_code(processor: Any, kind: str) -> None:
    bases = [base for base in type(processor).__mro__ if base.__name__ in ("PilBackend", "TorchvisionBackend")]
    if not bases:
        raise ModelError(
            f"the image processor {type(processor).__name__} is of no kind that is known",
            hint="use a processor of transformers 5, such as ViTImageProcessor, with the same settings",
        )
    for step in _STEPS:
        ours, common = getattr(type(processor), step, None), getattr(bases[0], step, None)
        if ours is not common and step not in _KNOWN.get(kind, ()):
            raise ModelError(
                f"the image processor {type(processor).__name__} does the step {step!r} in its own way",
                hint="use a processor whose steps are the common ones, such as ViTImageProcessor or BitImageProcessor",
            )


def _refused(setting: str, value: object, why: str) -> ModelError:
    return ModelError(
        f"the image processor's setting {setting}={value!r} can't be put in the graph: {why}",
        hint=f"change {setting} in preprocessor_config.json to what the graph can do, and train with that",
    )


def _sizes(value: Any, setting: str) -> dict[str, int]:
    """The keys of a size that are set: from a dict, a SizeDict, one number, or (height, width)."""
    if isinstance(value, bool) or value is None:
        raise _refused(setting, value, "it says no size")
    if isinstance(value, int):
        return {"height": value, "width": value}
    items = value.items() if isinstance(value, Mapping) else None
    if items is None and isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        items = {"height": value[0], "width": value[1]}.items()
    if items is None:
        items = vars(value).items()
    sizes = {str(key): size for key, size in items if size is not None}
    for size in sizes.values():
        if isinstance(size, bool) or size != int(size) or size < 1:
            raise _refused(setting, dict(sizes), "sizes are whole numbers of pixels from 1 on")
    return {key: int(size) for key, size in sizes.items()}


def _resize(processor: Any) -> ResizeSpec | None:
    if not getattr(processor, "do_resize", None):
        return None
    sizes = _sizes(getattr(processor, "size", None), "size")
    resample = _resample(getattr(processor, "resample", None))
    keys = set(sizes)
    if keys in ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        return ResizeSpec(resample=resample, **sizes)
    raise _refused("size", sizes, "known are height and width, shortest_edge, shortest_edge with longest_edge")


def _resample(value: Any) -> str:
    if value is None:
        return "bilinear"  # what both backends of transformers take then
    # Pillow's number, torchvision's InterpolationMode, or a name
    name = _RESAMPLE.get(int(value), "") if isinstance(value, int) else str(getattr(value, "value", value)).lower()
    if name not in _RESAMPLE.values():
        raise _refused("resample", value, f"known are {', '.join(sorted(_RESAMPLE.values()))}")
    return name


def _crop(processor: Any) -> tuple[int, int] | None:
    if not getattr(processor, "do_center_crop", None):
        return None
    sizes = _sizes(getattr(processor, "crop_size", None), "crop_size")
    if set(sizes) != {"height", "width"}:
        raise _refused("crop_size", sizes, "a centre crop has a height and a width")
    return sizes["height"], sizes["width"]


def _convnext(processor: Any) -> tuple[ResizeSpec, tuple[int, int] | None]:
    """Below 384 pixels: resize the shortest edge to size / crop_pct and crop; from 384 on: resize only."""
    sizes = _sizes(processor.size, "size")
    if "shortest_edge" not in sizes:
        raise _refused("size", sizes, "ConvNeXt's processor needs shortest_edge")
    edge, resample = sizes["shortest_edge"], _resample(processor.resample)
    if edge >= 384:
        return ResizeSpec(resample=resample, height=edge, width=edge), None
    crop_pct = getattr(processor, "crop_pct", None)
    if not isinstance(crop_pct, (int, float)) or not 0 < crop_pct <= 1:
        raise _refused("crop_pct", crop_pct, "it is a share above 0 and up to 1")
    return ResizeSpec(resample=resample, shortest_edge=int(edge / crop_pct)), (edge, edge)


def _rescale(processor: Any) -> float | None:
    if not getattr(processor, "do_rescale", None):
        return None
    factor = getattr(processor, "rescale_factor", None)
    if not isinstance(factor, (int, float)) or isinstance(factor, bool):
        raise _refused("rescale_factor", factor, "it is a number")
    return float(factor)


Triple = tuple[float, float, float]


def _normalisation(processor: Any) -> tuple[Triple | None, Triple | None]:
    if not getattr(processor, "do_normalize", None):
        return None, None
    mean = _channels(getattr(processor, "image_mean", None), "image_mean")
    std = _channels(getattr(processor, "image_std", None), "image_std")
    if 0.0 in std:
        raise _refused("image_std", list(std), "pixels can't be divided by zero")
    return mean, std


def _channels(value: Any, setting: str) -> Triple:
    numbers = [value] * 3 if isinstance(value, (int, float)) else list(value or ())
    if len(numbers) != 3:
        raise _refused(setting, value, "it has one number for each of three channels")
    red, green, blue = (float(number) for number in numbers)
    return red, green, blue
