"""A model's name to a loaded classifier: Hub id or local folder -> module, image processor, labels.

Hub ids are fetched to the local cache first, so everything else reads a folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy import hub
from vitdeploy.errors import ModelError, VitdeployError, require
from vitdeploy.storage import read_json, sha256

__all__ = ["Checkpoint", "CheckpointFolder", "load_checkpoint", "load_processor", "open_folder", "reading_weights"]

_CONFIG = "config.json"
_PROCESSOR = "preprocessor_config.json"
_UNKNOWN = "check its config.json; a newer model may need: pip install --upgrade transformers"
_LOCAL_COPY = "download it where the Hub can be reached and name the local folder instead"


@dataclass(frozen=True)
class CheckpointFolder:
    """Where a checkpoint's files lie, and its parsed config.json.

    `name` is what the user gave, for messages; `source` is what may be written down: for a folder only its last
    part, since results must not carry this machine's paths. `revision` is the commit of a Hub model (a folder has
    none). `weights` are the weight files, in order.
    """

    path: Path
    name: str
    source: str
    is_local: bool
    revision: str | None
    config: dict[str, Any]
    weights: tuple[Path, ...]

    def sha256(self) -> str:
        """SHA-256 of the weights: of the file if there is one, else of the files' hashes in order."""
        hashes = [sha256(path) for path in self.weights]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """An image classifier ready to be run or exported.

    `module` is a transformers `...ForImageClassification` in float32, in eval mode, on the CPU. `processor` is its
    transformers image processor. `labels` are the class names in the order of the logits. `sha256` computes that of the
    weights, for who wants to write it down.
    """

    module: Any
    processor: Any
    labels: tuple[str, ...]
    source: str
    sha256: Callable[[], str]
    is_local: bool
    revision: str | None
    path: Path


def load_checkpoint(model: str | os.PathLike[str], *, revision: str | None = None) -> Checkpoint:
    """Load an image classifier with its trained head.

    Args:
        model: a Hub id (`google/vit-base-patch16-224`) or a local folder in Hugging Face's layout.
        revision: branch, tag or commit of a Hub model.

    Raises:
        ModelError: it is missing, incomplete, damaged, can't be fetched, or has no trained classification head.

    Example:
        checkpoint = load_checkpoint("runs/vit-digits")
        checkpoint.labels  # ("0", "1", ...)
    """
    folder = open_folder(model, revision=revision)
    torch = require("torch", extra="build")
    transformers = require("transformers", extra="build")
    with hub.quiet_libraries(), reading_weights(folder):
        module, report = transformers.AutoModelForImageClassification.from_pretrained(
            folder.path, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    _check_complete(folder, module, report)
    return Checkpoint(
        module=module.float().eval(),
        processor=load_processor(folder),
        labels=_labels(folder, module.config),
        source=folder.source,
        sha256=folder.sha256,
        is_local=folder.is_local,
        revision=folder.revision,
        path=folder.path,
    )


def open_folder(model: str | os.PathLike[str], *, revision: str | None = None) -> CheckpointFolder:
    """Find a checkpoint's files and read its config; the weights are not loaded.

    Raises:
        ModelError: it is missing or incomplete, can't be fetched, or is no image model of transformers.
    """
    name = os.fspath(model)
    path = Path(name).expanduser()
    if path.exists() and revision is not None:
        raise ModelError(f"{name} is a local folder, which has no revision", hint="leave --revision out")
    if path.exists():
        commit, source = None, path.resolve().name
    elif not isinstance(model, str) or hub.looks_like_path(name):
        raise ModelError(
            f"there is no checkpoint at {name}", hint="check the path; it must be a folder with config.json in it"
        )
    else:
        path = _fetch(name, revision)
        commit, source = path.name, name
    config = _read_config(path, name)
    return CheckpointFolder(path, name, source, commit is None, commit, config, _weights(path, name))


def load_processor(folder: CheckpointFolder) -> Any:
    """The checkpoint's image processor.

    Raises:
        ModelError: preprocessor_config.json is missing or damaged.
    """
    transformers = require("transformers", extra="build")
    if folder.config.get("model_type") == "timm_wrapper":
        return _timm_processor(folder, transformers)
    file = folder.path / _PROCESSOR
    if not file.is_file():
        raise ModelError(
            f"{folder.name} has no {_PROCESSOR}, so nobody knows how its images are prepared",
            hint="copy the one of the model it was made from into the folder",
        )
    try:
        read_json(file)
        with hub.quiet_libraries():
            return transformers.AutoImageProcessor.from_pretrained(folder.path, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the image processor of {folder.name} can't be loaded: {_first_line(error)}",
            hint=f"restore {_PROCESSOR} from the model it was made from",
        ) from error


def _timm_processor(folder: CheckpointFolder, transformers: Any) -> Any:
    """The processor that does what timm's evaluation transform does; a timm model has its settings in config.json.

    timm resizes the shorter edge to the input's size / crop_pct and cuts the centre, or, with crop_mode "squash",
    resizes to that size without keeping the aspect ratio (timm.data.transforms_factory.transforms_imagenet_eval).
    """
    settings = folder.config.get("pretrained_cfg") or {}
    try:
        _, height, width = settings["input_size"]
        share, mode = float(settings.get("crop_pct") or 0.875), settings.get("crop_mode") or "center"
        resample = {"bilinear": 2, "bicubic": 3}[settings["interpolation"]]
        mean, std = list(settings["mean"]), list(settings["std"])
        if mode not in ("center", "squash") or (mode == "center" and height != width):
            raise ValueError(f"crop_mode {mode!r} for {height}x{width}")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the preprocessing of {folder.name} is not one that can be put in a graph: {error}",
            hint="use a timm model with crop_mode center or squash, and bilinear or bicubic interpolation",
        ) from error
    edges = (math.floor(height / share), math.floor(width / share))
    size = {"shortest_edge": edges[0]} if mode == "center" else {"height": edges[0], "width": edges[1]}
    with hub.quiet_libraries():
        return getattr(
            transformers, "BitImageProcessorPil", transformers.BitImageProcessor
        )(  # timm resizes with Pillow
            size=size,
            resample=resample,
            do_center_crop=True,
            crop_size={"height": height, "width": width},
            image_mean=mean,
            image_std=std,
            do_convert_rgb=False,
        )


