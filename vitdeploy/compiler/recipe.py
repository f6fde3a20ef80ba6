"""Calibration recipes: which images, how many, and what is done with them. Stored as TOML in calibration/."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError

__all__ = ["METHODS", "Recipe", "read_recipe"]

METHODS = ("mse", "minmax", "percentile")


@dataclass(frozen=True)
class Recipe:
    """How INT8 is calibrated.

    `dataset` and `split` say where the images come from (never the test split), `count` how many, `seed` which: a
    sample stratified by class. `method` chooses each activation's range: `mse` by the error of the layer's output,
    `minmax` all that was seen, `percentile` all but the `100 - percentile` per cent that are largest. `smoothing` moves
    outlier channels from activations into weights, `bias_correction` takes the mean error out of each layer.
    """

    dataset: str | None = None
    split: str = "train"
    count: int = 256
    seed: int = 0
    method: str = "mse"
    percentile: float = 99.99
    smoothing: bool = True
    bias_correction: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"calibration method {self.method!r} is not known", hint=f"one of {', '.join(METHODS)}")
        if self.count < 1:
            raise InputError(f"calibration needs at least one image, got count = {self.count}", hint="try count = 256")
        if not 50 < self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile}, outside 50..100", hint="try percentile = 99.99")
        if self.split == "test":
            raise InputError(
                "calibration on the test split would make its accuracy meaningless", hint='use split = "train"'
            )

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
