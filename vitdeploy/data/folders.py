"""Images in folders: root/train/cat/1.png, root/cat/1.png where there are no splits, or with labels in a metadata file.

A folder around everything (an archive that was unpacked into a folder of its own) is passed through, links to folders
are followed, each folder once, and only regular files are images. What holds images and is not taken is said.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.core import progress
from vitdeploy.core.errors import DatasetError
from vitdeploy.core.storage import open_regular
from vitdeploy.data.columns import label_ids_of, label_sets_of, rarest_labels
from vitdeploy.data.dataset import ImageDataset
from vitdeploy.data.images import image_suffixes, picture_suffixes
from vitdeploy.data.metadata import METADATA_FILES, find_metadata, read_metadata
from vitdeploy.data.splits import choose_split, own_split, split_of

__all__ = ["ARCHIVES", "UNLABELLED", "FileSource", "kind_words", "load_folders"]

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
UNLABELLED = "unlabelled"
_JUNK = frozenset(["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"])
_JUNK_FILES = frozenset(["thumbs.db", "desktop.ini", *METADATA_FILES])
_WRAPPERS = frozenset(["data", "dataset", "images", "img", "imgs", "photos", "pictures"])
_UNLABELLED = frozenset(["unlabelled", "unlabeled", "pred", "predict"])
_SHOWN = 5


class FileSource:
    """Images that are files below `root`."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self._root, self._files = root, files

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        with open_regular(self._root / self._files[index]) as file:
            return file.read()

    def where(self, index: int) -> str:
        return self._files[index]


