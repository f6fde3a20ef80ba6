"""A checkpoint's image processor: transformers' own, with settings that leave no doubt put in the form it takes."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.errors import ModelError, VitdeployError, require
from vitdeploy.core.specs import PreprocessSpec
from vitdeploy.core.storage import read_json, refuse_pointer
from vitdeploy.core.text import first_line
from vitdeploy.models import hub
from vitdeploy.models.configs import code_refused, configuration, custom_code
from vitdeploy.models.folders import PROCESSORS, CheckpointFolder

__all__ = ["load_processor"]

_TIMM_SHARE = 0.875  # timm's crop_pct where none is set
_IMAGENET = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}  # what timm normalises by where nothing is set
_STAND_INS: dict[
    str, dict[str, Any]
] = {  # plain steps, but written for torchvision alone: what ViTImageProcessor is told where nothing is set
    "DINOv3ViTImageProcessor": {"image_mean": list(_IMAGENET["mean"]), "image_std": list(_IMAGENET["std"])},
    "Tipsv2ImageProcessor": {"size": {"height": 448, "width": 448}, "do_normalize": False},
}
_MOST_PIXELS = 2**31  # of an edge
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def load_processor(folder: CheckpointFolder) -> Any:
    """The checkpoint's image processor.

    Raises:
        ModelError: its file is missing or damaged, or needs code that is not trusted.
    """
    transformers = require("transformers", extra="build")
    if folder.config.get("model_type") == "timm_wrapper":
        return _timm_processor(folder, transformers)
    places = (folder.path, *folder.others)
    file = next((file for place in places for name in PROCESSORS if _holds_images(file := place / name)), None)
    if file is None:
        raise ModelError(
            f"{folder.name} has no {PROCESSORS[0]}, so it is not known how its images are prepared",
            hint="copy the one of the model it was made from into the folder",
        )
    if file.parent not in (folder.path, folder.adapter):
        progress.note(f"Note: the image processor of {folder.name} is taken from {file.parent.name}/{file.name}.")
    try:
        refuse_pointer(file, ModelError)
        settings = read_json(file)
        settings = settings.get("image_processor", settings)
        _check_shapes(settings, file)
        with hub.quiet_libraries():
            made = _made(folder, file, settings, transformers)
    except VitdeployError:
        raise
    except Exception as error:  # ImportError, and whatever a processor's own code raises for its settings
        if "trust_remote_code" in str(error):
            raise code_refused(f"the image processor of {folder.name}", custom_code(settings)) from error
        if "torchvision" in str(error) and importlib.util.find_spec("torchvision") is None:
            kind = settings.get("image_processor_type", "of its family")
            raise ModelError(
                f"the image processor of {folder.name} ({kind}) needs torchvision, which is not installed",
                hint="install the torchvision that fits your torch, from where your torch came",
            ) from error
        raise ModelError(
            f"the image processor of {folder.name} can't be loaded: {first_line(error)}",
            hint=f"restore {file.name} from the model it was made from",
        ) from error
    return _mended(made, file)


def _holds_images(file: Path) -> bool:
    """Whether the file is there and, for one of images and text, has a part for images; a damaged one counts."""
    if not file.is_file() or file.name == PROCESSORS[0]:
        return file.is_file()
    try:
        return "image_processor" in read_json(file)
    except (OSError, ValueError, TypeError):
        return True


def _made(folder: CheckpointFolder, file: Path, settings: dict[str, Any], transformers: Any) -> Any:
    kind = str(settings.get("image_processor_type", ""))
    unset = _STAND_INS.get(kind.removesuffix("Fast"))
    if unset is not None and importlib.util.find_spec("torchvision") is None:
        progress.note(f"Note: {kind} needs torchvision: ViTImageProcessor does the same steps, at most a level apart.")
        return transformers.ViTImageProcessor.from_dict(
            {**unset, **{key: value for key, value in settings.items() if key != "image_processor_type"}}
        )
    more = {} if kind else {"config": configuration(folder)}
    return transformers.AutoImageProcessor.from_pretrained(
        file.parent, local_files_only=True, trust_remote_code=folder.trusted, **more
    )


def _check_shapes(settings: Any, file: Path) -> None:
    """Refuse sizes within sizes and the like, which transformers takes and stumbles over later."""
    if not isinstance(settings, dict):
        raise ModelError(f"{file} holds no settings", hint="restore it from the model it was made from")
    for key, example in (("size", '{"height": 224, "width": 224}'), ("crop_size", '{"height": 224, "width": 224}')):
        value = settings.get(key)
        edges = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if not all(edge is None or _is_edge(edge) for edge in edges):
            raise ModelError(
                f"{file.name} has the {key} {value!r}, whose edges are not numbers of pixels",
                hint=f'write it plainly, as in "{key}": {example} or {{"shortest_edge": 224}}',
            )


def _is_edge(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_MOST_PIXELS < value < _MOST_PIXELS


def _mended(processor: Any, file: Path) -> Any:
    """A filter by name or none at all, 224.0 pixels, and one value for all three channels: in the form it takes."""
    resample = getattr(processor, "resample", None)
    if isinstance(resample, str):
        processor.resample = _RESAMPLE.get(resample.rpartition(".")[2].lower(), resample)
    elif resample is None and getattr(processor, "do_resize", None):
        progress.note(f"Note: {file.name} names no filter (resample): it is bilinear, as transformers has it then.")
        processor.resample = _RESAMPLE["bilinear"]
    for key in ("size", "crop_size"):
        value = getattr(processor, key, None)
        edges = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        edges.update({edge: int(size) for edge, size in edges.items() if isinstance(size, float) and size.is_integer()})
    for key in ("image_mean", "image_std"):
        value = getattr(processor, key, None)
        if isinstance(value, (int, float)):
            setattr(processor, key, [float(value)] * 3)
        elif isinstance(value, (list, tuple)) and len(value) == 1:
            progress.note(f"Note: {key} in {file.name} has one value, which is used for all three channels.")
            setattr(processor, key, [float(value[0])] * 3)
    return processor


def _timm_processor(folder: CheckpointFolder, transformers: Any) -> Any:
    """The processor that does what timm's evaluation transform does; a timm model has its settings in config.json.

    timm resizes the shorter edge to the input's size / crop_pct and cuts the centre, or, with crop_mode "squash",
    resizes to that size without keeping the aspect ratio (timm.data.transforms_factory.transforms_imagenet_eval). What
    is not set is timm's default (timm.data.config.resolve_data_config). The size is input_size, as in timm's own
    resolve_model_data_config; its validate.py takes test_input_size where there is one, which --image-size asks for.
    """
    settings = {key: value for key, value in (folder.config.get("pretrained_cfg") or {}).items() if value is not None}
    try:
        _, height, width = settings.get("input_size", (3, 224, 224))
        mode = settings.get("crop_mode", "center")
        resample = _RESAMPLE[settings.get("interpolation", "bicubic")]
        mean, std = (list(settings.get(key, default)) for key, default in _IMAGENET.items())
        if mode not in ("center", "squash") or (mode == "center" and height != width):
            raise ValueError(f"crop_mode {mode!r} for {height}x{width}")
        share = float(settings.get("crop_pct") or _TIMM_SHARE)
        sizes = _timm_sizes(mode, height, width, share)
        test = None
        if (test_size := settings.get("test_input_size")) is not None:
            _, tall, wide = test_size
            test = _timm_sizes(mode, tall, wide, float(settings.get("test_crop_pct") or share))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the preprocessing of {folder.name} is not one that can be put in a graph: {error}",
            hint="use a timm model with crop_mode center or squash, and one of Pillow's filters",
        ) from error
    if test is not None and test != sizes:
        edges = "x".join(str(edge) for edge in test["crop_size"].values())
        progress.note(
            f"Note: {folder.name} was trained at {height}x{width}, which is taken; timm's validate.py tests it at"
            f" {edges}: --image-size {edges} exports that."
        )
    with hub.quiet_libraries():
        return _timm_class(transformers)(
            **sizes, test_sizes=test, resample=resample, image_mean=mean, image_std=std, do_convert_rgb=False
        )


def _timm_sizes(mode: str, height: int, width: int, share: float) -> dict[str, dict[str, int]]:
    """What is resized to, and what is cut from that."""
    edges = (math.floor(height / share), math.floor(width / share))
    size = {"shortest_edge": edges[0]} if mode == "center" else {"height": edges[0], "width": edges[1]}
    return {"size": size, "crop_size": {"height": height, "width": width}}


def _timm_class(transformers: Any) -> Any:
    """transformers' common steps with Pillow, which timm resizes with, but the crop: that is torchvision's."""

    class TimmImageProcessorPil(transformers.BitImageProcessorPil):  # type: ignore[misc]
        test_sizes: Any = None  # the sizes that timm tests with, where they are others

        def center_crop(self, image: Any, size: Any, **_: Any) -> Any:
            """Of (channels, height, width); see `PreprocessSpec.crop_rounding`."""
            import numpy as np

            wanted = (size.height, size.width)
            lacks = [max(edge - length, 0) for length, edge in zip(image.shape[1:], wanted, strict=True)]
            image = np.pad(image, [(0, 0), *((lack // 2, (lack + 1) // 2) for lack in lacks)])
            spec = PreprocessSpec(None, wanted, None, None, None, "even")
            top, left = spec.crop_starts(image.shape[1:])
            return image[:, top : top + wanted[0], left : left + wanted[1]]

    return TimmImageProcessorPil
