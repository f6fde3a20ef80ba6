"""A model's name to what is loaded: Hub id or local folder -> module, image processor, labels, task.

Hub ids are fetched to the local cache first, so everything else reads a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.errors import ModelError, VitdeployError, require
from vitdeploy.core.specs import EmbeddingSpec
from vitdeploy.core.text import first_line, quoted
from vitdeploy.models import hub
from vitdeploy.models.configs import code_refused, configuration, custom_code
from vitdeploy.models.folders import CheckpointFolder, open_folder
from vitdeploy.models.processors import load_processor
from vitdeploy.models.tasks import CLASSES, TASKS, THRESHOLD_KEY, Task, TaskRequest, task_of
from vitdeploy.models.towers import Tower, check_inputs, is_tower, pooled, tower_of
from vitdeploy.models.words import words_of

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "load_checkpoint",
    "load_processor",
    "load_weights",
    "open_folder",
    "reading_weights",
]

_UNKNOWN = "check its config.json; a newer model may need: pip install --upgrade transformers"
_AGAIN = "download or copy the whole checkpoint again"
_OF_TRAINING = ("mask_token", "num_batches_tracked")  # weights that no answer depends on


def _logits(output: Any) -> Any:
    """What a classifier's output has under the name of logits; PP-LCNet calls them otherwise."""
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to be run or exported.

    `module` is a class of transformers in float32, in eval mode, on the CPU: a `...ForImageClassification`, or an image
    tower. `answer` makes of its output what the model answers, (batch, n). `processor` is its transformers image
    processor. `labels` are the class names in the order of the logits, none of an embedding, which `embedding`
    describes. `templates` are the sentences of zero-shot words. `sha256` computes that of the weights, for who wants to
    write it down.
    """

    module: Any
    processor: Any
    labels: tuple[str, ...]
    source: str
    sha256: Callable[[], str]
    is_local: bool
    revision: str | None
    path: Path
    answer: Callable[[Any], Any] = _logits
    given_task: Task | None = None
    embedding: EmbeddingSpec | None = None
    templates: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """What the answer means."""
        return task_of(self.module.config) if self.given_task is None else self.given_task

    @property
    def threshold(self) -> float | None:
        """The score from which one of several labels counts, as `finetune` found it on its validation images; None
        where the checkpoint has none.

        Raises:
            ModelError: what it has is no number between 0 and 1.
        """
        found = getattr(self.module.config, THRESHOLD_KEY, None) if self.task.several else None
        if found is not None and not (isinstance(found, (int, float)) and 0 < found < 1):
            raise ModelError(
                f"{THRESHOLD_KEY} in config.json of {self.source} is {found!r}",
                hint="write a score between 0 and 1, such as 0.5, or remove it",
            )
        return None if found is None else float(found)


def load_checkpoint(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    request: TaskRequest = CLASSES,
) -> Checkpoint:
    """Load a model: an image classifier with its trained head, unless something else is asked for.

    Args:
        model: a Hub id (`google/vit-base-patch16-224`) or a local folder in Hugging Face's layout.
        revision: branch, tag or commit of a Hub model.
        trust_remote_code: run Python code that comes with the model.
        request: what it is to answer.

    Raises:
        ModelError: it is missing, incomplete, damaged, can't be fetched, has no trained classification head, or can't
            answer what is asked.

    Example:
        checkpoint = load_checkpoint("runs/vit-digits")
        checkpoint.labels  # ("0", "1", ...)
    """
    words = request.task == "zero-shot"
    folder = open_folder(model, revision=revision, trust_remote_code=trust_remote_code, tokenizer=words)
    if request.task is None:
        request = replace(request, task="embedding" if is_tower(folder) else "classification")
    return _LOADERS[request.task or ""](folder, request)


def _classifier(folder: CheckpointFolder, request: TaskRequest) -> Checkpoint:
    if folder.config.get("num_classes") == 0:  # timm's word
        raise ModelError(
            f"{folder.name} has no classes: it was saved to give vectors", hint="leave --task out, or --task embedding"
        )
    check_inputs(folder)
    with reading_weights(folder):
        config = configuration(folder)
    module, missing, _ = load_weights(folder, config)
    if missing:
        embeds = " (or leave the task to export, which takes its embedding)" if is_tower(folder) else ""
        raise ModelError(
            f"{folder.name} has no trained classification head ({', '.join(missing)} missing)",
            hint=f"train one first: vitdeploy finetune {quoted(folder.name)} --dataset D --output DIR{embeds}",
        )
    names = module.config.id2label or {}  # PVT may be saved without any
    labels = tuple(str(names.get(index, f"LABEL_{index}")) for index in range(module.config.num_labels))
    return _checkpoint(folder, module, labels)


def _embedder(folder: CheckpointFolder, request: TaskRequest) -> Checkpoint:
    tower, module = _tower(folder)
    tower = pooled(tower, module, folder.name)
    spec = tower.spec(module, request.normalize)
    return _checkpoint(folder, module, (), answer=tower.answer(spec), given_task=TASKS["embedding"], embedding=spec)


def _zero_shot(folder: CheckpointFolder, request: TaskRequest) -> Checkpoint:
    tower_of(folder)  # what takes no images is refused as that
    with reading_weights(folder):
        words = words_of(folder, configuration(folder), request)
    tower, module = _tower(folder)
    return _checkpoint(
        folder,
        module,
        request.labels,
        answer=lambda output: words.logits(tower.pool(output)),
        given_task=words.task,
        templates=words.templates,
    )


_LOADERS: dict[str, Callable[[CheckpointFolder, TaskRequest], Checkpoint]] = {
    "classification": _classifier,
    "embedding": _embedder,
    "zero-shot": _zero_shot,
}


def _checkpoint(folder: CheckpointFolder, module: Any, labels: tuple[str, ...], **answer: Any) -> Checkpoint:
    return Checkpoint(
        module=module.eval(),
        processor=load_processor(folder),
        labels=labels,
        source=folder.source,
        sha256=folder.sha256,
        is_local=folder.is_local,
        revision=folder.revision,
        path=folder.path,
        **answer,
    )


def _tower(folder: CheckpointFolder) -> tuple[Tower, Any]:
    """The row of a checkpoint's image tower, and its module.

    Raises:
        ModelError: there is none, or what makes one vector of its tokens is not in the checkpoint.
    """
    tower = tower_of(folder)
    with reading_weights(folder):
        config = tower.config(configuration(folder))
    if getattr(config, "vision_use_head", True) is False:
        raise ModelError(
            f"{folder.name} has no pooling head", hint="export it as the classifier it is: leave --task out"
        )
    module, missing, _ = load_weights(folder, config, tower=tower)
    missing = [name for name in missing if not name.endswith(_OF_TRAINING)]
    if missing:
        raise ModelError(
            f"{folder.name} does not hold all of a {tower.architecture}: {', '.join(missing[:3])} missing",
            hint="its embedding can't be made from it: take the checkpoint it was made from, or copy it again",
        )
    return tower, module


def load_weights(
    folder: CheckpointFolder, config: Any, *, new_head: bool = False, tower: Tower | None = None
) -> tuple[Any, list[str], bool]:
    """The float32 module of a configuration, the names of the head's weights that are missing, and whether the stored
    head has other shapes and was not taken.

    Args:
        new_head: the head may have other shapes.
        tower: load this, all of whose weights are "the head's"; None: a classifier.

    Raises:
        ModelError: weights of the backbone are missing or have other shapes.
    """
    module, report = _read(folder, config, tower)
    prefix = f"{module.base_model_prefix}." if tower is None else ""
    renaming = _renaming(prefix, report)
    if renaming:
        module, report = _read(folder, config, tower, key_mapping=renaming)
    if folder.adapter is not None:
        module, report = _merged(folder, module, report)
    wrong = {str(key): (tuple(stored), tuple(made)) for key, stored, made in report["mismatched_keys"]}
    _check_shapes(folder, wrong, prefix, new_head)
    missing = sorted(report["missing_keys"])
    body = [key for key in missing if prefix and key.startswith(prefix)]
    if body:
        raise ModelError(
            f"{folder.name} is incomplete: {len(body)} weights are missing, {body[0]} for one", hint=_AGAIN
        )
    if tower is not None and "classifier.weight" in report["unexpected_keys"]:
        progress.note(f"Note: the classification head of {folder.name} is left out: --task classification takes it.")
    module.config.return_dict = True
    return module.float(), missing, bool(wrong)


def _read(folder: CheckpointFolder, config: Any, tower: Tower | None, **more: Any) -> tuple[Any, dict[str, Any]]:
    torch = require("torch", extra="build")
    transformers = require("transformers", extra="build")
    kind = "AutoModelForImageClassification" if tower is None else tower.architecture
    more |= {} if tower is None else dict(tower.options)
    with hub.quiet_libraries(), reading_weights(folder):
        module, report = getattr(transformers, kind).from_pretrained(
            folder.path,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # judged below
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=folder.trusted,
            **more,
        )
    return module, report


def _renaming(prefix: str, report: dict[str, Any]) -> dict[str, str]:
    """{pattern: replacement} that turns names which a wrapper gave the weights into the model's own.

    torch.compile puts `_orig_mod.` before them, DataParallel `module.`, PEFT `base_model.model.`, people `model.`: all
    that is missing must be there behind the same prefix.
    """
    missing = [key for key in report["missing_keys"] if key.startswith(prefix)]
    there = set(report["unexpected_keys"])
    if not missing or not there:
        return {}
    parts = {name.replace("._orig_mod.", ".") for name in there}  # of a model of which a part was compiled
    for names, mapping in ((there, {}), (parts, {r"\._orig_mod\.": "."})):
        for name in names:
            before = name.removesuffix(missing[0])
            found = before != name and before[-1:] in ("", ".") and all(before + key in names for key in missing)
            if found and (before or mapping):
                said = repr(before or "_orig_mod.")
                progress.note(f"Note: the weights' names have {said} in them, as a wrapper left it: it is taken off.")
                return {**mapping, "^" + re.escape(before): ""} if before else mapping
    return {}


def _merged(folder: CheckpointFolder, module: Any, report: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The module with its PEFT adapter in its weights."""
    peft = require("peft", extra="build")
    with hub.quiet_libraries(), reading_weights(folder):
        merged = peft.PeftModel.from_pretrained(module, folder.adapter).merge_and_unload()
        own = require("peft.utils", extra="build").load_peft_weights(str(folder.adapter))
    stored = [name.removeprefix("base_model.model.") for name in own]
    kept = {key: [entry for entry in report[key] if entry not in stored] for key in ("missing_keys", "mismatched_keys")}
    return merged, {**report, **kept}


