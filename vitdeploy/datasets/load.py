"""What a dataset's name means: a known one, a local path, or a Hub id."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from vitdeploy import hub
from vitdeploy.datasets.core import ImageDataset
from vitdeploy.datasets.digits import DIGITS_SPLITS, load_digits
from vitdeploy.datasets.folders import load_folders
from vitdeploy.datasets.sampling import stratified_sample
from vitdeploy.datasets.splits import choose_split
from vitdeploy.errors import DatasetError

__all__ = ["KNOWN_DATASETS", "load_dataset"]

KNOWN_DATASETS = {
    "cifar10": "CIFAR-10, uoft-cs/cifar10 on the Hugging Face Hub",
    "digits": "scikit-learn's 1,797 handwritten digits, no download",
}
_CIFAR10 = "uoft-cs/cifar10"


def load_dataset(
    name: str | os.PathLike[str],
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ImageDataset:
    """Open one split of a dataset.

    Args:
        name: `cifar10`, `digits`, a Hub id (`owner/name`), or a local path: a folder in the Hub's layout or with
            parquet files, one parquet file, or class folders of images (`root/train/cat/1.png`, `root/cat/1.png`).
            A known name wins over a folder of that name; write `./cifar10` for the folder.
        split: `train`, `test`, `validation` ...; data without splits has `train`, `test` and `all`.
        image_column: the column with the images, where it can't be found by its type or name.
        label_column: the same for the classes.
        limit: take a stratified sample of this many images.
        seed: of the sample.

    Raises:
        DatasetError: unknown, missing, damaged or unreachable; or it has no such split or column.

    Example:
        test = load_dataset("digits", "test", limit=100)
    """
    dataset = _load(name, split, image_column, label_column)
    if not len(dataset):
        raise DatasetError(f"{dataset} has no images", hint="choose another split, or add images to it")
    return dataset if limit is None else stratified_sample(dataset, limit, seed=seed)


def _load(name: str | os.PathLike[str], split: str, image_column: str | None, label_column: str | None) -> ImageDataset:
    text = os.fspath(name)
    if name == "digits":
        _no_columns("digits", image_column, label_column)
        return load_digits(choose_split("digits", split, list(DIGITS_SPLITS)).name)
    if name == "cifar10":
        return _from_hub(_CIFAR10, "cifar10", split, image_column, label_column)
    path = Path(text).expanduser()
    if path.exists():
        return _from_path(path, split, image_column, label_column)
    if isinstance(name, str) and "/" in text and not hub.looks_like_path(text) and path.suffix != ".parquet":
        return _from_hub(text, text, split, image_column, label_column)
    close = difflib.get_close_matches(text.lower().replace("-", ""), KNOWN_DATASETS, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise DatasetError(
        f"there is no dataset {text!r}: it is no known name and no local path",
        hint=f"{meant}known are {', '.join(KNOWN_DATASETS)}; else give a Hub id (owner/name) or a path",
    )


def _from_path(path: Path, split: str, image_column: str | None, label_column: str | None) -> ImageDataset:
    from vitdeploy.datasets import tables

    if path.is_file():
        if path.suffix != ".parquet":
            raise DatasetError(f"{path} is no parquet file", hint="give a folder of images or a .parquet file")
        return tables.load_parquet(path, [path], split, image_column, label_column)
    if tables.has_hub_layout(path):
        return tables.load_hub_layout(path, split, image_column, label_column)
    files = tables.parquet_files(path)
    if files:
        return tables.load_parquet(path, files, split, image_column, label_column)
    _no_columns(str(path), image_column, label_column)
    return load_folders(path, split)


def _from_hub(
    repository: str, name: str, split: str, image_column: str | None, label_column: str | None
) -> ImageDataset:
    from vitdeploy.datasets import tables

    return tables.load_from_hub(repository, name, split, image_column, label_column)


def _no_columns(name: str, image_column: str | None, label_column: str | None) -> None:
    if image_column or label_column:
        raise DatasetError(f"{name} has no columns", hint="leave --image-column and --label-column out")
