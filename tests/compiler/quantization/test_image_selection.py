"""Calibration never touches the test split, and validation images are no calibration images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vitdeploy.compiler.quantization.image_selection import choose_images
from vitdeploy.compiler.quantization.recipe import SELECTIONS, Recipe
from vitdeploy.core.errors import DatasetError, InputError
from vitdeploy.data import ImageDataset, load_dataset


def contents(images: ImageDataset) -> list[bytes]:
    found = [images.source.read(int(index)) for index in images.indices]
    return [content.tobytes() if isinstance(content, np.ndarray) else content for content in found]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("dataset", ["digits", "folder"])
def test_no_image_is_used_for_two_purposes(selection: str, dataset: str, tiny_bundle: Path, tiny_images: Path) -> None:
    name = str(tiny_images) if dataset == "folder" else dataset
    recipe = Recipe(dataset=name, count=16, selection=selection, seed=5)
    chosen = choose_images(recipe, tiny_bundle / "model.onnx")
    validation = chosen.validation(100, recipe.seed)
    test = load_dataset(name, "test")
    assert len(chosen.calibration) == 16 and len(validation)
    assert not set(contents(chosen.calibration)) & set(contents(test))
    assert not set(contents(chosen.calibration)) & set(contents(validation))
    assert not set(contents(validation)) & set(contents(test))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_choice_repeats_and_follows_the_seed(selection: str, tiny_bundle: Path) -> None:
    recipe = Recipe(dataset="digits", count=20, selection=selection)
    model = tiny_bundle / "model.onnx"
    first, again = choose_images(recipe, model).calibration, choose_images(recipe, model).calibration
    assert first.fingerprint == again.fingerprint
    other = Recipe(dataset="digits", count=20, selection=selection, seed=1)
    assert choose_images(other, model).calibration.fingerprint != first.fingerprint


def test_stratified_keeps_the_classes_balanced() -> None:
    chosen = choose_images(Recipe(dataset="digits", count=40))
    assert set(chosen.calibration.class_counts().values()) <= {3, 4, 5}


def test_diverse_images_are_further_from_each_other(tiny_bundle: Path) -> None:
    from vitdeploy.compiler.quantization.image_selection import _features

    model = tiny_bundle / "model.onnx"
    nearest = {}
    for selection in ("diverse", "stratified"):
        chosen = choose_images(Recipe(dataset="digits", count=24, selection=selection), model).calibration
        features = _features(chosen, model)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        distances = 1 - features @ features.T + 9 * np.eye(len(features))
        nearest[selection] = distances.min(axis=1).mean()
    assert nearest["diverse"] > 1.3 * nearest["stratified"]


def test_copies_of_calibration_images_do_not_validate(tmp_path: Path, tiny_images: Path) -> None:
    source = next((tiny_images / "one").glob("*.png"))
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            shutil.copy(source, tmp_path / "data" / label / f"{number}.png")
    chosen = choose_images(Recipe(dataset=str(tmp_path / "data"), count=4))
    assert len(chosen.rest) == 12
    with pytest.raises(DatasetError, match="none is left to validate on"):
        chosen.validation(12, 0)


def test_a_folder_of_images_alone_calibrates_and_does_not_validate(tmp_path: Path, tiny_images: Path) -> None:
    for number, path in enumerate(sorted(tiny_images.rglob("*.png"))):
        shutil.copy(path, tmp_path / f"{number}.png")
    chosen = choose_images(Recipe(dataset=str(tmp_path), count=12))
    assert len(chosen.calibration) == 12 and len(chosen.rest) == 20  # a fifth of 40 is kept for testing
    assert chosen.calibration.image(0).shape[2] == 3
    with pytest.raises(DatasetError, match="has no labels"):
        chosen.validation(10, 0)


def test_a_test_folder_is_refused(tmp_path: Path, tiny_images: Path) -> None:
    shutil.copytree(tiny_images, tmp_path / "test")
    with pytest.raises(InputError, match="test split by its name"):
        choose_images(Recipe(dataset=str(tmp_path / "test"), count=4))


def test_without_a_dataset_or_a_rest_the_next_step_is_named(tiny_images: Path) -> None:
    with pytest.raises(InputError, match="names no dataset"):
        choose_images(Recipe())
    everything = choose_images(Recipe(dataset=str(tiny_images), count=1000))
    with pytest.raises(DatasetError, match="none is left to validate on"):
        everything.validation(10, 0)
