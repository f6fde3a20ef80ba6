"""An image processor of transformers -> PreprocessSpec, or an error that names the setting which can't be reproduced.

Processors differ in their settings and, some, in their code. The settings are read; code is trusted only where a class
does what the common base class does, or is a row of the table below, which says what its own code makes of its
settings. Any other override is refused: a graph that does something slightly different from training is the bug this
package exists to prevent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec

__all__ = ["sizes_of", "spec_from_processor"]

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


@dataclass(frozen=True)
class _Own:
    """A class with steps of its own: which, and what they make of the spec that its settings would mean elsewhere."""

    steps: frozenset[str]
    change: Callable[[Any, PreprocessSpec], PreprocessSpec] = lambda processor, spec: spec


def spec_from_processor(processor: Any) -> PreprocessSpec:
    """Read the settings of an image processor of transformers, of either backend (torchvision or Pillow).

    Raises:
        ModelError: a setting, or a step that the class does in its own way, can't be reproduced; the message names it.
    """
    kind = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    own = _OWN.get(kind, _Own(frozenset()))
    _check_code(processor, own.steps)
    if getattr(processor, "do_pad", None):
        raise _refused("do_pad", True, "images of unequal size are not padded to one size")
    mean, std = _normalisation(processor)
    rounding: Literal["down", "even"] = "even" if kind == "TimmImageProcessor" else "down"
    common = PreprocessSpec(
        _resize(processor), _crop(processor), _rescale(processor), mean, std, crop_rounding=rounding
    )
    return own.change(processor, common)


def _check_code(processor: Any, known: frozenset[str]) -> None:
    bases = [base for base in type(processor).__mro__ if base.__name__ in ("PilBackend", "TorchvisionBackend")]
    if not bases:
        raise ModelError(
            f"the image processor {type(processor).__name__} is of no kind that is known",
            hint="use a processor of transformers 5, such as ViTImageProcessor, with the same settings",
        )
    for step in _STEPS:
        ours, common = getattr(type(processor), step, None), getattr(bases[0], step, None)
        if ours is not common and step not in known:
            raise ModelError(
                f"the image processor {type(processor).__name__} does the step {step!r} in its own way",
                hint="use a processor whose steps are the common ones, such as ViTImageProcessor or BitImageProcessor",
            )


def _refused(setting: str, value: object, why: str) -> ModelError:
    return ModelError(
        f"the image processor's setting {setting}={value!r} can't be put in the graph: {why}",
        hint=f"change {setting} in preprocessor_config.json to what the graph can do, and train with that",
    )


def sizes_of(value: Any, setting: str) -> dict[str, int]:
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
    sizes = sizes_of(getattr(processor, "size", None), "size")
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
    sizes = sizes_of(getattr(processor, "crop_size", None), "crop_size")
    if set(sizes) != {"height", "width"}:
        raise _refused("crop_size", sizes, "a centre crop has a height and a width")
    return sizes["height"], sizes["width"]


def _rescale(processor: Any) -> float | None:
    if not getattr(processor, "do_rescale", None):
        return None
    factor = getattr(processor, "rescale_factor", None)
    if not isinstance(factor, (int, float)) or isinstance(factor, bool):
        raise _refused("rescale_factor", factor, "it is a number")
    if factor == 0 or not math.isfinite(factor):
        raise _refused("rescale_factor", factor, "all images would be the same to the model")
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
    finite = all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers)
    if len(numbers) != 3 or not finite:
        raise _refused(setting, value, "it has one number for each of three channels")
    red, green, blue = (float(number) for number in numbers)
    return red, green, blue


def _convnext(processor: Any, spec: PreprocessSpec) -> PreprocessSpec:
    """Below 384 pixels: resize the shortest edge to size / crop_pct and crop; from 384 on: resize only."""
    if spec.resize is None:
        return spec
    if spec.crop is not None:
        raise _refused("do_center_crop", True, "ConvNeXt's crop_pct crops already")
    edge = spec.resize.shortest_edge
    if edge is None:
        raise _refused("size", sizes_of(processor.size, "size"), "ConvNeXt's processor needs shortest_edge")
    if edge >= 384:
        return replace(spec, resize=ResizeSpec(spec.resize.resample, height=edge, width=edge))
    wider = int(edge / _crop_share(processor))
    return replace(spec, resize=ResizeSpec(spec.resize.resample, shortest_edge=wider), crop=(edge, edge))


def _poolformer(processor: Any, spec: PreprocessSpec) -> PreprocessSpec:
    """Resize the shortest edge to size / crop_pct, also where size is a square."""
    resize = spec.resize
    if resize is None or getattr(processor, "crop_pct", None) is None:
        return spec
    if resize.longest_edge is not None or resize.height != resize.width:
        raise _refused("size", sizes_of(processor.size, "size"), "with crop_pct it is shortest_edge or a square")
    edge = int((resize.shortest_edge or resize.height or 0) / _crop_share(processor))
    return replace(spec, resize=ResizeSpec(resize.resample, shortest_edge=edge))


def _crop_share(processor: Any) -> float:
    share = getattr(processor, "crop_pct", None)
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise _refused("crop_pct", share, "it is a share above 0 and up to 1")
    return share


def _levit(processor: Any, spec: PreprocessSpec) -> PreprocessSpec:
    """A shortest edge is taken 256 / 224 times as long."""
    if spec.resize is None or spec.resize.shortest_edge is None:
        return spec
    edge = int((256 / 224) * spec.resize.shortest_edge)
    return replace(spec, resize=ResizeSpec(spec.resize.resample, shortest_edge=edge))


def _efficientnet(processor: Any, spec: PreprocessSpec) -> PreprocessSpec:
    """Take 1 off the rescaled pixels (`rescale_offset`), and divide by the deviation once more (`include_top`)."""
    lower = 1.0 if spec.rescale is not None and getattr(processor, "rescale_offset", False) else 0.0
    again = getattr(processor, "include_top", True)
    if spec.mean is None and not again and not lower:
        return spec
    mean, std = spec.mean or (0.0,) * 3, spec.std or (1.0,) * 3
    if again:
        top = _channels(getattr(processor, "image_std", None), "image_std")
        std = (std[0] * top[0], std[1] * top[1], std[2] * top[2])
    return replace(spec, mean=(mean[0] + lower, mean[1] + lower, mean[2] + lower), std=std)


def _mobilevit(processor: Any, spec: PreprocessSpec) -> PreprocessSpec:
    """It never normalises, and gives blue, green, red unless told otherwise."""
    flips = getattr(processor, "do_flip_channel_order", True)
    return replace(spec, mean=None, std=None, channels="bgr" if flips else "rgb")


def _never_crops(processor: Any, spec: PreprocessSpec) -> PreprocessSpec:
    return replace(spec, crop=None)


def _dpt(processor: Any, spec: PreprocessSpec) -> PreprocessSpec:
    """Edges become multiples of `ensure_multiple_of`; it does not crop."""
    resize, multiple = spec.resize, getattr(processor, "ensure_multiple_of", None) or 1
    if resize is None:
        return _never_crops(processor, spec)
    if getattr(processor, "keep_aspect_ratio", False):
        raise _refused("keep_aspect_ratio", True, "images would differ in size")
    if resize.height is None or resize.width is None:
        raise _refused("size", sizes_of(processor.size, "size"), "DPT's processor needs height and width")
    edges = [round(edge / multiple) * multiple for edge in (resize.height, resize.width)]
    return replace(spec, resize=ResizeSpec(resize.resample, height=edges[0], width=edges[1]), crop=None)


_MAPS = frozenset({"preprocess", "_preprocess_image_like_inputs", "_preprocess"})  # take segmentation maps as well
_OWN = {
    "BeitImageProcessor": _Own(_MAPS),
    "ConvNextImageProcessor": _Own(frozenset({"resize", "_preprocess"}), _convnext),
    "DINOv3ViTImageProcessor": _Own(frozenset({"_preprocess"})),  # rescales before it resizes: a rounding less
    "DPTImageProcessor": _Own(_MAPS | {"resize"}, _dpt),
    "EfficientNetImageProcessor": _Own(
        frozenset({"rescale", "_preprocess", "_fuse_mean_std_and_rescale_factor"}), _efficientnet
    ),
    "LevitImageProcessor": _Own(frozenset({"resize"}), _levit),
    "MobileNetV2ImageProcessor": _Own(_MAPS),
    "MobileViTImageProcessor": _Own(_MAPS, _mobilevit),
    "PoolFormerImageProcessor": _Own(frozenset({"resize", "_preprocess"}), _poolformer),
    "SegformerImageProcessor": _Own(_MAPS, _never_crops),
    "TimmImageProcessor": _Own(frozenset({"center_crop"})),  # ours: crops where torchvision does
}
"""By the name that a class has without its backend."""
