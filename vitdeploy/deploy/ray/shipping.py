"""A bundle on its way to the machines of a cluster: once to each of them, where it is compared with its hashes."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.backends.tensorrt.kernel_cache import cache_folder
from vitdeploy.bundle import Bundle
from vitdeploy.bundle.records import MANIFEST
from vitdeploy.core.errors import BundleError, InputError, require
from vitdeploy.core.storage import locked, sha256, staged_folder
from vitdeploy.runtime.remote import open_bundle

__all__ = ["Shipped", "folder_of", "ship"]

_PATIENCE_S = 1800.0  # for another process of this machine that fetches the same bundle
_FORGOTTEN_S = 30 * 24 * 3600.0  # a bundle that was not opened for so long goes when another one comes


@dataclass(frozen=True)
class Shipped:
    """A bundle in Ray's object store, which may be handed to tasks and actors: `ship` makes it.

    `sha256` is of its manifest, `files` are (path in the bundle, reference to its bytes).
    """

    name: str
    sha256: str
    files: tuple[tuple[str, Any], ...]

    def here(self) -> Path:
        """The bundle's folder on this machine, which the first to ask on a machine fetches into the user's cache.

        Raises:
            BundleError: what came is not what was sent.
        """
        folder = cache_folder() / "bundles" / self.sha256
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock"), wait_s=_PATIENCE_S):
            if not self._is(folder):
                _forget_old(folder.parent)
                self._fetch(folder)
            os.utime(folder)
        return folder

    def _is(self, folder: Path) -> bool:
        """Whether all of it is there; what a file holds is compared when it is loaded."""
        manifest = folder / MANIFEST
        if not manifest.is_file() or sha256(manifest) != self.sha256:
            return False
        return all((folder / path).is_file() for path, _ in self.files)

    def _fetch(self, folder: Path) -> None:
        ray = require("ray", extra="ray")
        with staged_folder(folder, overwrite=True, ours=lambda _: True, what="bundle") as staging:
            for path, reference in self.files:
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                (staging / path).write_bytes(memoryview(ray.get(reference)))
            if sha256(staging / MANIFEST) != self.sha256:
                raise BundleError(f"{self.name} arrived as another bundle", hint="run the command again")
            Bundle.open(staging).verify()


def ship(bundle: Bundle | str | os.PathLike[str], revision: str | None = None) -> Shipped:
    """Put a bundle into Ray's object store, from where each machine that needs it gets it once.

    Args:
        bundle: an open one, its folder, or `owner/name` of one on the Hub.
        revision: of a bundle on the Hub.

    Raises:
        BundleError: it is missing, incomplete or damaged.
        InputError: Ray was not started.
        DependencyError: Ray is not installed.
    """
    ray = require("ray", extra="ray")
    if not ray.is_initialized():
        raise InputError("Ray is not started in this process", hint='call ray.init() or ray.init("auto") first')
    opened = open_bundle(bundle, revision)
    opened.verify()
    files = tuple(
        (path.relative_to(opened.path).as_posix(), ray.put(np.fromfile(path, np.uint8))) for path in opened.files()
    )
    return Shipped(opened.path.name, sha256(opened.path / MANIFEST), files)


def folder_of(bundle: Shipped | str | os.PathLike[str]) -> str | os.PathLike[str]:
    """What `load` opens on this machine."""
    return bundle.here() if isinstance(bundle, Shipped) else bundle


def _forget_old(parent: Path) -> None:
    for folder in parent.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > _FORGOTTEN_S:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".lock").unlink(missing_ok=True)
