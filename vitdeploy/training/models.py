"""A checkpoint made ready for a dataset: its classes, its image size, float32 weights.

Position embeddings are resized as transformers' `interpolate_pos_encoding` does it: bicubic on the patch grid,
align_corners=False, the class token's left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitdeploy.core.errors import DatasetError, InputError, ModelError, require
from vitdeploy.data.labels import BY_NAME, LabelMatch, match_labels
from vitdeploy.models.checkpoints import CheckpointFolder, load_processor, load_weights, reading_weights
from vitdeploy.models.configs import configuration
from vitdeploy.models.tasks import THRESHOLD_KEY, Task, task_of
from vitdeploy.training.regularise import takes_drop_path_rate
from vitdeploy.training.scoring import SCORINGS, Scoring

__all__ = ["Trainable", "load_trainable", "require_trainable"]


@dataclass(frozen=True)
class Trainable:
    """A float32 `...ForImageClassification`, its image processor, and what was changed on the way, in words."""

    module: Any
    processor: Any
    notes: tuple[str, ...]


def load_trainable(
    folder: CheckpointFolder,
    labels: tuple[str, ...],
    *,
    image_size: int | None,
    seed: int,
    drop_path: float = 0.0,
    way: str = BY_NAME,
    scoring: Scoring = SCORINGS[0],
) -> Trainable:
    """Load the weights; give them a new head unless theirs is trained for these very classes, in whatever order, and
    for as many of them an image as `scoring` is for.

    `drop_path` is given to models that have stochastic depth of their own; `way` to match labels: see `data.labels`.

    Raises:
        ModelError: damaged, incomplete, or no model that can be fine-tuned here (or at that image size).
    """
    torch = require("torch", extra="build")
    notes: list[str] = []
    config = _config(folder, labels, scoring)
    if drop_path and takes_drop_path_rate(config):
        config.drop_path_rate = drop_path
    module, missing, other_shape = load_weights(folder, config, new_head=True)
    head = _head(module)
    if missing:
        notes.append(f"{folder.source} has no classification head: a new one for {len(labels)} classes is trained.")
    match = None if missing or other_shape else _same_classes(_own_labels(folder), labels, way)
    if not missing and (own := _own_task(folder)) is not scoring.task:
        problem = folder.config.get("problem_type")
        notes.append(
            f"{folder.source} gives {own.title}{f' ({problem})' if problem else ''}: a new head is trained, for"
            f" {scoring.task.title}."
        )
    elif not missing and match is None:
        notes.append(
            f"The head of {folder.source} was for {len(_own_labels(folder))} other classes: a new one for"
            f" {len(labels)} classes is trained."
        )
    if notes:
        _initialise(torch, head, config, seed)
    elif match is not None and match.sentence:
        notes.append(f"The head of {folder.source} is kept: {match.sentence}.")
        _reorder(torch, head, match)
    if folder.config.get("dtype", folder.config.get("torch_dtype")) in ("float16", "bfloat16"):
        notes.append(f"The weights of {folder.source} are stored in 16 bits: they are trained and saved in float32.")
    if image_size is not None and image_size != config.image_size:
        notes.append(f"Image size {config.image_size} becomes {image_size}: the position embeddings are resized.")
        module = _resize(torch, module, image_size)
    for name, parameter in module.named_parameters():
        if name.endswith("mask_token"):  # a classifier never uses it: without a gradient DDP would wait for one
            parameter.requires_grad_(False)
    processor, note = _fit_processor(load_processor(folder), module.config.image_size)
    return Trainable(module, processor, (*notes, *note))


def require_trainable(folder: CheckpointFolder) -> None:
    """Refuse by its config.json a model that can't be fine-tuned here, before anything slow is done.

    Raises:
        ModelError: it is one.
    """
    _trainable_config(folder)


def _config(folder: CheckpointFolder, labels: tuple[str, ...], scoring: Scoring) -> Any:
    config = _trainable_config(folder)
    config.problem_type = scoring.problem_type  # an inherited one would have it read otherwise
    if hasattr(config, THRESHOLD_KEY):  # of the labels that it was trained for before
        delattr(config, THRESHOLD_KEY)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.num_labels = len(labels)
    return config


def _trainable_config(folder: CheckpointFolder) -> Any:
    if folder.config["model_type"] == "timm_wrapper":
        raise ModelError(
            f"{folder.name} is a model of timm, which can be exported and not fine-tuned here",
            hint="fine-tune it with timm and export that, or fine-tune a vit, deit or dinov2 of transformers",
        )
    with reading_weights(folder):
        config = configuration(folder)
    for name in ("image_size", "patch_size"):
        side = getattr(config, name, None)
        if isinstance(side, (list, tuple)) and len(set(side)) == 1:
            side = side[0]
        if not isinstance(side, int):
            raise ModelError(
                f"fine-tuning is not supported for {folder.name}, a {config.model_type} model: its config.json has no"
                f" {name} that is one number",
                hint="fine-tune a model of the ViT family (vit, deit, dinov2 ...); export says whether it takes this",
            )
        setattr(config, name, side)
    return config


def _prefix(module: Any) -> str:
    return f"{module.base_model_prefix}."


def _own_task(folder: CheckpointFolder) -> Task:
    """What the checkpoint's own head answers."""
    with reading_weights(folder):
        return task_of(configuration(folder))


