"""The one way a bundle changes, whole or not at all.

Under a lock, new files are written whole to a staging folder inside it, then the new manifest is written beside the old
one as `manifest.json.next`; from there on the change will happen. Each file that is replaced moves to `.previous`, the
new one to its place, and at last the new manifest replaces the old. Until then whoever reads takes the old manifest and
finds its files, here or in `.previous`. What a killed command left is completed by the next command that changes the
bundle, if all files fit the hashes of the `.next` manifest, and is undone if not. Reading never writes.

A bundle may come from a stranger, so nothing is written in one that holds links, pipes or devices.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitdeploy.bundle.migrations import read_manifest
from vitdeploy.bundle.records import MANIFEST, Artifact, Manifest, inside
from vitdeploy.core import interrupts, progress
from vitdeploy.core.errors import BundleError
from vitdeploy.core.storage import disk_errors, fsync_path, locked, sha256, write_atomically
from vitdeploy.core.text import visible_json

__all__ = ["BundleEditor", "belongs", "check_changeable", "edit", "fill", "held", "is_fit", "previous"]

_NEXT = "manifest.json.next"
_STAGING = ".staging"
_PREVIOUS = ".previous"
_LOCK = ".lock"
_PATIENCE_S = 60.0


@contextmanager
def fill(folder: Path, manifest: Manifest) -> Iterator[BundleEditor]:
    """Write a new bundle into the empty `folder`, which nobody else knows yet; the manifest comes last."""
    editor = BundleEditor(folder, folder, manifest)
    yield editor
    write_atomically(folder / MANIFEST, _dump(editor.result()))


@contextmanager
def edit(bundle: Path, *, patient: bool = False) -> Iterator[BundleEditor]:
    """Change the bundle in the folder `bundle`; see `Bundle.edit`."""
    check_changeable(bundle)
    with disk_errors(str(bundle)), locked(bundle / _LOCK, wait_s=_PATIENCE_S if patient else 0.0):
        _recover(bundle)
        staging = bundle / _STAGING
        staging.mkdir()
        try:
            editor = BundleEditor(bundle, staging, read_manifest(bundle / MANIFEST))
            yield editor
            manifest = editor.result()
            for file in staging.rglob("*"):
                fsync_path(file)
            _check_places(bundle)
            write_atomically(staging / _NEXT, _dump(manifest))
            interrupts.check()
            os.replace(staging / _NEXT, bundle / _NEXT)
            fsync_path(bundle)
        except BaseException:
            if not (bundle / _NEXT).exists():
                shutil.rmtree(staging, ignore_errors=True)
            raise
        _put_in_place(bundle, manifest)


def held(bundle: Path) -> AbstractContextManager[None]:
    """Keep other commands from changing a bundle while it is replaced as a whole."""
    return locked(bundle / _LOCK)


def check_changeable(bundle: Path) -> None:
    """Raise BundleError where a change can't be made: the bundle holds links or the like, or may not be written to."""
    why = _obstacle(bundle)
    if why is not None:
        raise BundleError(
            f"{bundle} can only be read: {why}",
            hint=f"change a copy of plain files that you may write to: cp -rL {bundle} COPY",
        )


def _obstacle(folder: Path) -> str | None:
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} may not be written to"
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                return f"{entry.path} is a link, and no link inside a bundle is followed for writing"
            if not entry.is_file() and not entry.is_dir():
                return f"{entry.path} is neither a file nor a folder"
            if entry.is_dir() and (why := _obstacle(Path(entry.path))) is not None:
                return why
    return None


def previous(bundle: Path, name: str) -> Path:
    """Where the file `name` of the manifest that counts is while a change puts another in its place."""
    return bundle / _PREVIOUS / name


def is_fit(path: Path, artifact: Artifact) -> bool:
    """Whether the file at `path` is the one that the manifest describes."""
    try:
        return path.stat().st_size == artifact.size_bytes and sha256(path) == artifact.sha256
    except OSError:
        return False


def belongs(path: str) -> bool:
    """Whether a file of a bundle is there for changing it, or is the log of an engine's build."""
    top, _, rest = path.partition("/")
    return top in (_STAGING, _PREVIOUS) or path in (_LOCK, _NEXT) or (top == "engines" and rest.endswith(".log"))


