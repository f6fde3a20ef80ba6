"""Manifests of every schema that was ever written, read as today's: one reader for each version.

A change of the schema adds a reader here and leaves the older ones as they are; a bundle of the old schema goes to the
frozen ones of the tests, which are opened for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitdeploy.bundle.records import (
    MANIFEST,
    SCHEMA_VERSION,
    Artifact,
    BuiltWith,
    ChoiceMachine,
    Manifest,
    ModelFacts,
    Provenance,
    inside,
)
from vitdeploy.core.decoding import decode, schema_version
from vitdeploy.core.errors import BundleError
from vitdeploy.core.installing import update_words
from vitdeploy.core.storage import read_json, refuse_pointer

__all__ = ["from_json", "read_manifest"]

_SHA256 = re.compile("[0-9a-f]{64}")


def _version_1(data: dict[str, Any]) -> Manifest:
    """All were classifiers; the first did not say which, and had one class an image."""
    return _version_2({"task": "single_label", **data, "embedding": None})


def _version_2(data: dict[str, Any]) -> Manifest:
    manifest: Manifest = decode(Manifest, data)
    if "task" not in data:
        raise ValueError("task is missing")
    if (manifest.task == "embedding") != (manifest.embedding is not None):
        raise ValueError(f"the task is {manifest.task!r}, and embedding is {data.get('embedding')!r}")
    if manifest.threshold is not None and not 0 < manifest.threshold < 1:
        raise ValueError(f"threshold is {manifest.threshold!r}")
    return manifest


_READERS: dict[int, Callable[[dict[str, Any]], Manifest]] = {1: _version_1, 2: _version_2}


def read_manifest(path: Path) -> Manifest:
    """The manifest in the file `path`.

    Raises:
        BundleError: it is damaged, or written by a newer version.
    """
    refuse_pointer(path, BundleError)
    try:
        return from_json(read_json(path), path.parent)
    except OSError as error:
        raise BundleError(
            f"{path} can't be read: {error.strerror}", hint="check the folder and who may read it"
        ) from error
    except ValueError as error:
        raise BundleError(
            f"{path} is damaged: {error}", hint=f"export the bundle again, or restore {MANIFEST} from a copy"
        ) from error


def from_json(data: Any, folder: Path | None = None) -> Manifest:
    """The manifest in `data`, as `json.loads` gave it.

    Raises:
        ValueError: it is damaged.
        BundleError: it was written by a newer version.
    """
    version = schema_version(data)
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{folder or 'the bundle'} was written by a newer vitdeploy: its schema is {version}, this one reads up to"
            f" {SCHEMA_VERSION}",
            hint=f"{update_words()}; or export the bundle again with this version",
        )
    manifest = _READERS[version](data)
    _check(manifest.artifacts)
    decode(ModelFacts, manifest.model, "model")
    decode(Provenance, manifest.provenance, "provenance")
    if manifest.choice is not None:
        decode(ChoiceMachine, manifest.choice.machine, "choice.machine")
    for artifact in manifest.artifacts:
        decode(BuiltWith, artifact.built_with, f"built_with of {artifact.path}")
    return manifest


def _check(artifacts: tuple[Artifact, ...]) -> None:
    """What a type does not say of the entries."""
    seen = set[str]()
    for artifact in artifacts:
        path = inside(artifact.path)
        if path != artifact.path or path == MANIFEST or path.startswith("."):
            raise ValueError(f"{artifact.path!r} can't be the path of an artifact")
        if path in seen:
            raise ValueError(f"{path} is listed twice")
        if not _SHA256.fullmatch(artifact.sha256):
            raise ValueError(f"the sha256 of {path} is {artifact.sha256[:80]!r}")
        if artifact.size_bytes < 0:
            raise ValueError(f"the size of {path} is {artifact.size_bytes}")
        seen.add(path)
    for path in seen:
        if any(str(parent) in seen for parent in Path(path).parents):
            raise ValueError(f"{path} lies below another artifact")
