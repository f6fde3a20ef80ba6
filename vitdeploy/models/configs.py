"""A checkpoint's config.json: checked before anything is made of it, and mended where its meaning leaves no doubt.

Mended is what concerns how a model runs, not what it computes: fused attention that is not installed, outputs as
tuples, class names in a list or the wrong way round. What is absurd, or needs code or arithmetic that is not here, is
refused with its cause.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.errors import DependencyError, ModelError, require
from vitdeploy.core.text import first_line
from vitdeploy.models import hub
from vitdeploy.models.stored import tensors_of

__all__ = ["CONFIG", "checked_config", "code_refused", "configuration", "custom_code"]

CONFIG = "config.json"
_LARGEST = 10**8  # of any number
_MOST_CLASSES, _MOST_LAYERS = 10**6, 10**4
_FLOATS = {"F64", "F32", "F16", "BF16"}
_HOW_IT_RUNS = {  # keys, also of parts, that say how a model is run and not what it computes
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_flash_attn_2_enabled"),
    *("return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "torchscript"),
}


def checked_config(raw: dict[str, Any], name: str, weights: tuple[Path, ...], trusted: bool) -> dict[str, Any]:
    """The settings in config.json, mended; nothing of the model is made.

    Raises:
        ModelError: it describes no model that can be, or one that can't be run here.
        DependencyError: it needs timm.
    """
    _check_sizes(raw, name, sum(file.stat().st_size for file in weights if file.is_file()))
    config: dict[str, Any] = _without(raw, _HOW_IT_RUNS)
    if config["model_type"] in ("timm_wrapper", "timm_backbone"):
        _need_timm(name)
        config["model_args"] = {
            key: value for key, value in (config.get("model_args") or {}).items() if key != "num_classes"
        }  # timm writes it there too, and transformers would give it twice
    if not trusted:
        _refuse_code(config, name)
    if "quantization_config" in config:
        _drop_quantization(config, name, weights)
    _check_channels(config, name)
    names = _class_names(config, name)
    if names is not None:
        config["id2label"] = {str(index): label for index, label in enumerate(names)}
        if not isinstance(config.get("num_labels"), int):  # a number is theirs, and PVT counts its classes by it alone
            config.pop("num_labels", None)
    return config


def configuration(folder: Any) -> Any:
    """The transformers configuration of a `CheckpointFolder`."""
    transformers = require("transformers", extra="build")
    config = folder.config
    if folder.trusted and "AutoConfig" in (config.get("auto_map") or {}):
        with hub.quiet_libraries():
            return transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=True)
    try:
        kind = transformers.models.auto.configuration_auto.CONFIG_MAPPING[config["model_type"]]
    except KeyError as error:
        raise ModelError(
            f"{folder.name} is a {config['model_type']} model, which is not known to transformers"
            f" {transformers.__version__}",
            hint="a newer one may: pip install --upgrade transformers",
        ) from error
    with hub.quiet_libraries():
        return kind.from_dict(copy.deepcopy(config), name_or_path=str(folder.path))


def custom_code(config: dict[str, Any]) -> str:
    """The files of code that a config.json or preprocessor_config.json asks for, in words."""
    files = []
    for reference in (config.get("auto_map") or {}).values():
        for each in reference if isinstance(reference, list) else [reference]:
            repository, _, place = str(each).rpartition("--")
            files.append(
                place.rpartition(".")[0].replace(".", "/") + ".py" + (f" of {repository}" if repository else "")
            )
    return ", ".join(dict.fromkeys(files))


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every (key, number) in the settings; those in a list have the list's key."""
    if isinstance(value, dict):
        for inner, each in value.items():
            yield from _walk(each, str(inner))
    elif isinstance(value, list):
        for each in value:
            yield from _walk(each, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value


def _check_sizes(config: dict[str, Any], name: str, weight_bytes: int) -> None:
    """Refuse numbers that no model has: transformers would make room for them before it looks at the weights."""
    layers = 0
    for key, number in _walk({key: value for key, value in config.items() if key not in ("id2label", "label2id")}):
        limit = _LARGEST
        if key in ("num_labels", "num_classes"):
            limit = _MOST_CLASSES
        elif "layer" in key or key.startswith("depth"):
            layers += int(number) if isinstance(number, int) and number > 0 else 0
            limit = _MOST_LAYERS
        if number > limit or layers > 10 * _MOST_LAYERS:
            raise _absurd(name, f"{key} is {number}")
    size, depth = config.get("hidden_size"), config.get("num_hidden_layers")
    wide, pixels, patch = config.get("intermediate_size"), config.get("image_size"), config.get("patch_size")
    if isinstance(size, int) and isinstance(depth, int):
        numbers = depth * size * (4 * size + 2 * (wide if isinstance(wide, int) else 0))
        if isinstance(pixels, int) and isinstance(patch, int) and patch > 0:
            numbers += (pixels // patch) ** 2 * size
        if numbers > 4 * weight_bytes + 10**7:  # below a byte a number nothing is stored
            raise _absurd(
                name, f"some {numbers / 1e6:,.0f} million numbers for weights of {weight_bytes / 1e6:,.0f} MB"
            )


def _absurd(name: str, what: str) -> ModelError:
    return ModelError(
        f"the {CONFIG} of {name} describes no model that its weights could be of: {what}",
        hint=f"restore the {CONFIG} that belongs to these weights",
    )


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return value


def _need_timm(name: str) -> None:
    """timm does not import without torchvision, and torchvision not beside a torch that it was not built for."""
    hint = "pip install timm torchvision (the torchvision that fits your torch, from where your torch came)"
    for package in ("timm", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise DependencyError(f"{name} is a model of timm, and the package {package} is not installed", hint=hint)
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        line = first_line(error)
        raise DependencyError(f"{name} is a model of timm, which can't be imported here: {line}", hint=hint) from error


def _refuse_code(config: dict[str, Any], name: str) -> None:
    """Refuse a model that transformers does not have itself and that brings code of its own."""
    if not config.get("auto_map"):
        return
    auto = require("transformers.models.auto.modeling_auto", extra="build")
    if config["model_type"] not in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise code_refused(name, custom_code(config))


def code_refused(name: str, files: str) -> ModelError:
    """The error for code that comes with a model and is not run unasked."""
    return ModelError(
        f"{name} needs code of its own ({files}), which is not run unasked",
        hint="read that code, and if you trust it add --trust-remote-code (trust_remote_code=True)",
    )


def _drop_quantization(config: dict[str, Any], name: str, weights: tuple[Path, ...]) -> None:
    settings = config.pop("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    method = method or "bitsandbytes"  # which wrote no name at first
    kinds = {dtype for dtype, _ in tensors_of(weights).values()}
    if not kinds or not kinds <= _FLOATS:
        raise ModelError(
            f"the weights of {name} are quantised ({method}), and an export starts from floating point",
            hint="save it in floating point where it was made, model.dequantize().save_pretrained(DIR), and name that;"
            " build-engine --int8 quantises the graph",
        )
    progress.note(f"Note: {name} names a quantisation ({method}), but its weights are floating point: they are taken.")


def _check_channels(config: dict[str, Any], name: str) -> None:
    for part in (config, config.get("vision_config")):
        channels = part.get("num_channels") if isinstance(part, dict) else None
        if channels not in (None, 3):
            raise ModelError(
                f"{name} takes images of {channels} channel{'s' if channels != 1 else ''}; RGB images have 3",
                hint="give its patch embedding 3 channels (of 1: the weights three times, each divided by 3), set"
                " num_channels to 3, save it, and name that",
            )


def _class_names(config: dict[str, Any], name: str) -> tuple[str, ...] | None:
    """The names in the order of the logits, however they are written; None where there are none."""
    names = config.get("id2label")
    if not names:
        return None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        raise _misnamed(name, f"id2label is {type(names).__name__}")
    if not all(_is_number(key) for key in names):
        if not all(_is_number(value) for value in names.values()):
            raise _misnamed(
                name, f"id2label has the keys {', '.join(map(repr, list(names)[:5]))}, which are not numbers"
            )
        progress.note(f"Note: id2label of {name} maps names to numbers: it is read the other way round.")
        names = {value: key for key, value in names.items()}
    found = {int(key): value for key, value in names.items()}
    if sorted(found) != list(range(len(found))):
        shown = f"{sorted(found)[:5]}".rstrip("]") + (", ...]" if len(found) > 5 else "]")
        raise _misnamed(name, f"it names classes {shown}, {len(found)} in all, not 0 to {len(found) - 1}")
    wanted = config.get("num_labels", config.get("num_classes"))
    if isinstance(wanted, int) and wanted != len(found):
        raise _misnamed(name, f"id2label names {len(found)} classes, and num_labels is {wanted}")
    for index, label in found.items():
        if not isinstance(label, (str, int, float)) or isinstance(label, bool) or not str(label).strip():
            raise _misnamed(name, f"class {index} has no name ({label!r})")
    return tuple(str(found[index]) for index in range(len(found)))


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal())


def _misnamed(name: str, what: str) -> ModelError:
    return ModelError(
        f"the class names of {name} can't be used: {what}",
        hint="mend id2label in its config.json: one name for each class, numbered from 0",
    )
