"""A bundle on the disk: one folder with everything a device needs, described and hashed by manifest.json."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from vitdeploy.bundle import editing
from vitdeploy.bundle.graphs import named_files
from vitdeploy.bundle.migrations import read_manifest
from vitdeploy.bundle.records import CALIBRATIONS, MANIFEST, Artifact, Manifest
from vitdeploy.core.addresses import hub_hint, is_address
from vitdeploy.core.errors import BundleError
from vitdeploy.core.specs import Choice
from vitdeploy.core.storage import check_output, holds_only, refuse_pointer, staged_folder
from vitdeploy.core.text import quoted

__all__ = ["Bundle"]


@dataclass(frozen=True)
class Bundle:
    """A bundle on the disk as it was when it was opened."""

    path: Path
    manifest: Manifest

    def __repr__(self) -> str:
        return f"<Bundle {self.path}: {', '.join(artifact.path for artifact in self.manifest.artifacts)}>"

    def _repr_html_(self) -> str:
        """For a notebook: what the model is, and the forms and engines that are here."""
        from vitdeploy.core.notebook import cell, table

        manifest, named = self.manifest, ", ".join(self.manifest.labels[:5])
        more = len(manifest.labels) - 5
        what = f"{len(manifest.labels)} classes, {named}" + " ..." * (more > 0)
        facts = f"{manifest.model.get('name')}: {manifest.embedding or what}"
        if manifest.choice is not None:
            facts += f"; chosen: {manifest.choice.precision} on {manifest.choice.backend}"
        forms = [a for a in manifest.artifacts if a.kind in ("onnx", "engine")]
        rows = [[cell(a.path), cell(a.precision), cell(a.target), cell(f"{a.size_bytes / 1e6:.1f} MB")] for a in forms]
        return table(rows, ("file", "precision", "for", "size"), facts)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the bundle in the folder `path`; nothing is written.

        Raises:
            BundleError: there is no such folder, it is not a bundle, it is damaged, or its schema is newer.
        """
        folder = Path(path)
        if is_address(os.fspath(path)):  # as text: a path has no two slashes
            raise BundleError(f"{path} is an address, not a bundle", hint=hub_hint(os.fspath(path), "bundle"))
        if not folder.exists():
            raise BundleError(f"there is no bundle at {folder}", hint=_instead(folder))
        if not (folder / MANIFEST).is_file():
            hint = "name a folder that vitdeploy export wrote"
            if (folder / "config.json").is_file():
                name = quoted(Path("bundles", folder.resolve().name))
                hint = f"it is a checkpoint: vitdeploy export {quoted(folder)} --output {name}"
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}", hint=hint)
        return cls(folder, read_manifest(folder / MANIFEST))

    @classmethod
    def is_bundle(cls, path: Path) -> bool:
        """Whether `path` is a folder that holds a manifest."""
        return (path / MANIFEST).is_file()

    @classmethod
    def is_ours(cls, path: Path) -> bool:
        """Whether `path` opens as a bundle and holds nothing else: what may be replaced as a whole."""
        try:
            names = {MANIFEST, *(artifact.path for artifact in cls.open(path).manifest.artifacts)}
        except BundleError:
            return False
        return holds_only(path, lambda name: name in names or editing.belongs(name))

    @classmethod
    def check_output(cls, path: str | os.PathLike[str], *, overwrite: bool) -> None:
        """Raise OutputExistsError where `create` would, before the work that comes before it."""
        check_output(Path(path), overwrite=overwrite, ours=cls.is_ours, what="bundle")

    @classmethod
    @contextmanager
    def create(
        cls, path: str | os.PathLike[str], manifest: Manifest, *, overwrite: bool = False
    ) -> Iterator[editing.BundleEditor]:
        """Make a new bundle; it appears at `path`, whole, when the block ends well.

        Raises:
            OutputExistsError: `path` exists and `overwrite` is off, or it is not a bundle or holds other files.
            BundleError: another command is writing to the bundle that is there.
        """
        with (
            editing.held(Path(path)) if overwrite and cls.is_ours(Path(path)) else nullcontext(),
            staged_folder(Path(path), overwrite=overwrite, ours=cls.is_ours, what="bundle") as folder,
            editing.fill(folder, manifest) as editor,
        ):
            yield editor

    @contextmanager
    def edit(self, *, patient: bool = False) -> Iterator[editing.BundleEditor]:
        """Change this bundle; the change is seen when the block ends well, whole, or not at all.

        The manifest is read again under the lock, so an older `Bundle` object may be used to edit.

        Args:
            patient: wait a while for another command that is writing to it: what is to be kept took long to get.

        Raises:
            BundleError: another command is writing to this bundle, or it can only be read.
        """
        with editing.edit(self.path, patient=patient) as editor:
            yield editor

    def check_changeable(self) -> None:
        """Raise BundleError where `edit` would since the bundle can only be read, before the work that comes before it:
        it holds links, as the caches of the Hub and mounted volumes do, or may not be written to."""
        editing.check_changeable(self.path)

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
        graphs = {artifact.sha256: artifact.path for artifact in self.select(kind="onnx")}
        calibrations = {a.sha256 for a in self.manifest.artifacts if a.kind in CALIBRATIONS.values()}
        why: dict[str, str] = {}
        for artifact in self.manifest.artifacts:
            if artifact.kind not in ("onnx", *CALIBRATIONS.values()) or artifact.built_from is None:
                continue
            used = artifact.built_with.get("calibration_sha256")
            if artifact.built_from not in graphs:
                why[artifact.path] = "made from another model.onnx than the one here"
            elif used is not None and used not in calibrations:
                why[artifact.path] = "made with another calibration than the one here"
        for artifact in (*self.select(kind="onnx"), *self.select(kind="engine")):
            if artifact.built_from is None or artifact.path in why:
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
        path = self.place(artifact)
        if not path.is_file():
            raise BundleError(
                f"{self.path} is incomplete: {artifact.path} is missing",
                hint="copy the whole folder again, or rebuild it",
            )
        if verify and not editing.is_fit(path, artifact):
            refuse_pointer(path, BundleError)
            raise BundleError(
                f"{path} is not the file that the manifest describes (its SHA-256 differs)",
                hint="copy the whole folder again, or rebuild the file; do not load a file that was tampered with",
            )
        if verify and artifact.kind == "onnx":
            self._check_weights(artifact, path)
        return path

    def _check_weights(self, artifact: Artifact, path: Path) -> None:
        """Verify the files in which a graph keeps weights; it may name no others than the manifest has."""
        try:
            names = named_files(path)
        except ValueError as error:
            raise BundleError(f"{path} is damaged: {error}", hint="export the model again") from error
        folder, listed = (
            PurePosixPath(artifact.path).parent,
            {entry.path: entry for entry in self.select(kind="weights")},
        )
        for name in names:
            beside = listed.get(str(folder / name))
            if beside is None:
                raise BundleError(
                    f"{path} keeps weights in {name!r}, which the manifest has not",
                    hint="export the model again; a file without a hash is not loaded",
                )
            self.file(beside)

    def hashes(self, artifact: Artifact) -> dict[str, str]:
        """{name beside it: SHA-256} of a graph and of the files that may hold its weights, for `read_graph`."""
        folder = PurePosixPath(artifact.path).parent
        files = [artifact, *self.select(kind="weights")]
        return {
            str(PurePosixPath(file.path).relative_to(folder)): file.sha256
            for file in files
            if PurePosixPath(file.path).is_relative_to(folder)
        }

    def state(self, artifact: Artifact) -> str:
        """ok, changed (its size or hash is not the manifest's) or missing."""
        path = self.place(artifact)
        return "missing" if not path.is_file() else "ok" if editing.is_fit(path, artifact) else "changed"

    def place(self, artifact: Artifact) -> Path:
        """Where an artifact lies, unchecked."""
        path, kept = self.path / artifact.path, editing.previous(self.path, artifact.path)
        # The second is there while another command puts a new file in its place, or was killed at it.
        return kept if kept.is_file() and not editing.is_fit(path, artifact) else path

    def files(self) -> list[Path]:
        """The manifest and all files that it lists."""
        return [self.path / MANIFEST, *(self.path / artifact.path for artifact in self.manifest.artifacts)]

    def verify(self) -> None:
        """Check every artifact; raises BundleError at the first that is missing or changed."""
        for artifact in self.manifest.artifacts:
            self.file(artifact)


def _instead(folder: Path) -> str:
    """What to do where there is no `folder`: take the bundle beside it whose name is alike, or make one."""
    beside = [path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}")]
    if close := get_close_matches(folder.name, beside, n=1):
        return f"did you mean {folder.with_name(close[0])}?"
    make = f"make one: vitdeploy export MODEL --output {quoted(folder)}"
    if len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.exists():  # as names on the Hub are
        return (
            f"{make}; or fetch that of the Hugging Face Hub: hf download {quoted(folder)} --local-dir {quoted(folder)}"
        )
    return make