@dataclass(frozen=True)
class _Folder:
    """A folder and what is in it; hidden things and what systems leave behind are not there."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def folders(self) -> list[_Folder]:
        found = [Path(entry) for entry in _entries(self.path) if _is_folder(entry) and entry.name not in _JUNK]
        return [_Folder(path) for path in sorted(found)]

    @cached_property
    def with_images(self) -> list[_Folder]:
        """Its folders that hold an image, at any depth."""
        return [folder for folder in self.folders if folder.has_images]

    @cached_property
    def images(self) -> int:
        """How many images lie in it, not in a folder of it."""
        return sum(_is_image(entry) for entry in _entries(self.path))

    @cached_property
    def has_images(self) -> bool:
        return any(_is_image(entry) for entry in _walk(self.path))

    @cached_property
    def metadata(self) -> Path | None:
        """The file that names its images and, where there are class folders too, their labels."""
        return find_metadata(self.path, needs_labels=bool(self.with_images))

    @property
    def is_labelled(self) -> bool:
        return self.metadata is not None or bool(self.with_images)

    def all_files(self) -> tuple[list[Path], Counter[str]]:
        """Its images at any depth, in the order of their paths, and how many others there are of each suffix."""
        images, others = [], Counter[str]()
        for entry in _walk(self.path):
            if _is_image(entry):
                images.append(Path(entry))
            elif entry.name.lower() not in _JUNK_FILES:
                others[_suffix(entry.name) if _is_regular(entry) else "no regular file"] += 1
        return sorted(images), others


@dataclass
class _Layout:
    """Where the splits are (none: everything is below `top`), and what holds images and is not part of them."""

    top: _Folder
    splits: dict[str, _Folder]
    left: list[str] = field(default_factory=list)


def load_folders(
    root: Path,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
    *,
    labelled: bool = True,
) -> ImageDataset:
    """Read the images below `root`, in the order of their paths; nothing is decoded yet.

    With `labelled` False, images that lie there without class folders are taken as well, all of the class `UNLABELLED`.

    Raises:
        DatasetError: no class folders, no images, no such split, or a class of which no file can be read.
    """
    name = root.resolve().name
    layout = _recognise(_Folder(root), labelled=labelled)
    parts = layout.splits or {"": layout.top}
    tables: dict[str, list[tuple[Path, Any]]] = {}
    if any(part.metadata for part in parts.values()):
        tables = {
            split: read_metadata(part.path, part.metadata, image_column, label_column) for split, part in parts.items()
        }
        tables = _by_folder(tables[""], layout.top.path) if "" in tables else tables
        progress.note(f"{name}: images and labels are those that its metadata names.")
    else:
        _no_columns(name, image_column, label_column)
    own = own_split(name)
    existing = list(layout.splits) or [found for found in tables if found] or ([own] if own else [])
    chosen = choose_split(name, split, existing, unlabelled=layout.left)
    place = layout.splits.get(chosen.name, layout.top)
    if tables:
        found = _from_metadata(tables, chosen.name, f"the metadata of {name}")
    else:
        found = _from_folders(layout, place, parts, labelled=labelled)
    if not found.files:
        raise _nothing(root, place)
    left_out = {label: counts for label, counts in found.left_out.items() if counts}
    _say(f"{name}/{chosen.name}", left_out, layout.left)
    indices = chosen.indices(found.label_ids)
    return ImageDataset(
        name,
        "local",
        chosen.name,
        found.classes,
        found.label_ids[indices],
        indices,
        FileSource(root, [path.relative_to(root).as_posix() for path in found.files]),
        carved_from=len(found.files) if chosen.carve else None,
        label_sets=None if found.label_sets is None else found.label_sets[indices],
        left_out=left_out,
    )


@dataclass(frozen=True)
class _Found:
    """The images of a split, their labels, and of each class how many files it holds that are no images, by suffix."""

    files: list[Path]
    classes: tuple[str, ...]
    label_ids: Any
    label_sets: Any = None
    left_out: dict[str, Counter[str]] = field(default_factory=dict)


def _from_metadata(tables: dict[str, list[tuple[Path, Any]]], split: str, what: str) -> _Found:
    """What the metadata of a split, or of the whole, names; the classes are those of all splits."""
    key = split if split in tables else ""
    rows = tables.get(key, [])
    files = [file for file, _ in rows]
    every = {part: [row[1] for row in table] for part, table in tables.items()}
    if any(isinstance(label, list) for column in every.values() for label in column):
        classes, sets = label_sets_of(every, None, what)
        return _Found(files, classes, rarest_labels(sets[key]), sets[key])
    classes, ids = label_ids_of([label for column in every.values() for label in column], what)
    return _Found(files, classes, np.array([ids[label] for _, label in rows], dtype=np.int64))


def _from_folders(layout: _Layout, place: _Folder, parts: dict[str, _Folder], *, labelled: bool) -> _Found:
    """The images in the class folders of `place`; the classes are those of all parts."""
    classes = tuple(sorted({folder.name for part in parts.values() for folder in part.with_images}))
    if not classes and not labelled:
        files, others = place.all_files()
        return _Found(files, (UNLABELLED,), np.zeros(len(files), dtype=np.int64), left_out={UNLABELLED: others})
    left_out: dict[str, Counter[str]] = {}
    files, label_ids = _class_folders(place, classes, left_out)
    if place.images and classes:
        layout.left.append(f"{place.images} images beside the folders of {place.name}")
    return _Found(files, classes, label_ids, left_out=left_out)


def _recognise(root: _Folder, *, labelled: bool) -> _Layout:
    top = _unwrapped(root, any_name=True)
    if top is not root:
        progress.note(
            f"{root.name}: everything lies in {os.path.relpath(top.path, root.path)}, and is taken from there."
        )
    if top.metadata is not None:
        return _Layout(top, {})
    splits: dict[str, _Folder] = {}
    left = []
    for folder in top.with_images:
        found = split_of(folder.name)
        inner = _unwrapped(folder)
        if found is None or not inner.is_labelled:
            continue
        if found in splits:
            raise DatasetError(
                f"{splits[found].path} and {folder.path} are both the {found} split",
                hint="put their images into one of them, or move the other away",
            )
        splits[found] = inner
    if not splits:  # seg_train, seg_test; but a class may be called bullet_train
        words = {word: folder for folder in top.with_images if (word := _split_word(folder.name))}
        inner_ones = {word: _unwrapped(folder) for word, folder in words.items()}
        if len(words) > 1 and all(folder.is_labelled for folder in inner_ones.values()):
            splits = inner_ones
    for folder in top.with_images:
        if splits and folder not in splits.values() and _unwrapped(folder) not in splits.values():
            left.append(f"{folder.name}/, which is not a split with class folders")
    if not splits and top.with_images and all(split_of(f.name) and not f.is_labelled for f in top.with_images):
        flat = {split_of(folder.name) or "": folder for folder in top.with_images}
        top.with_images.clear()  # splits without labels are not classes
        return _Layout(top, {} if labelled else flat)
    if not splits and len(top.with_images) > 1:
        unlabelled = [
            f for f in top.with_images if split_of(f.name) in ("test", "validation") or f.name.lower() in _UNLABELLED
        ]
        top.with_images[:] = [f for f in top.with_images if f not in unlabelled]
        left += [f"{f.name}/, which has no class folders" for f in unlabelled]
    return _Layout(top, splits, left)


def _unwrapped(folder: _Folder, *, any_name: bool = False) -> _Folder:
    """The folder that really holds the classes or splits: where one holds a single folder, that one, and so on."""
    inside = folder.with_images
    if len(inside) != 1 or folder.metadata is not None:
        return folder
    inner = inside[0]
    if folder.images and len(inner.with_images) < 2:
        return folder
    known = any_name and split_of(inner.name) is None
    known = known or inner.name.lower() in _WRAPPERS or inner.name.lower() == folder.name.lower()
    if not known or not inner.is_labelled:
        return folder
    return _unwrapped(inner, any_name=any_name)


def _split_word(name: str) -> str | None:
    """The split that one word of a folder's name stands for: seg_train."""
    found = {known for word in re.split(r"[^A-Za-z]+", name) if (known := split_of(word))}
    return found.pop() if len(found) == 1 else None


