"""What is in a folder, and in which order it gets there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def snapshot(folder: Path, *but: str) -> dict[str, bytes]:
    """The bytes of each file below it, without locks and files of the names in `but`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", *but)
    }


class Writes:
    """What is brought to the disk below a folder, in order: `log` of ("sync", name) and ("rename", new name).

    `too_early` names what got its new name while it, or a file or folder below it, was not whole on the disk;
    `pending` the folders, as paths below the folder, whose entries were renamed since they were synced, `pending_at`
    the same at the moment of each rename.
    """

    def __init__(self, folder: Path) -> None:
        self.log: list[tuple[str, str]] = []
        self.too_early: list[str] = []
        self.pending: set[str] = set()
        self.pending_at: dict[str, set[str]] = {}
        self._folder = folder
        self._synced = {path: _size(path) for path in (folder, *folder.rglob("*"))}

    def sync(self, path: Path) -> None:
        self.log.append(("sync", path.name))
        self._synced[path] = _size(path)
        self.pending.discard(self._below(path))

    def rename(self, source: Path, target: Path) -> None:
        self.log.append(("rename", target.name))
        self.pending_at[target.name] = set(self.pending)
        for path in (source, *source.rglob("*")):
            if self._synced.get(path) != _size(path):
                self.too_early.append(f"{path.name} as {target.name}")
            self._synced[target / path.relative_to(source)] = _size(path)
        self.pending.add(self._below(target.parent))

    def _below(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix() if path.is_relative_to(self._folder) else str(path)


def _size(path: Path) -> int:
    """The bytes of a file; of a folder 0."""
    return path.stat().st_size if path.is_file() else 0


def recorded_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Writes:
    """Every fsync and rename from now on; what is below the folder already counts as on the disk."""
    writes = Writes(folder)
    sync, rename, replace = os.fsync, os.rename, os.replace

    def recorded_sync(handle: int) -> None:
        sync(handle)
        writes.sync(Path(os.readlink(f"/proc/self/fd/{handle}")))

    def recorded(real: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any, **options: Any) -> None:
            writes.rename(Path(source), Path(target))
            real(source, target, **options)

        return call

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "rename", recorded(rename))
    monkeypatch.setattr(os, "replace", recorded(replace))
    return writes
