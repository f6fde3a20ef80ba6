"""Which column of a table holds the images, which the classes, and what the classes are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.core.errors import DatasetError, require

__all__ = [
    "IMAGE_NAMES",
    "LABEL_NAMES",
    "PATH_NAMES",
    "find_columns",
    "is_list",
    "item_of",
    "label_ids_of",
    "label_names",
    "label_sets_of",
    "own_names",
    "rarest_labels",
    "to_label_ids",
]

IMAGE_NAMES = ("image", "img", "picture", "photo", "png", "jpg", "jpeg", "webp", "bytes")
PATH_NAMES = ("file_name", "filename", "file_path", "filepath", "image_path", "img_path", "path", "file")
_TEXTS = ("string", "large_string", "string_view")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label", "y")


def find_columns(features: Any, dataset: str, image: str | None, label: str | None) -> tuple[str, str]:
    """The image column and the label column: as given, else by type, else by their usual names.

    Raises:
        DatasetError: a given one does not exist or can't be one; or none or several could be meant.
    """
    datasets = require("datasets", extra="build")
    by_type = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = [name for name, feature in features.items() if isinstance(item_of(feature), datasets.ClassLabel)]
    possible = [name for name, feature in features.items() if name in by_type or _is_bytes(feature)]
    if not possible or image is not None:  # texts: paths of files
        possible += [name for name, feature in features.items() if str(getattr(feature, "dtype", "")) in _TEXTS]
    chosen_image = _choose("image", image, by_type, possible, (*IMAGE_NAMES, *PATH_NAMES), features, dataset)
    simple = [name for name, feature in features.items() if name in classes or _is_simple(item_of(feature))]
    chosen_label = _choose("label", label, classes, simple, LABEL_NAMES, features, dataset)
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


def item_of(feature: Any) -> Any:
    """What a column holds: of lists, what is in them."""
    return feature.feature if is_list(feature) else feature


def is_list(feature: Any) -> bool:
    """Whether a column holds a list in each row: several labels."""
    return hasattr(feature, "feature")


def _is_bytes(feature: Any) -> bool:
    """Bytes, or the struct of bytes and path in which images are stored."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_simple(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype in (*_TEXTS, "bool") or dtype.startswith(("int", "uint", "float"))


def label_names(tables: list[Any], column: str, dataset: str) -> tuple[tuple[str, ...], dict[Any, int] | None]:
    """The class names, over all splits, and which class each value is (None: the values are the class ids).

    Without names of its own the dataset's sorted distinct values are the classes.
    """
    what = f"the column {column!r} of {dataset}"
    names = own_names(tables[0].features[column], what)
    if names is not None:
        return names, None
    return label_ids_of((value for table in tables for value in table.unique(column)), what)


def own_names(feature: Any, what: str) -> tuple[str, ...] | None:
    """The names of the classes that a column's numbers stand for, where its table has them.

    Raises:
        DatasetError: a name is no text; `what` says of which column.
    """
    names = getattr(item_of(feature), "names", None)
    if not names:
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        shown = ascii(names)
        raise DatasetError(
            f"{what} has class names that are no list of texts: {shown[:60]}{'...' if len(shown) > 60 else ''}",
            hint="write the table again with a name for each class, or without names",
        )
    return tuple(names)