class BundleEditor:
    """A change to a bundle under way: write files to `path_for`, then `add` them."""

    def __init__(self, bundle: Path, staging: Path, manifest: Manifest) -> None:
        self._bundle = bundle
        self._staging = staging
        self._artifacts = {artifact.path: artifact for artifact in manifest.artifacts}
        self.manifest = manifest

    def path_for(self, name: str) -> Path:
        """Where to write the new file that will be `name` in the bundle."""
        path = self._staging / inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read_path(self, name: str) -> Path:
        """Where `name` can be read: the new file if there is one, else the bundle's."""
        staged = self._staging / inside(name)
        return staged if staged.exists() else self._bundle / name

    def add(
        self,
        name: str,
        *,
        kind: str,
        precision: str | None = None,
        target: str = "any",
        built_from: str | None = None,
        built_with: dict[str, Any] | None = None,
    ) -> Artifact:
        """Describe the file written to `path_for(name)`; it replaces an artifact of that name."""
        path = self._staging / inside(name)
        artifact = Artifact(
            path=name,
            kind=kind,
            sha256=sha256(path),
            size_bytes=path.stat().st_size,
            precision=precision,
            target=target,
            built_from=built_from,
            built_with=built_with or {},
        )
        self._artifacts[name] = artifact
        return artifact

    def update(self, **changes: Any) -> None:
        """Set fields of the manifest other than its artifacts."""
        self.manifest = replace(self.manifest, **changes)

    def result(self) -> Manifest:
        """The manifest as it will be written."""
        return replace(self.manifest, artifacts=tuple(self._artifacts.values()))


def _dump(manifest: Manifest) -> str:
    return visible_json(json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n")


def _check_places(bundle: Path) -> None:
    """Refuse, while nothing has changed yet, files for which there is no room."""
    staging = bundle / _STAGING
    for path in staging.rglob("*"):
        place = bundle / path.relative_to(staging)
        if place.exists() and path.is_dir() != place.is_dir():
            raise BundleError(
                f"{place} is a {'folder' if place.is_dir() else 'file'}, where the bundle will have another thing",
                hint="move it out of the bundle",
            )


def _put_in_place(bundle: Path, manifest: Manifest) -> None:
    """Do the renames that the written `.next` manifest promises; under the lock."""
    changed = []
    for artifact in manifest.artifacts:
        staged, final = bundle / _STAGING / artifact.path, bundle / artifact.path
        if staged.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                kept = previous(bundle, artifact.path)
                kept.parent.mkdir(parents=True, exist_ok=True)
                os.replace(final, kept)
            os.replace(staged, final)
            changed.append(artifact.path)
    _sync_folders(bundle, changed)  # whatever manifest is on the disk, the files that it names are there too
    os.replace(bundle / _NEXT, bundle / MANIFEST)
    fsync_path(bundle)
    for name in (_STAGING, _PREVIOUS):
        _remove(bundle / name)


def _sync_folders(bundle: Path, names: list[str]) -> None:
    """Bring the folders of those files, up to the bundle itself, to the disk."""
    for folder in sorted({folder for name in names for folder in Path(name).parents}):
        fsync_path(bundle / folder)


def _recover(bundle: Path) -> None:
    """Complete or undo what a killed command left; under the lock."""
    following = bundle / _NEXT
    if following.exists():
        with suppress(BundleError):
            promised = read_manifest(following)
            _check_places(bundle)
            staged = {artifact.path: bundle / _STAGING / artifact.path for artifact in promised.artifacts}
            places = {name: path if path.exists() else bundle / name for name, path in staged.items()}
            if all(is_fit(places[artifact.path], artifact) for artifact in promised.artifacts):
                _put_in_place(bundle, promised)
                return
        progress.note(f"Note: an unfinished change of {bundle} does not fit its hashes and was undone.")
        restored = []
        for artifact in read_manifest(bundle / MANIFEST).artifacts:
            kept = previous(bundle, artifact.path)
            if is_fit(kept, artifact) and not is_fit(bundle / artifact.path, artifact):
                os.replace(kept, bundle / artifact.path)
                restored.append(artifact.path)
        _sync_folders(bundle, restored)
        _remove(following)
    for name in (_STAGING, _PREVIOUS):
        _remove(bundle / name)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
