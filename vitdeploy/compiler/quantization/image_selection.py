"""Which images calibrate INT8, and which others evaluate it.

Calibration images come from the recipe's split, never from the test split; validation images, on which decisions such
as `--max-drop` are made, come from what is left of the same split, less images whose bytes equal those of a calibration
image. Both are the same for the same recipe on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitdeploy.compiler.passes.values import answer_value, constant
from vitdeploy.compiler.quantization.observers import activations
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.core import progress
from vitdeploy.core.errors import DatasetError, InputError, ModelError
from vitdeploy.data import ImageDataset, load_dataset, stratified_sample
from vitdeploy.data.folders import UNLABELLED
from vitdeploy.data.splits import own_split, split_of
from vitdeploy.evaluation.batches import answers_of, open_session

__all__ = ["Chosen", "choose_images"]

_POOL = 4  # diverse images are chosen among this many times as many


@dataclass(frozen=True)
class Chosen:
    """Images for calibration, and the rest of the split, which has none of them."""

    calibration: ImageDataset
    rest: ImageDataset

    def validation(self, count: int, seed: int, *, labelled: bool = True) -> ImageDataset:
        """At most `count` images of the rest, the same share of each class, no copies of calibration images.

        Raises:
            DatasetError: there are none left, or `labelled` ones are wanted and they have no labels.
        """
        if labelled and self.rest.labels == (UNLABELLED,):
            raise DatasetError(
                f"{self.rest} has no labels, so accuracy can't be measured on it",
                hint="lay the images out in class folders, or name a labelled dataset",
            )
        others = self.others(count, seed)
        if others is None:
            raise DatasetError(
                f"all images of {self.calibration} calibrate, so none is left to validate on",
                hint="name other images with --dataset or --split, or calibrate with a recipe of a lower count",
            )
        return others

    def others(self, count: int, seed: int) -> ImageDataset | None:
        """The same, labelled or not; None where there are none left."""
        if not len(self.rest):
            return None
        sample = stratified_sample(self.rest, count, seed=seed + 1)
        known = {_bytes_hash(self.calibration, index) for index in range(len(self.calibration))}
        fresh = [index for index in range(len(sample)) if _bytes_hash(sample, index) not in known]
        return sample.subset(fresh) if fresh else None


def _bytes_hash(images: ImageDataset, index: int) -> int:
    content = images.source.read(int(images.indices[index]))
    return hash(content.tobytes() if isinstance(content, np.ndarray) else content)


def choose_images(recipe: Recipe, model_path: Path | None = None) -> Chosen:
    """The recipe's images.

    Args:
        model_path: model.onnx, whose features tell images apart; only `diverse` needs it.

    Raises:
        InputError: the recipe names no dataset, or a folder that is a test split by its name.
        DatasetError: there are no such images.
    """
    if recipe.dataset is None:
        raise InputError(
            "the recipe names no dataset", hint='add dataset = "..." to it, or give --calibration-data as well'
        )
    dataset = _load(recipe.dataset, recipe.split)
    if recipe.selection == "stratified":
        chosen = stratified_sample(dataset, recipe.count, seed=recipe.seed)
        wanted = chosen.indices
    elif recipe.selection == "random":
        order = np.random.default_rng(recipe.seed).permutation(len(dataset))
        wanted = dataset.indices[np.sort(order[: recipe.count])]
    else:
        assert model_path is not None, "diverse images need the model"
        wanted = _diverse(dataset, recipe, model_path)
    inside = np.isin(dataset.indices, wanted)
    return Chosen(dataset.subset(np.flatnonzero(inside)), dataset.subset(np.flatnonzero(~inside)))


def _load(name: str, split: str) -> ImageDataset:
    path = Path(name).expanduser()
    if path.is_dir():
        if split_of(path.resolve().name) == "test":
            raise InputError(
                f"{name} is a test split by its name: calibrating on it would make its accuracy meaningless",
                hint="name the folder of the training images, or the folder that holds both splits",
            )
        split = own_split(path.resolve().name) or split
    return load_dataset(name, split, labelled=False)


def _diverse(dataset: ImageDataset, recipe: Recipe, model_path: Path) -> np.ndarray:
    """Positions of images far from each other: farthest-point sampling (Gonzalez 1985) by cosine distance.

    It starts with the image nearest to the mean and takes, again and again, the one that is farthest from all taken.
    """
    pool = stratified_sample(dataset, min(len(dataset), _POOL * recipe.count), seed=recipe.seed)
    features = _features(pool, model_path)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    taken = [int(np.argmax(features @ features.mean(axis=0)))]
    nearest = 1 - features @ features[taken[0]]
    while len(taken) < min(recipe.count, len(pool)):
        taken.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, 1 - features @ features[taken[-1]])
    positions: np.ndarray = pool.indices[np.sort(taken)]
    return positions


def _features(images: ImageDataset, model_path: Path) -> np.ndarray:
    """What the classifier reads, or the embedding itself, (count, channels)."""
    import onnx_ir as ir

    model = ir.load(model_path)
    answer = answer_value(model)
    if answer.name == "embedding":
        return answers_of(open_session(model_path), images)
    node = answer.producer()
    while node is not None and constant(node.inputs[1] if len(node.inputs) > 1 else None) is None:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    if node is not None and node.op_type == "Add":  # the bias behind the product
        value = node.inputs[0] if constant(node.inputs[0]) is None else node.inputs[1]
        node = None if value is None else value.producer()
    value = None if node is None else node.inputs[0]
    if value is None or len(value.shape or ()) != 2:
        raise ModelError(
            "the graph shows no features in front of its classifier, so diverse images can't be chosen",
            hint='use selection = "stratified"',
        )
    pictures = (images.image(index) for index in range(len(images)))
    with progress.task("Choosing images", total=len(images), unit="images") as step:
        rows = []
        for arrays in activations(model, [value], pictures):
            rows.append(arrays[0])
            step.advance()
    return np.stack(rows)
