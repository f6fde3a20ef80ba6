"""A bundle by its name: a folder here, or a repository on the Hugging Face Hub, fetched whole into the Hub's cache."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

from vitdeploy.bundle import Bundle
from vitdeploy.bundle.migrations import read_manifest
from vitdeploy.bundle.records import MANIFEST, Manifest
from vitdeploy.core.errors import BundleError, DependencyError, InputError
from vitdeploy.models.hub import fetch, is_reachable, looks_like_path

__all__ = ["is_hub_name", "open_bundle"]

_LOCAL = "name a folder that vitdeploy export wrote"


def is_hub_name(name: str) -> bool:
    """Whether `name` can be meant as `owner/name` on the Hub: nothing of that path is here."""
    return not looks_like_path(name) and name.count("/") == 1 and not Path(name).parent.exists()


def open_bundle(path: Bundle | str | os.PathLike[str], revision: str | None = None) -> Bundle:
    """The bundle in a folder, or of that name on the Hub.

    From the Hub only files that the manifest lists are fetched, and the manifest comes last, so that an interrupted
    download leaves nothing that opens. Every file is compared with its hash in the manifest when it is loaded. Where
    the Hub can't be reached, the copy in its cache is taken.

    Args:
        path: a bundle, its folder, or `owner/name`.
        revision: a branch, a tag or a commit on the Hub; None: its default branch.

    Raises:
        BundleError: there is no such bundle, it can't be fetched, it is damaged, or its schema is newer.
        InputError: a revision of a local bundle.
    """
    if isinstance(path, Bundle) or not is_hub_name(os.fspath(path)):
        if revision is not None:
            raise InputError(
                f"a revision was given, but {path.path if isinstance(path, Bundle) else path} is a local folder",
                hint="revisions are those of a bundle on the Hub: OWNER/NAME",
            )
        return path if isinstance(path, Bundle) else Bundle.open(path)
    name = os.fspath(path)
    try:
        reachable = is_reachable(extra="hub")
    except DependencyError as error:
        raise BundleError(
            f"there is no bundle at {name}", hint=f"{_LOCAL}; for one on the Hugging Face Hub: {error.hint}"
        ) from error
    return Bundle.open(_fetched(name, revision) if reachable else _cached(name, revision))


def _fetched(name: str, revision: str | None) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        manifest, content = _manifest(name, revision, Path(scratch))
    files = [glob.escape(artifact.path) for artifact in manifest.artifacts]
    folder = _files(name, revision, files) if files else None
    commit = revision if folder is None else folder.name
    folder = _files(name, commit, [MANIFEST])
    if (folder / MANIFEST).read_bytes() != content:
        raise BundleError(f"{name} changed on the Hub while it was fetched", hint="run the command again")
    return folder


def _manifest(name: str, revision: str | None, scratch: Path) -> tuple[Manifest, bytes]:
    """Looked at before anything large is fetched; it does not enter the cache yet."""
    path = _files(name, revision, [MANIFEST], into=scratch) / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{name} on the Hub is not a bundle: it has no {MANIFEST}",
            hint=f"for a checkpoint: vitdeploy export {name} --output BUNDLE",
        )
    return read_manifest(path), path.read_bytes()


def _cached(name: str, revision: str | None) -> Path:
    folder = _files(name, revision, [MANIFEST], online=False)
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{name} was not fetched to its end, and the Hugging Face Hub can't be reached",
            hint=f"run the command again with a connection, or {_LOCAL}",
        )
    return folder


def _files(name: str, revision: str | None, patterns: list[str], into: Path | None = None, online: bool = True) -> Path:
    return fetch(
        name, kind="model", patterns=patterns, error=BundleError, local_hint=_LOCAL, revision=revision, into=into,
        extra="hub", online=online,
    )  # fmt: skip
