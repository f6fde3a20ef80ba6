"""The bundle: one folder with everything a device needs, described and hashed by manifest.json.

A bundle changes in one way only: under a lock, new files are written whole to a staging folder inside
it, then the new manifest is written beside the old one as `manifest.json.next`, then files and manifest
are renamed into place. A command killed before the `.next` manifest exists changed nothing; one killed
after it is completed by whoever opens the bundle next, since all that is left to do are renames.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vitdeploy import interrupts
from vitdeploy.errors import BundleError
from vitdeploy.specs import Choice, PreprocessSpec, TensorSpec
from vitdeploy.storage import (
    check_output,
    disk_errors,
    fsync_path,
    locked,
    read_json,
    sha256,
    staged_folder,
    write_atomically,
)

__all__ = ["SCHEMA_VERSION", "Artifact", "Bundle", "BundleEditor", "Manifest"]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_NEXT = "manifest.json.next"
_STAGING = ".staging"
_LOCK = ".lock"


@dataclass(frozen=True)
class Artifact:
    """One file of a bundle.

    `kind` is onnx, engine, calibration or bench. `precision` is fp32, fp16, int8 ... or None. `target` says what
    the file is made for: "any", "cpu", "tensorrt", "tensorrt-rtx" ... `built_from` is the sha256 of the file it
    was made from, `built_with` what made it: versions, flags, GPU, measured checks.
    """

    path: str
    kind: str
    sha256: str
    size_bytes: int
    precision: str | None = None
    target: str = "any"
    built_from: str | None = None
    built_with: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds, apart from the schema version."""

    model: dict[str, Any]
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: tuple[Artifact, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    choice: Choice | None = None

    def to_json(self) -> dict[str, Any]:
        chosen = {} if self.choice is None else {"choice": self.choice.to_json()}
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "labels": list(self.labels),
            "preprocess": self.preprocess.to_json(),
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "artifacts": [artifact.to_json() for artifact in self.artifacts],
            "provenance": self.provenance,
            **chosen,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        return cls(
            model=data["model"],
            labels=tuple(data["labels"]),
            preprocess=PreprocessSpec.from_json(data["preprocess"]),
            inputs=tuple(TensorSpec.from_json(spec) for spec in data["inputs"]),
            outputs=tuple(TensorSpec.from_json(spec) for spec in data["outputs"]),
            artifacts=tuple(Artifact(**artifact) for artifact in data["artifacts"]),
            provenance=data["provenance"],
            choice=None if data.get("choice") is None else Choice.from_json(data["choice"]),
        )


def _inside(name: str) -> str:
    """Refuse paths that leave the bundle: a manifest comes from somewhere else."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise ValueError(f"artifact path {name!r} leaves the bundle")
    return str(path)


def _read_manifest(path: Path) -> Manifest:
    try:
        data = read_json(path)
        version = data["schema_version"]
        if not isinstance(version, int):
            raise ValueError(f"schema_version is {version!r}")
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path} is damaged: {error}", hint="export the bundle again, or restore manifest.json from a copy"
        ) from error
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{path.parent} was written by a newer vitdeploy: its schema is {version}, this one reads up to"
            f" {SCHEMA_VERSION}",
            hint="pip install --upgrade vitdeploy, or export the bundle again with this version",
        )
    try:
        manifest = Manifest.from_json(data)
        for artifact in manifest.artifacts:
            _inside(artifact.path)
        return manifest
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{path} is damaged: {type(error).__name__} {error}",
            hint="export the bundle again, or restore manifest.json from a copy",
        ) from error


@dataclass(frozen=True)
class Bundle:
    """A bundle on the disk as it was when it was opened."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the bundle in the folder `path`.

        Raises:
            BundleError: there is no such folder, it is no bundle, it is damaged, or its schema is newer.
        """
        folder = Path(path)
        if not folder.exists():
            raise BundleError(f"there is no bundle at {folder}", hint=f"vitdeploy export MODEL --output {folder}")
        if not (folder / MANIFEST).is_file():
            raise BundleError(
                f"{folder} is no bundle: it has no {MANIFEST}", hint="name a folder that vitdeploy export wrote"
            )
        if (folder / _NEXT).exists():
            with locked(folder / _LOCK):
                _finish_commit(folder)
        return cls(folder, _read_manifest(folder / MANIFEST))

    @classmethod
    def is_bundle(cls, path: Path) -> bool:
        """Whether `path` is a folder that holds a manifest."""
        return (path / MANIFEST).is_file()

    @classmethod
    def check_output(cls, path: str | os.PathLike[str], *, overwrite: bool) -> None:
        """Raise OutputExistsError where `create` would, before the work that comes before it."""
        check_output(Path(path), overwrite=overwrite, ours=cls.is_bundle, what="bundle")

    @classmethod
    @contextmanager
    def create(
        cls, path: str | os.PathLike[str], manifest: Manifest, *, overwrite: bool = False
    ) -> Iterator[BundleEditor]:
        """Make a new bundle; it appears at `path`, whole, when the block ends well.

        Raises:
            OutputExistsError: `path` exists and `overwrite` is off, or it is not a bundle.
        """
        with staged_folder(Path(path), overwrite=overwrite, ours=cls.is_bundle, what="bundle") as folder:
            editor = BundleEditor(folder, folder, manifest)
            yield editor
            write_atomically(folder / MANIFEST, _dump(editor.result()))

    @contextmanager
    def edit(self) -> Iterator[BundleEditor]:
        """Change this bundle; the change is seen when the block ends well, whole, or not at all.

        The manifest is read again under the lock, so an older `Bundle` object may be used to edit.

        Raises:
            BundleError: another command is writing to this bundle.
        """
        with disk_errors(str(self.path)), locked(self.path / _LOCK):
            _finish_commit(self.path)
            staging = self.path / _STAGING
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                editor = BundleEditor(self.path, staging, _read_manifest(self.path / MANIFEST))
                yield editor
                manifest = editor.result()
                for file in staging.rglob("*"):
                    fsync_path(file)
                write_atomically(staging / _NEXT, _dump(manifest))
                interrupts.check()
                os.replace(staging / _NEXT, self.path / _NEXT)  # from here on the change will happen
                fsync_path(self.path)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            _finish_commit(self.path)

    def reopen(self) -> Bundle:
        """Read the bundle again, after it was changed."""
        return Bundle.open(self.path)

    @property
    def choice(self) -> Choice | None:
        """The form that the last benchmark recommended; None before one."""
        return self.manifest.choice

    def find(self, *, kind: str, precision: str | None = None, target: str | None = None) -> Artifact | None:
        """The first artifact of that kind and, where given, precision and target."""
        return next(iter(self.select(kind=kind, precision=precision, target=target)), None)

    def select(self, *, kind: str, precision: str | None = None, target: str | None = None) -> list[Artifact]:
        """All artifacts of that kind and, where given, precision and target."""
        return [
            artifact
            for artifact in self.manifest.artifacts
            if artifact.kind == kind and precision in (None, artifact.precision) and target in (None, artifact.target)
        ]

    def out_of_date(self) -> dict[str, str]:
        """{path: why} of the files that were made from something the bundle no longer holds, whatever was made of them
        included."""
        source = self.find(kind="onnx", precision="fp32")
        calibration = self.find(kind="calibration")
        why: dict[str, str] = {}
        for artifact in self.manifest.artifacts:
            if artifact.kind not in ("onnx", "calibration") or artifact.built_from is None:
                continue
            used = artifact.built_with.get("calibration_sha256")
            if source is None or artifact.built_from != source.sha256:
                why[artifact.path] = "made from another model.onnx than the one here"
            elif used is not None and (calibration is None or used != calibration.sha256):
                why[artifact.path] = "made with another calibration than the one here"
        graphs = {artifact.sha256: artifact.path for artifact in self.select(kind="onnx")}
        for artifact in self.select(kind="engine"):
            if artifact.built_from is None:
                continue
            origin = graphs.get(artifact.built_from)
            if origin is None:
                why[artifact.path] = "built from a graph that is no longer here"
            elif origin in why:
                why[artifact.path] = f"built from {origin}, which is itself out of date"
        return why

    def file(self, artifact: Artifact, *, verify: bool = True) -> Path:
        """Where an artifact lies, after its size and hash were checked against the manifest.

        Raises:
            BundleError: the file is missing or is not the one the manifest describes.
        """
        path = self.path / artifact.path
        if not path.is_file():
            raise BundleError(
                f"{self.path} is incomplete: {artifact.path} is missing",
                hint="copy the whole folder again, or rebuild it",
            )
        if verify and (path.stat().st_size != artifact.size_bytes or sha256(path) != artifact.sha256):
            raise BundleError(
                f"{path} is not the file that the manifest describes (its SHA-256 differs)",
                hint="copy the whole folder again, or rebuild the file; do not load a file that was tampered with",
            )
        weights = f"{artifact.path}.data"  # where a graph keeps what does not fit into it
        for beside in (entry for entry in self.manifest.artifacts if entry.path == weights):
            self.file(beside, verify=verify)
        return path

    def verify(self) -> None:
        """Check every artifact; raises BundleError at the first that is missing or changed."""
        for artifact in self.manifest.artifacts:
            self.file(artifact)


class BundleEditor:
    """A change to a bundle under way: write files to `path_for`, then `add` them."""

    def __init__(self, bundle: Path, staging: Path, manifest: Manifest) -> None:
        self._bundle = bundle
        self._staging = staging
        self._artifacts = {artifact.path: artifact for artifact in manifest.artifacts}
        self.manifest = manifest

    def path_for(self, name: str) -> Path:
        """Where to write the new file that will be `name` in the bundle."""
        path = self._staging / _inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read_path(self, name: str) -> Path:
        """Where `name` can be read: the new file if there is one, else the bundle's."""
        staged = self._staging / _inside(name)
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
        path = self._staging / _inside(name)
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
    return json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n"


def _finish_commit(folder: Path) -> None:
    """Do the renames that a written `.next` manifest promises; call it under the lock."""
    following = folder / _NEXT
    if not following.exists():
        return
    staging = folder / _STAGING
    for artifact in _read_manifest(following).artifacts:
        staged = staging / artifact.path
        if staged.exists():
            final = folder / artifact.path
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, final)
    os.replace(following, folder / MANIFEST)
    fsync_path(folder)
    shutil.rmtree(staging, ignore_errors=True)
