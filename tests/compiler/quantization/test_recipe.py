"""Recipes: what they may say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy.compiler.quantization.recipe import Recipe, read_recipe
from vitdeploy.core.errors import InputError

RECIPES = sorted((Path(__file__).parents[3] / "calibration").glob("*.toml"))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_in_the_repository_reads(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.dataset and recipe.split != "test"


def test_every_key_has_its_value(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        'dataset = "digits"\nsplit = "validation"\ncount = 7\nseed = 3\nmethod = "percentile"\npercentile = 99.9\n'
        "smoothing = false\nbias_correction = false\n"
    )
    assert read_recipe(file) == Recipe("digits", "validation", 7, 3, "percentile", 99.9, False, False)


def test_a_relative_folder_is_taken_from_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('dataset = "./images"\n')
    assert read_recipe(file).dataset == str(tmp_path / "images")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset = ", "is not TOML"),
        ('colour = "red"', "no setting 'colour'"),
        ('count = "many"', "count is 'many'"),
        ("count = true", "count is True"),
        ("count = 0", "count must be at least 1"),
        ("smoothing = 1", "smoothing is 1"),
        ('method = "magic"', "no calibration method 'magic'"),
        ("percentile = 20.0", "percentile must be above 50"),
        ('split = "test"', "calibration on the test split"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(file)
    assert caught.value.hint


def test_a_missing_recipe_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't read"):
        read_recipe(tmp_path / "none.toml")
