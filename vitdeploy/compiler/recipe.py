"""Calibration recipes: which images, how many, and what is done with them. Stored as TOML in calibration/."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vitdeploy.datasets.splits import split_of
from vitdeploy.errors import InputError

__all__ = ["METHODS", "SELECTIONS", "Placement", "Recipe", "read_recipe"]

METHODS = ("mse", "minmax", "percentile", "entropy")
SELECTIONS = ("stratified", "random", "diverse")


@dataclass(frozen=True)
class Placement:
    """What is quantised beside the encoder's products with constant weights.

    `patch_embedding` and `classifier` are the first and the last product of the model, `attention` the two products
    without weights: queries with keys, and probabilities with values (Q, K, V and the softmax's output together).
    """

    patch_embedding: bool = False
    classifier: bool = False
    attention: bool = False


@dataclass(frozen=True)
class Recipe:
    """How INT8 is calibrated.

    `dataset` and `split` say where the images come from (never the test split), `count` how many, `selection` and
    `seed` which: `stratified` the same share of each class, `random`, or `diverse`, far from each other in the model's
    features. `method` chooses each activation's range: `mse` by the error of the layer's output, `minmax` all that was
    seen, `percentile` all but the `100 - percentile` per cent that are largest, `entropy` by the divergence of the
    histogram. `smoothing` moves outlier channels from activations into weights, `bias_correction` takes the mean error
    out of each layer. The last three say what is quantised beside the encoder's products: see `Placement`.
    """

    dataset: str | None = None
    split: str = "train"
    count: int = 256
    seed: int = 0
    method: str = "mse"
    percentile: float = 99.99
    smoothing: bool = True
    bias_correction: bool = True
    selection: str = "stratified"
    patch_embedding: bool = False
    classifier: bool = False
    attention: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"calibration method {self.method!r} is not known", hint=f"one of {', '.join(METHODS)}")
        if self.selection not in SELECTIONS:
            raise InputError(f"selection {self.selection!r} is not known", hint=f"one of {', '.join(SELECTIONS)}")
        if self.count < 1:
            raise InputError(f"calibration needs at least one image, got count = {self.count}", hint="try count = 256")
        if not 50 < self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile}, outside 50..100", hint="try percentile = 99.99")
        if split_of(self.split) == "test" or self.split == "all":
            raise InputError(
                "calibration on the test split would make its accuracy meaningless", hint='use split = "train"'
            )

    @property
    def placement(self) -> Placement:
        return Placement(self.patch_embedding, self.classifier, self.attention)

    def to_json(self) -> dict[str, Any]:
        """All settings; of a local dataset's path only the last part, since a bundle travels."""
        data = asdict(self)
        if self.dataset is not None and Path(self.dataset).exists():
            data["dataset"] = Path(self.dataset).resolve().name
        return data

    def with_data(self, dataset: str) -> Recipe:
        """The same recipe on other images."""
        return replace(self, dataset=dataset)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe; a relative path of a local dataset in it is taken from the recipe's folder.

    Raises:
        InputError: the file is missing, is no TOML, or has a key or value that is not known.
    """
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        with open(path, "rb") as file:
            data = toml.load(file)
    except OSError as error:
        raise InputError(
            f"can't read the recipe {path}: {error.strerror}", hint="see the folder calibration/"
        ) from error
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}", hint="see calibration/digits.toml for an example") from error
    known = {field.name: field for field in fields(Recipe)}
    for name, value in data.items():
        if name not in known:
            raise InputError(f"{path}: {name!r} is not known", hint=f"a recipe may hold {', '.join(known)}")
        wanted: tuple[type, ...] = {"str": (str,), "str | None": (str,), "int": (int,), "bool": (bool,)}.get(
            str(known[name].type), (int, float)
        )
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise InputError(f"{path}: {name} is {value!r}", hint=f"it must be of type {known[name].type}")
    dataset = data.get("dataset")
    if isinstance(dataset, str) and dataset.startswith(("./", "../")):
        data["dataset"] = str((Path(path).parent / dataset).resolve())
    return Recipe(**data)
