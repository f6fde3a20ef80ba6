"""Class folders: root/train/cat/1.png, or root/cat/1.png where there are no splits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitdeploy.datasets.core import ImageDataset
from vitdeploy.datasets.splits import choose_split, split_of
from vitdeploy.errors import DatasetError

__all__ = ["IMAGE_SUFFIXES", "load_folders"]

IMAGE_SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])


class FileSource:
    """Images that are files below `root`."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self._root, self._files = root, files

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        return (self._root / self._files[index]).read_bytes()

    def where(self, index: int) -> str:
        return self._files[index]


def load_folders(root: Path, split: str) -> ImageDataset:
    """Read the images below `root`, in the order of their paths; nothing is decoded yet.

    Raises:
        DatasetError: no class folders, no images, or no such split.
    """
    folders = _subfolders(root)
    named = {found: path for path in folders if (found := split_of(path.name)) and _subfolders(path)}
    if named:
        classes = sorted({name for path in named.values() for name in _classes(path)})
        chosen = choose_split(root.name, split, list(named))
        files, label_ids = _images(root, named[chosen.name], classes)
    else:
        classes = sorted(_classes(root))
        files, label_ids = _images(root, root, classes)
        chosen = choose_split(root.name, split, [])
    if not files:
        where = named[chosen.name] if named else root
        raise DatasetError(
            f"{where} holds no class folders with images",
            hint=f"lay images out as {root.name}/train/CLASS/*.png or {root.name}/CLASS/*.png",
        )
    indices = chosen.indices(label_ids)
    return ImageDataset(
        root.resolve().name, "local", chosen.name, tuple(classes), label_ids[indices], indices, FileSource(root, files)
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _classes(folder: Path) -> list[str]:
    """Subfolders that hold at least one image, at any depth."""
    return [path.name for path in _subfolders(folder) if next(iter(_files(path)), None) is not None]


def _files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def _images(root: Path, folder: Path, classes: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    files: list[str] = []
    label_ids: list[int] = []
    for label_id, name in enumerate(classes):
        if (folder / name).is_dir():
            found = [path.relative_to(root).as_posix() for path in _files(folder / name)]
            files += found
            label_ids += [label_id] * len(found)
    return files, np.array(label_ids, dtype=np.int64)