@contextmanager
def reading_weights(folder: CheckpointFolder) -> Iterator[None]:
    """Turn what transformers raises for damaged or unfit weights into a ModelError with the next step."""
    damaged = "the file may be truncated; download or copy it again"
    try:
        yield
    except (VitdeployError, MemoryError):
        raise
    except Exception as error:  # safetensors, pickle and transformers have no base class in common
        kind, line = type(error).__name__, _first_line(error)
        if kind in ("SafetensorError", "UnpicklingError", "EOFError") or isinstance(error, OSError):
            raise ModelError(f"the weights of {folder.name} can't be read: {line}", hint=damaged) from error
        if "Unrecognized configuration class" in str(error):
            raise ModelError(
                f"{folder.name} is a {folder.config.get('model_type')} model, which is no image classifier",
                hint="name a model of the ViT family: vit, deit, dinov2, beit, swin ...",
            ) from error
        if "mismatch" in str(error):
            raise ModelError(
                f"the weights of {folder.name} have other shapes than its config.json says",
                hint="restore the config.json that belongs to these weights",
            ) from error
        raise ModelError(f"{folder.name} can't be loaded: {kind}: {line}", hint=_UNKNOWN) from error


def _fetch(name: str, revision: str | None) -> Path:
    def fetch(patterns: list[str]) -> Path:
        return hub.fetch(
            name, kind="model", patterns=patterns, revision=revision, error=ModelError, local_hint=_LOCAL_COPY
        )

    folder = fetch(["config.json", _PROCESSOR, "model*.safetensors", "model.safetensors.index.json"])
    if not any(folder.glob("model*.safetensors")):
        folder = fetch(["pytorch_model*.bin", "pytorch_model.bin.index.json"])
    return folder


def _read_config(path: Path, name: str) -> dict[str, Any]:
    file = path / _CONFIG
    if not path.is_dir():
        raise ModelError(f"{name} is a file", hint="name the folder that holds config.json and model.safetensors")
    if not file.is_file():
        hint = "name a folder that vitdeploy finetune or save_pretrained wrote"
        if (path / "manifest.json").is_file():
            hint = f"it is a bundle; here the checkpoint that it was exported from is needed. {hint}"
        raise ModelError(f"{name} is no checkpoint: it has no {_CONFIG}", hint=hint)
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} can't be read: {error}", hint="download or copy it again") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(
            f"{file} names no model_type, so it is no checkpoint of transformers",
            hint="name a folder that vitdeploy finetune or save_pretrained wrote",
        )
    return config


def _weights(path: Path, name: str) -> tuple[Path, ...]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = path / f"{stem}.{suffix}.index.json"
        if (path / f"{stem}.{suffix}").is_file():
            return (path / f"{stem}.{suffix}",)
        if index.is_file():
            try:
                files = [path / Path(part).name for part in sorted(set(read_json(index)["weight_map"].values()))]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index} can't be read: {error}", hint="download or copy it again") from error
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ModelError(f"{name} is incomplete: {', '.join(missing)} missing", hint="download it again")
            return tuple(files)
    raise ModelError(f"{name} has no weights (model.safetensors)", hint="copy or download the whole checkpoint again")


def _check_complete(folder: CheckpointFolder, module: Any, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if not missing:
        return
    prefix = f"{module.base_model_prefix}."
    body = [key for key in missing if key.startswith(prefix)]
    if body:
        raise ModelError(
            f"{folder.name} is incomplete: {len(body)} weights are missing, {body[0]} for one",
            hint="download or copy the whole checkpoint again",
        )
    raise ModelError(
        f"{folder.name} has no trained classification head ({', '.join(missing)} missing)",
        hint=f"train one first: vitdeploy finetune {folder.name} --dataset D --output DIR",
    )


def _labels(folder: CheckpointFolder, config: Any) -> tuple[str, ...]:
    unnamed = {index: f"LABEL_{index}" for index in range(config.num_labels)}  # as transformers names them
    names = {int(index): str(name) for index, name in (config.id2label or unnamed).items()}
    if sorted(names) != list(range(config.num_labels)):
        raise ModelError(
            f"{folder.name} names classes {sorted(names)[:5]}..., but has {config.num_labels} of them",
            hint="mend id2label in its config.json: one name for each class, numbered from 0",
        )
    return tuple(names[index] for index in range(config.num_labels))


def _first_line(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:197]}..."