def _check_shapes(
    folder: CheckpointFolder,
    wrong: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    prefix: str,
    new_head: bool,
) -> None:
    body = [key for key in wrong if key.startswith(prefix)]
    if body:
        stored, wanted = wrong[body[0]]
        raise ModelError(
            f"the weights of {folder.name} have other shapes than its config.json says: {body[0]} is"
            f" {_shape(stored)}, not {_shape(wanted)}",
            hint="restore the config.json that belongs to these weights",
        )
    for key, (stored, wanted) in wrong.items():
        if new_head:
            continue
        if stored[1:] == wanted[1:]:
            raise ModelError(
                f"the head of {folder.name} has {stored[0]} classes, and its config.json names {wanted[0]}",
                hint=f"name all {stored[0]} in id2label of its config.json, numbered from 0",
            )
        raise ModelError(
            f"the weights of {folder.name} have other shapes than its config.json says: {key} is {_shape(stored)}, not"
            f" {_shape(wanted)}",
            hint="restore the config.json that belongs to these weights",
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@contextmanager
def reading_weights(folder: CheckpointFolder) -> Iterator[None]:
    """Turn what transformers raises for damaged or unfit weights into a ModelError with the next step."""
    damaged = "the file may be truncated; download or copy it again"
    try:
        yield
    except (VitdeployError, MemoryError):
        raise
    except Exception as error:  # safetensors, pickle and transformers have no base class in common
        kind, line = type(error).__name__, first_line(error)
        if "trust_remote_code" in str(error):
            raise code_refused(folder.name, custom_code(folder.config)) from error
        if kind in ("SafetensorError", "UnpicklingError", "EOFError") or isinstance(error, OSError):
            raise ModelError(f"the weights of {folder.name} can't be read: {line}", hint=damaged) from error
        if "Unrecognized configuration class" in str(error):
            transformers = require("transformers", extra="build")
            raise ModelError(
                f"{folder.name} is a {folder.config.get('model_type')} model, which is not an image classifier in the"
                f" transformers that is installed ({transformers.__version__} has no class of it with a head)",
                hint="name a model of the ViT family (vit, deit, dinov2, beit, swin ...) or one of timm with a"
                " classifier, or try a newer version: pip install --upgrade transformers",
            ) from error
        if isinstance(error, ImportError):
            named = re.search(r"requires the (\S+) library", str(error))  # transformers' words
            package = "that package" if named is None else named[1]
            missing = (
                f"a package that is not installed: {line}" if named is None else f"{package}, which is not installed"
            )
            raise ModelError(f"{folder.name} needs {missing}", hint=f"pip install {package}") from error
        raise ModelError(f"{folder.name} can't be loaded: {kind}: {line}", hint=_UNKNOWN) from error