def label_ids_of(values: Iterable[Any], what: str) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The classes that values stand for, in order, and the id of each value; whole numbers may come as floats.

    Raises:
        DatasetError: a value is missing, negative, or no class; `what` says where they are from.
    """
    different = set(values)
    if any(value is None or value != value or value == "" for value in different):
        raise DatasetError(f"{what} has empty values", hint="remove the rows without a class")
    if any(isinstance(value, float) for value in different):
        odd = next((value for value in different if not float(value).is_integer()), None)
        if odd is not None:
            raise DatasetError(
                f"{what} holds numbers that are not classes ({odd})",
                hint="name the column of the classes: --label-column",
            )
        different = {int(value) for value in different}
    kinds = {str if isinstance(value, str) else bool if isinstance(value, bool) else int for value in different}
    if len(kinds) > 1 or not all(isinstance(value, (str, int)) for value in different):
        raise DatasetError(
            f"{what} holds values of several kinds", hint="write all classes as texts or as whole numbers"
        )
    ordered = sorted(different)
    if kinds == {int} and ordered[0] < 0:
        raise DatasetError(
            f"{what} has negative classes ({ordered[0]})",
            hint="-1 usually stands for an unlabelled image: choose another split, or remove these rows",
        )
    return tuple(map(str, ordered)), {value: index for index, value in enumerate(ordered)}


def to_label_ids(table: Any, column: str, ids: dict[Any, int] | None, dataset: str) -> NDArray[np.int64]:
    """Class ids (count,) of a table's rows.

    Raises:
        DatasetError: a row has no class, or one that does not exist.
    """
    raw = list(table[column][:])  # at once: row by row a table takes seconds
    if ids is not None:
        return np.array([ids[value] for value in raw], dtype=np.int64)
    count = len(table.features[column].names)
    wrong = next((index for index, value in enumerate(raw) if value is None or not 0 <= value < count), None)
    if wrong is not None:
        unlabelled = raw[wrong] is None or raw[wrong] < 0
        raise DatasetError(
            f"row {wrong} of {dataset} has the class {raw[wrong]!r}, but classes go from 0 to {count - 1}",
            hint="it stands for an unlabelled image: choose another split, or remove these rows"
            if unlabelled
            else "correct that row, or write the table again with a name for each class",
        )
    return np.array(raw, dtype=np.int64)


def label_sets_of(
    parts: Mapping[str, Sequence[Any]], names: Sequence[str] | None, what: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.bool_]]]:
    """The labels of all parts, and of each whether its rows have each label, (rows, labels).

    Args:
        parts: of each split its rows: a list of labels each (None: none), or 0 and 1 for each of the labels.
        names: the labels that numbers stand for; None: the values are the labels.

    Raises:
        DatasetError: a value is no label; `what` says where they are from.
    """
    rows = [row for part in parts.values() for row in part]
    wrong = next((row for row in rows if row is not None and not isinstance(row, list)), None)
    if wrong is not None:
        raise DatasetError(
            f"{what} holds lists of labels and {wrong!r}, which is none", hint='write it as a list: ["cat"]'
        )
    lists = [row or [] for row in rows]
    if _is_multi_hot(lists):
        labels = tuple(names or map(str, range(len(lists[0]))))
        lists = [[place for place, has in enumerate(row) if has] for row in lists]
        ids = {index: index for index in range(len(labels))}
    elif names is not None:
        labels, ids = tuple(names), {index: index for index in range(len(names))}
    else:
        labels, ids = label_ids_of((value for row in lists for value in row), what)
    every = np.zeros((len(lists), len(labels)), dtype=np.bool_)
    for place, row in enumerate(lists):
        for value in row:
            if value not in ids:
                raise DatasetError(
                    f"row {place} of {what} has the label {value!r}, but labels go from 0 to {len(labels) - 1}",
                    hint="correct that row, or remove it",
                )
            every[place, ids[value]] = True
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    return labels, dict(zip(parts, np.split(every, ends), strict=True))


def rarest_labels(sets: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each row of (rows, labels) the label that the fewest rows have; 0 where it has none."""
    counts = np.where(sets, sets.sum(axis=0), len(sets) + 1)
    rarest: NDArray[np.int64] = counts.argmin(axis=1).astype(np.int64)
    return rarest


def _is_multi_hot(lists: list[list[Any]]) -> bool:
    """Whether the rows are 0 and 1 for each label: as long as each other, and one repeats a number as no list would."""
    width = len(lists[0]) if lists else 0
    same = width > 1 and all(len(row) == width and set(row) <= {0, 1} for row in lists)
    return same and any(len(set(row)) < len(row) for row in lists)
