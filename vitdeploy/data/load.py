"""What a dataset's name means: a known one, a local path, or a Hub id."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from vitdeploy.core import progress
from vitdeploy.core.addresses import hub_hint, is_address
from vitdeploy.core.errors import DatasetError
from vitdeploy.data.dataset import ImageDataset
from vitdeploy.data.digits import DIGITS_SPLITS, load_digits
from vitdeploy.data.folders import ARCHIVES, load_folders
from vitdeploy.data.metadata import METADATA_FILES
from vitdeploy.data.sampling import stratified_sample
from vitdeploy.data.splits import choose_split
from vitdeploy.models import hub

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
    labelled: bool = True,
) -> ImageDataset:
    """Open one split of a dataset.

    Args:
        name: `cifar10`, `digits`, a Hub id (`owner/name`), or a local path: a folder in the Hub's layout or with
            parquet files, one parquet file, class folders of images (`root/train/cat/1.png`, `root/cat/1.png`), or
            images with a metadata.csv or metadata.jsonl (`file_name`, `label`).
            A known name wins over a folder of that name; write `./cifar10` for the folder.
        split: `train`, `test`, `validation` ...; data without splits has `train`, `test` and `all`. A folder that is
            called train, test, val, valid or validation is that split, whole.
        image_column: the column with the images, where it can't be found by its type or name.
        label_column: the same for the classes.
        limit: take a stratified sample of this many images.
        seed: of the sample.
        labelled: False where images without classes will do: a folder of images has the one class "unlabelled" then.

    Raises:
        DatasetError: unknown, missing, damaged or unreachable; or it has no such split or column.

    Example:
        test = load_dataset("digits", "test", limit=100)
    """
    dataset = _load(name, split, image_column, label_column, labelled)
    if not len(dataset):
        raise DatasetError(f"{dataset} has no images", hint="choose another split, or add images to it")
    return dataset if limit is None else stratified_sample(dataset, limit, seed=seed)


def _load(
    name: str | os.PathLike[str], split: str, image_column: str | None, label_column: str | None, labelled: bool
) -> ImageDataset:
    text = os.fspath(name)
    if name == "digits":
        _no_columns("digits", image_column, label_column)
        return load_digits(choose_split("digits", split, list(DIGITS_SPLITS)).name)
    if name == "cifar10":
        return _cifar10(split, image_column, label_column)
    if is_address(text):
        raise DatasetError(
            f"{text} is an address, and datasets are read from the Hub or from this machine",
            hint=hub_hint(text, "dataset"),
        )
    path = Path(text).expanduser()
    if path.exists():
        return _from_path(path, split, image_column, label_column, labelled)
    if set("*?") & set(text):
        raise DatasetError(
            f"there is no dataset {text!r}: patterns are not expanded", hint="name the folder of them all"
        )
    if isinstance(name, str) and "/" in text and not hub.looks_like_path(text) and path.suffix != ".parquet":
        return _from_hub(text, text, split, image_column, label_column)
    close = difflib.get_close_matches(text.lower().replace("-", ""), KNOWN_DATASETS, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise DatasetError(
        f"there is no dataset {text!r}: it is neither a known name nor a local path",
        hint=f"{meant}known are {', '.join(KNOWN_DATASETS)}; else give a Hub id (owner/name) or a path",
    )


def _cifar10(split: str, image_column: str | None, label_column: str | None) -> ImageDataset:
    beside = Path("cifar10").exists()
    if beside:
        progress.note("Note: cifar10 is the dataset of the Hub; write ./cifar10 for what is here under that name.")
    try:
        return _from_hub(_CIFAR10, "cifar10", split, image_column, label_column)
    except DatasetError as error:
        if not beside:
            raise
        raise DatasetError(
            error.message, hint="cifar10 is the dataset of the Hub; for what is here under that name write ./cifar10"
        ) from error


def _from_path(
    path: Path, split: str, image_column: str | None, label_column: str | None, labelled: bool
) -> ImageDataset:
    from vitdeploy.data import tables

    if path.is_file():
        if path.suffix != ".parquet":
            hint = "give a folder of images or a .parquet file"
            if path.suffix.lower() in ARCHIVES:
                hint = f"unpack {path.name}, and give the folder"
            elif path.name in METADATA_FILES:
                hint = f"give the folder of {path.name}"
            raise DatasetError(f"{path} is not a parquet file", hint=hint)
        return tables.load_parquet(path, [path], split, image_column, label_column)
    if tables.has_hub_layout(path):
        return tables.load_hub_layout(path, split, image_column, label_column)
    files = tables.parquet_files(path)
    if files:
        return tables.load_parquet(path, files, split, image_column, label_column)
    return load_folders(path, split, image_column, label_column, labelled=labelled)


def _from_hub(
    repository: str, name: str, split: str, image_column: str | None, label_column: str | None
) -> ImageDataset:
    from vitdeploy.data import tables

    return tables.load_from_hub(repository, name, split, image_column, label_column)


def _no_columns(name: str, image_column: str | None, label_column: str | None) -> None:
    if image_column or label_column:
        raise DatasetError(f"{name} has no columns", hint="leave --image-column and --label-column out")
