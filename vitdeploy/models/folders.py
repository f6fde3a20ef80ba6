"""A model's name -> the folder with its files: of the Hub, a Trainer's checkpoint, an adapter with its base."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.addresses import hub_hint, is_address
from vitdeploy.core.errors import ModelError
from vitdeploy.core.storage import read_json, refuse_pointer, sha256
from vitdeploy.models import hub
from vitdeploy.models.configs import CONFIG, checked_config

__all__ = ["PROCESSORS", "CheckpointFolder", "open_folder"]

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Where an image processor may be: its own file, or inside the one of a processor for images and text."""
_ADAPTER = "adapter_config.json"
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model")
_LOCAL_COPY = "download it where the Hub can be reached and name the local folder instead"
_AGAIN = "download or copy it again"
_STEP = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class CheckpointFolder:
    """Where a checkpoint's files lie, and its config.json, checked and as `configs` mends it.

    `name` is what the user gave, for messages; `source` is what may be written down: for a folder only its last
    part, since results must not carry this machine's paths. `revision` is the commit of a Hub model (a folder has
    none). `weights` are the weight files, in order. `others` are folders that may hold the image processor where `path`
    does not; `adapter` that of a PEFT adapter on these weights. `trusted`: code that comes with it may run.
    """

    path: Path
    name: str
    source: str
    is_local: bool
    revision: str | None
    config: dict[str, Any]
    weights: tuple[Path, ...]
    others: tuple[Path, ...] = ()
    adapter: Path | None = None
    trusted: bool = False

    def sha256(self) -> str:
        """SHA-256 of the weights: of the file if there is one, else of the files' hashes in order."""
        hashes = [sha256(path) for path in self.weights]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def open_folder(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: bool = False,
) -> CheckpointFolder:
    """Find a checkpoint's files and read its config; the weights are not loaded. `tokenizer`: fetch that as well.

    Raises:
        ModelError: it is missing or incomplete, can't be fetched, or is not an image model of transformers.
    """
    name = os.fspath(model)
    path = Path(name).expanduser()
    if path.exists() and revision is not None:
        raise ModelError(f"{name} is a local folder, which has no revision", hint="leave --revision out")
    others: tuple[Path, ...] = ()
    if path.exists():
        commit, source = None, path.resolve().name
        last = _last_step(path)
        if last is not None:
            progress.note(f"Note: {name} has no {CONFIG} of its own; its last checkpoint, {last.name}, is taken.")
            path = last
        if _STEP.fullmatch(path.resolve().name):
            others = (path.resolve().parent,)
    elif is_address(name):
        raise ModelError(f"{name} is an address, not a checkpoint", hint=hub_hint(name, "checkpoint"))
    elif not isinstance(model, str) or hub.looks_like_path(name):
        raise ModelError(
            f"there is no checkpoint at {name}", hint="check the path; it must be a folder with config.json in it"
        )
    else:
        path = _fetch(name, revision, trust_remote_code, tokenizer)
        commit, source = path.name, name
    if (path / _ADAPTER).is_file() and not _weights(path, name):
        return _adapted(path, name, source, trust_remote_code)
    raw = _read_config(path, name)
    weights = _weights(path, name)
    if not weights:
        raise ModelError(
            f"{name} has no weights (model.safetensors)", hint="copy or download the whole checkpoint again"
        )
    config = checked_config(raw, name, weights, trust_remote_code)
    return CheckpointFolder(
        path, name, source, commit is None, commit, config, weights, others, trusted=trust_remote_code
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds a checkpoint, or those of a run of the Trainer."""
    return (path / CONFIG).is_file() or (path / _ADAPTER).is_file() or _last_step(path) is not None


def _last_step(path: Path) -> Path | None:
    """The last checkpoint-N below a folder that has no config of its own, as the Trainer leaves it."""
    if not path.is_dir() or (path / CONFIG).exists() or (path / _ADAPTER).exists():
        return None
    steps = {int(match[1]): entry for entry in path.iterdir() if (match := _STEP.fullmatch(entry.name))}
    whole = {step: entry for step, entry in steps.items() if (entry / CONFIG).is_file() or (entry / _ADAPTER).is_file()}
    return whole[max(whole)] if whole else None


def _adapted(path: Path, name: str, source: str, trusted: bool) -> CheckpointFolder:
    """The folder of the model that a PEFT adapter was trained on, with the adapter."""
    import importlib.util

    settings = _read_json(path / _ADAPTER)
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path / _ADAPTER} names no base model", hint="restore it from where the adapter was trained")
    what = f"{name} is a PEFT adapter ({settings.get('peft_type', 'of no named kind')}) for {base}, not a whole model"
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            what,
            hint="pip install peft, and it is merged into its base model on the way; or save the whole model where it"
            " was trained, model.merge_and_unload().save_pretrained(DIR), and name that",
        )
    files = tuple(file for suffix in ("safetensors", "bin") if (file := path / f"adapter_model.{suffix}").is_file())
    if not files:
        raise ModelError(f"{name} has no adapter_model.safetensors", hint=_AGAIN)
    refuse_pointer(files[0], ModelError)
    progress.note(f"Note: {what}; it is merged into it.")
    under = open_folder(base, trust_remote_code=trusted)
    if (path / CONFIG).is_file():
        own = checked_config(_read_config(path, name), name, under.weights, trusted)
        under = replace(under, config=own)
    return replace(
        under,
        name=name,
        source=source,
        is_local=True,
        revision=None,
        weights=(*under.weights, files[0]),
        others=(path, *under.others),
        adapter=path,
    )


def _fetch(name: str, revision: str | None, trusted: bool, tokenizer: bool) -> Path:
    def fetch(patterns: list[str]) -> Path:
        return hub.fetch(
            name, kind="model", patterns=patterns, revision=revision, error=ModelError, local_hint=_LOCAL_COPY
        )

    more = [*(["*.py"] if trusted else []), *(_TOKENIZER if tokenizer else [])]
    folder = fetch([CONFIG, *PROCESSORS, "model*.safetensors", "model.safetensors.index.json", "adapter_*", *more])
    if not any(folder.glob("model*.safetensors")) and not (folder / _ADAPTER).exists():
        folder = fetch(["pytorch_model*.bin", "pytorch_model.bin.index.json"])
    return folder


def _read_json(file: Path) -> Any:
    refuse_pointer(file, ModelError)
    try:
        return read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} can't be read: {error}", hint=_AGAIN) from error


def _read_config(path: Path, name: str) -> dict[str, Any]:
    file = path / CONFIG
    if not path.is_dir():
        raise ModelError(f"{name} is a file", hint="name the folder that holds config.json and model.safetensors")
    if not file.is_file():
        hint = "name a folder that vitdeploy finetune or save_pretrained wrote"
        if (path / "manifest.json").is_file():
            hint = f"it is a bundle; here the checkpoint that it was exported from is needed: {hint}"
        raise ModelError(f"{name} is not a checkpoint: it has no {CONFIG}", hint=hint)
    config = _read_json(file)
    if isinstance(config, dict) and "model_type" not in config and "architecture" in config:
        config["model_type"] = "timm_wrapper"  # timm's own layout on the Hub
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"{file} names no model_type, so it is not a checkpoint of transformers",
            hint="name a folder that vitdeploy finetune or save_pretrained wrote",
        )
    return config


def _weights(path: Path, name: str) -> tuple[Path, ...]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = path / f"{stem}.{suffix}.index.json"
        files: tuple[Path, ...] = ()
        if (path / f"{stem}.{suffix}").is_file():
            files = (path / f"{stem}.{suffix}",)
        elif index.is_file():
            try:
                parts = sorted(set(_read_json(index)["weight_map"].values()))
                files = tuple(path / Path(part).name for part in parts)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index} can't be read: {error}", hint=_AGAIN) from error
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ModelError(f"{name} is incomplete: {', '.join(missing)} missing", hint="download it again")
        for file in files:
            refuse_pointer(file, ModelError)
        if files:
            return files
    return ()