def _class_folders(
    place: _Folder, classes: tuple[str, ...], left_out: dict[str, Counter[str]]
) -> tuple[list[Path], NDArray[np.int64]]:
    files: list[Path] = []
    label_ids: list[int] = []
    taken_from: dict[tuple[int, int], str] = {}
    for folder in place.folders:
        taken = folder.name in classes
        other = taken_from.setdefault(_identity(folder.path), folder.name) if taken else folder.name
        if other != folder.name:
            raise DatasetError(
                f"the classes {other!r} and {folder.name!r} of {place.path} are one folder: one is a link to the other",
                hint="remove the link: an image can't be of both",
            )
        if not taken and folder.has_images:  # it was left out by what it is
            continue
        images, others = folder.all_files()
        if others:
            left_out[folder.name] = others
        if taken:
            files += images
            label_ids += [classes.index(folder.name)] * len(images)
        elif pictures := sum(count for suffix, count in others.items() if suffix in picture_suffixes()):
            raise DatasetError(
                f"none of the {pictures} pictures of the class {folder.name!r} can be read ({kind_words(others)})",
                hint="convert them to JPEG or PNG (HEIC: pip install pillow-heif), or move the folder away",
            )
    return files, np.array(label_ids, dtype=np.int64)


def _by_folder(rows: list[tuple[Path, Any]], top: Path) -> dict[str, list[tuple[Path, Any]]]:
    """The rows of each split, where each image lies in the folder of a split; else all of them, as of none."""
    splits: dict[str, list[tuple[Path, Any]]] = {}
    for row in rows:
        inside = row[0].relative_to(top).parts
        splits.setdefault((split_of(inside[0]) if len(inside) > 1 else None) or "", []).append(row)
    return {"": rows} if "" in splits else splits


def _say(name: str, left_out: Mapping[str, Counter[str]], left: Iterable[str]) -> None:
    total = sum(sum(counts.values()) for counts in left_out.values())
    if total:
        shown = [f"{label}: {kind_words(counts)}" for label, counts in list(left_out.items())[:_SHOWN]]
        more = f"; and in {len(left_out) - _SHOWN} more folders" if len(left_out) > _SHOWN else ""
        progress.note(f"{name}: {total} files that can't be read as images are left out ({'; '.join(shown)}{more}).")
    for what in left:
        progress.note(f"{name}: left out is {what}.")


def kind_words(counts: Counter[str]) -> str:
    """How many files of which suffixes, the most frequent ones."""
    return ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in counts.most_common(3))


def _nothing(root: Path, place: _Folder) -> DatasetError:
    entries = list(_entries(place.path))
    images = sum(_is_image(entry) for entry in _walk(place.path))
    files = sorted(entry.name for entry in entries if entry.is_file())
    archives = [name for name in files if _suffix(name) in ARCHIVES]
    lists = [name for name in files if _suffix(name) in (".csv", ".tsv", ".json", ".jsonl", ".txt")]
    folders = [folder.name for folder in place.folders]
    holds = [
        f"{images} images" if images else "no images",
        f"the folders {', '.join(folders[:_SHOWN])}" if folders else "no folders",
        *([f"the archive {archives[0]}"] if archives else []),
        *([f"the file {lists[0]}"] if lists else []),
    ]
    hint = f"lay images out as {root.name}/train/CLASS/*.png or {root.name}/CLASS/*.png"
    if archives:
        hint = f"unpack {archives[0]} first"
    elif lists:
        hint += f", or make a metadata.csv with file_name and label of {lists[0]}"
    return DatasetError(f"{place.path} holds no class folders with images: it has {', '.join(holds)}", hint=hint)


def _no_columns(name: str, image_column: str | None, label_column: str | None) -> None:
    if image_column or label_column:
        raise DatasetError(f"{name} has no columns", hint="leave --image-column and --label-column out")


def _walk(folder: Path, seen: set[tuple[int, int]] | None = None) -> Iterator[os.DirEntry[str]]:
    """All that is not a folder below a folder. Links to folders are followed, each folder is entered once, and none
    that holds this one: below it lie other classes."""
    if seen is None:
        seen = {_identity(parent) for parent in Path(os.path.realpath(folder)).parents}
    here = _identity(folder)
    if here in seen:
        return
    seen.add(here)
    for entry in _entries(folder):
        if not _is_folder(entry):
            yield entry
        elif entry.name not in _JUNK:
            yield from _walk(Path(entry), seen)


def _identity(folder: Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, hidden things left out."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DatasetError(f"{folder} can't be read: {error.strerror}", hint="check its permissions") from error


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By its suffix; pipes, sockets, devices and links to them do not count."""
    return _suffix(entry.name) in image_suffixes() and _is_regular(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
