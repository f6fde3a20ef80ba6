"""Which column of a table holds the images, which the classes, and what the classes are called."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import DatasetError, require

__all__ = ["find_columns", "label_names", "to_label_ids"]

_IMAGE_NAMES = ("image", "img", "picture", "photo", "png", "jpg", "jpeg", "webp", "bytes")
_LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label", "y")


def find_columns(features: Any, dataset: str, image: str | None, label: str | None) -> tuple[str, str]:
    """The image column and the label column: as given, else by type, else by their usual names.

    Raises:
        DatasetError: a given one does not exist or can't be one; or none or several could be meant.
    """
    datasets = require("datasets", extra="build")
    by_type = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    holds_bytes = [name for name, feature in features.items() if name in by_type or _is_bytes(feature)]
    chosen_image = _choose("image", image, by_type, holds_bytes, _IMAGE_NAMES, features, dataset)
    simple = [name for name, feature in features.items() if name in classes or _is_simple(feature)]
    chosen_label = _choose("label", label, classes, simple, _LABEL_NAMES, features, dataset)
    return chosen_image, chosen_label


def _choose(
    role: str,
    given: str | None,
    typed: list[str],
    possible: list[str],
    usual: tuple[str, ...],
    features: Any,
    dataset: str,
) -> str:
    option = f"--{role}-column"
    columns = f"its columns are {', '.join(features)}"
    if given is not None:
        if given not in features:
            raise DatasetError(f"{dataset} has no column {given!r}; {columns}", hint=f"give one of those as {option}")
        if given not in possible:
            raise DatasetError(
                f"the column {given!r} of {dataset} can't be the {role}: it is {features[given]}; {columns}",
                hint=f"give another column as {option}",
            )
        return given
    if len(typed) == 1:
        return typed[0]
    candidates = [name for name in usual if name in (typed or possible)]
    if candidates:
        return candidates[0]
    which = f"several columns could be the {role} ({', '.join(typed)})" if typed else f"no column looks like the {role}"
    raise DatasetError(f"{which} of {dataset}; {columns}", hint=f"say which: {option} NAME")


def _is_bytes(feature: Any) -> bool:
    """Bytes, or the struct of bytes and path in which images are stored."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_simple(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype in ("string", "large_string", "bool") or dtype.startswith(("int", "uint"))


def label_names(tables: list[Any], column: str, dataset: str) -> tuple[tuple[str, ...], list[Any] | None]:
    """The class names, over all splits, and the values that stand for them (None: the values are the class ids).

    Without names of its own the dataset's sorted distinct values are the classes.
    """
    feature = tables[0].features[column]
    if getattr(feature, "names", None):
        return tuple(feature.names), None
    values = {value for table in tables for value in table.unique(column)}
    if None in values:
        raise DatasetError(
            f"the column {column!r} of {dataset} has empty values", hint="remove the rows without a class"
        )
    ordered = sorted(values)
    if ordered and isinstance(ordered[0], int) and not isinstance(ordered[0], bool) and ordered[0] < 0:
        raise DatasetError(
            f"the column {column!r} of {dataset} has negative classes ({ordered[0]})",
            hint="-1 usually stands for an unlabelled image: choose another split",
        )
    return tuple(str(value) for value in ordered), ordered


def to_label_ids(table: Any, column: str, values: list[Any] | None, dataset: str) -> NDArray[np.int64]:
    """Class ids (count,) of a table's rows.

    Raises:
        DatasetError: a row has no class, or one that does not exist.
    """
    raw = list(table[column])
    if values is not None:
        ids = {value: index for index, value in enumerate(values)}
        return np.array([ids[value] for value in raw], dtype=np.int64)
    count = len(table.features[column].names)
    wrong = next((index for index, value in enumerate(raw) if value is None or not 0 <= value < count), None)
    if wrong is not None:
        raise DatasetError(
            f"row {wrong} of {dataset} has the class {raw[wrong]!r}, but classes go from 0 to {count - 1}",
            hint="-1 stands for an unlabelled image: choose another split",
        )
    return np.array(raw, dtype=np.int64)