def _own_labels(folder: CheckpointFolder) -> tuple[str, ...]:
    names = folder.config.get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _head(module: Any) -> dict[str, Any]:
    """The layers outside the backbone, by name."""
    return {
        name: layer for name, layer in module.named_modules() if name and not f"{name}.".startswith(_prefix(module))
    }


def _same_classes(own: tuple[str, ...], labels: tuple[str, ...], way: str) -> LabelMatch | None:
    """How a head's classes are those of the dataset, None where they are others.

    That numbers of a dataset could be places of the head's classes is not a reason to treat them as the same.
    """
    try:
        match = match_labels(own, labels, way)
    except DatasetError:
        return None
    return match if match.complete and match.kind != "id" else None


def _reorder(torch: Any, head: dict[str, Any], match: LabelMatch) -> None:
    """Put the rows of the head's last layers in the dataset's order of classes."""
    order = torch.from_numpy(match.classes)
    with torch.no_grad():
        for layer in head.values():
            if isinstance(layer, torch.nn.Linear) and layer.out_features == len(order):
                for parameter in layer.parameters():
                    parameter.copy_(parameter[order])


def _initialise(torch: Any, head: dict[str, Any], config: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in head.values():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=config.initializer_range, generator=generator)
            torch.nn.init.zeros_(layer.bias)


def _resize(torch: Any, module: Any, image_size: int) -> Any:
    """The same model for images of another size."""
    config = type(module.config).from_dict(module.config.to_dict())
    if image_size % config.patch_size:
        raise InputError(
            f"image size {image_size} is not a multiple of the patch size {config.patch_size}",
            hint=f"try --image-size {max(1, round(image_size / config.patch_size)) * config.patch_size}",
        )
    old_side, new_side = config.image_size // config.patch_size, image_size // config.patch_size
    config.image_size = image_size
    resized = type(module)(config)
    state = module.state_dict()
    for key, target in resized.state_dict().items():
        if state[key].shape == target.shape:
            continue
        if (
            not key.endswith("position_embeddings")
            or target.shape[1] - new_side**2 != state[key].shape[1] - old_side**2
        ):
            raise ModelError(
                f"a {config.model_type} model can't take another image size: {key} depends on it",
                hint="leave --image-size out",
            )
        state[key] = _resize_positions(torch, state[key], old_side, new_side)
    resized.load_state_dict(state)
    return resized


def _resize_positions(torch: Any, positions: Any, old_side: int, new_side: int) -> Any:
    """(1, special + old_side^2, hidden) -> (1, special + new_side^2, hidden)."""
    special = positions.shape[1] - old_side**2
    hidden = positions.shape[2]
    grid = (
        positions[:, special:].reshape(1, old_side, old_side, hidden).permute(0, 3, 1, 2)
    )  # (1, hidden, rows, columns)
    grid = torch.nn.functional.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).reshape(1, new_side**2, hidden)
    return torch.cat([positions[:, :special], patches], dim=1)


def _fit_processor(processor: Any, image_size: int) -> tuple[Any, list[str]]:
    """Let the processor give images of `image_size`; what it resizes to before a crop keeps its proportion to it."""
    settings = processor.to_dict()
    cropped = bool(settings.get("do_center_crop")) and settings.get("crop_size")
    target = dict(settings["crop_size"] if cropped else settings["size"])
    current = target.get("height") or target.get("shortest_edge")
    if current == image_size and target.get("width", image_size) == image_size and "shortest_edge" not in target:
        return processor, []
    square = {"height": image_size, "width": image_size}
    if cropped:
        size = {
            name: round(value * image_size / current)
            for name, value in dict(settings["size"]).items()
            if value is not None
        }
        settings.update(size=size, crop_size=square)
    else:
        settings.update(size=square)
    note = f"The image processor now gives {image_size}x{image_size} pixels (before: {current})."
    return type(processor).from_dict(settings), [note]
