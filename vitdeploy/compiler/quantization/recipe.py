"""Calibration recipes: which images, how many, and what is done with them. Stored as TOML in calibration/."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Annotated, Any

from vitdeploy.core.errors import InputError
from vitdeploy.core.settings import AT_LEAST_ONE, INPUT, PATH, OneOf, Range, check, read_toml, shown
from vitdeploy.data.splits import split_of

__all__ = ["METHODS", "SELECTIONS", "Placement", "Recipe", "read_recipe"]

METHODS = ("mse", "minmax", "percentile", "entropy")
SELECTIONS = ("stratified", "random", "diverse")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What is quantised beside the encoder's products with constant weights.

    `patch_embedding` and `classifier` are the first and the last product of the model, `attention` the two products
    without weights: queries with keys, and probabilities with values (Q, K, V and the softmax's output together).
    """

    patch_embedding: bool = False
    classifier: bool = False
    attention: bool = False


@dataclass(frozen=True)
class Recipe(Placement):
    """How INT8 is calibrated.

    `dataset` and `split` say where the images come from (never the test split), `count` how many, `selection` and
    `seed` which: `stratified` the same share of each class, `random`, or `diverse`, far from each other in the model's
    features. `method` chooses each activation's range: `mse` by the error of the layer's output, `minmax` all that was
    seen, `percentile` all but the `100 - percentile` per cent that are largest, `entropy` by the divergence of the
    histogram. `smoothing` moves outlier channels from activations into weights, `bias_correction` takes the mean error
    out of each layer, `adaptive_rounding` rounds FP8's weights by the error of the layer's output (INT8's are rounded
    to the nearest). What is quantised beside the encoder's products is its `Placement`.
    """

    dataset: Annotated[str | None, PATH, INPUT] = None
    split: str = "train"
    count: Annotated[int, AT_LEAST_ONE] = 256
    seed: int = 0
    method: Annotated[str, OneOf("calibration method", METHODS)] = "mse"
    percentile: Annotated[float, Range("above 50 and at most 100", lambda value: 50 < value <= 100)] = 99.99
    smoothing: bool = True
    bias_correction: bool = True
    adaptive_rounding: bool = True
    selection: Annotated[str, OneOf("selection of images", SELECTIONS)] = "stratified"

    def __post_init__(self) -> None:
        check(self)
        if split_of(self.split) == "test" or self.split == "all":
            raise InputError(
                "calibration on the test split would make its accuracy meaningless", hint='use split = "train"'
            )

    def to_json(self) -> dict[str, Any]:
        """All settings; of a local dataset's path only the last part, since a bundle travels."""
        return shown(self)

    def with_data(self, dataset: str) -> Recipe:
        """The same recipe on other images."""
        return replace(self, dataset=dataset)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe; a dataset in it that starts with ./ or ../ is taken from the recipe's folder.

    Raises:
        InputError: the file is missing, is not TOML, or has a key or value that is not known.
    """
    return Recipe(**read_toml(path, Recipe))
