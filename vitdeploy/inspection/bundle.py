"""What is in a bundle, or in one file of it: facts for people and for programs, and whether the files are sound.

A bundle is read with the standard library alone. A file that does not match its hash and one that was made from an
older file than the bundle holds now are found here; `vitdeploy.inspection.graph` looks inside ONNX files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.backends.registry import runs_bundles
from vitdeploy.bundle import CALIBRATIONS, MANIFEST, Artifact, Bundle, Manifest
from vitdeploy.bundle.measurements import Measurements
from vitdeploy.core.addresses import hub_hint, is_address
from vitdeploy.core.errors import BundleError, InputError, ModelError, VitdeployError
from vitdeploy.core.specs import PreprocessSpec
from vitdeploy.core.text import quoted
from vitdeploy.inspection.engine import SUFFIXES, EngineFacts, read_engine_file
from vitdeploy.inspection.graph import GraphFacts, read_graph
from vitdeploy.inspection.plan import read_plan
from vitdeploy.runtime.remote import is_hub_name, open_bundle

__all__ = ["BundleReport", "FileReport", "FileState", "describe_preprocessing", "inspect"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FileState:
    """A file of a bundle: `state` is ok, changed (its hash is not the manifest's) or missing; `stale` says in words
    why it should be made again, None where it need not be."""

    artifact: Artifact
    state: str
    stale: str | None

    def to_json(self) -> dict[str, Any]:
        return {**self.artifact.to_json(), "state": self.state, "stale": self.stale}


@dataclass(frozen=True)
class BundleReport:
    """A bundle as it lies on the disk. `bench` is None without a benchmark report; see `_bench` for its fields."""

    path: Path
    manifest: Manifest
    files: tuple[FileState, ...]
    bench: dict[str, Any] | None

    def __repr__(self) -> str:
        return (
            f"<BundleReport of {self.path}: {', '.join(f'{file.artifact.path} {file.state}' for file in self.files)}>"
        )

    @property
    def calibration(self) -> dict[str, Any] | None:
        """The recipe and the images that INT8 was calibrated with, how it was checked, and the budget that it keeps to
        (empty: there was none); None: no calibration."""
        return self.calibrations.get("int8")

    @property
    def calibrations(self) -> dict[str, dict[str, Any]]:
        """The same by precision."""
        made = {file.artifact.kind: file.artifact.built_with for file in self.files}
        return {
            precision: {name: made[kind].get(name) or {} for name in ("recipe", "images", "check", "budget")}
            for precision, kind in CALIBRATIONS.items()
            if kind in made
        }

    @property
    def checks(self) -> list[dict[str, Any]]:
        """The comparisons that were made when the bundle was, with their numbers."""
        checks = list(self.manifest.provenance.get("checks") or [])
        checks += [
            file.artifact.built_with.get("check")
            for file in self.files
            if file.artifact.kind not in CALIBRATIONS.values()
        ]
        return [check for check in checks if isinstance(check, dict)]

    def require_sound(self) -> None:
        """Raise BundleError if a file is missing or changed."""
        _require_sound(self.path, self.files)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data: see `vitdeploy inspect --help`."""
        manifest = self.manifest.to_json()
        return {
            "schema_version": SCHEMA_VERSION,
            "type": "bundle",
            "name": self.path.resolve().name,
            "model": manifest["model"],
            "task": manifest["task"],
            "embedding": manifest.get("embedding"),
            "threshold": manifest.get("threshold"),
            "labels": manifest["labels"],
            "preprocess": manifest["preprocess"],
            "preprocess_text": describe_preprocessing(self.manifest.preprocess),
            "inputs": manifest["inputs"],
            "outputs": manifest["outputs"],
            "artifacts": [file.to_json() for file in self.files],
            "sound": all(file.state == "ok" for file in self.files),
            "calibration": self.calibration,
            "calibrations": self.calibrations,
            "checks": self.checks,
            "bench": self.bench,
            "choice": manifest.get("choice"),
            "provenance": manifest["provenance"],
        }


@dataclass(frozen=True)
class FileReport:
    """One file: `state` is its entry in the bundle around it (None outside a bundle), `graph` what an ONNX file holds
    and `engine` what is known of an engine (both None for other kinds)."""

    path: Path
    size_bytes: int
    bundle: Path | None
    state: FileState | None
    graph: GraphFacts | None
    engine: EngineFacts | None = None

    def __repr__(self) -> str:
        return f"<FileReport of {self.path}: {self.size_bytes} bytes>"

    def require_sound(self) -> None:
        """Raise BundleError if the file is not the one that its bundle describes."""
        if self.bundle is not None and self.state is not None:
            _require_sound(self.bundle, (self.state,))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data: see `vitdeploy inspect --help`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "type": "onnx" if self.graph is not None else "engine" if self.engine is not None else "file",
            "name": self.path.name,
            "size_bytes": self.size_bytes,
            "artifact": None if self.state is None else self.state.to_json(),
            "graph": None if self.graph is None else self.graph.to_json(),
            "engine": None if self.engine is None else self.engine.to_json(),
        }


def inspect(
    path: str | os.PathLike[str], *, trusted: bool = False, revision: str | None = None
) -> BundleReport | FileReport:
    """Look at a bundle, at an ONNX file, or at an engine or another file inside a bundle.

    Args:
        path: the folder or file, or `owner/name` of a bundle on the Hugging Face Hub.
        trusted: load an engine that no bundle describes, on a GPU; its file is code that then runs.
        revision: branch, tag or commit of a bundle on the Hub; None: its default branch.

    Raises:
        BundleError: it is not a bundle, or its manifest is damaged or newer. A file that does not match its hash is
            no error here: it is in the report, and `require_sound` raises.
        InputError: there is nothing at `path`, or it is a file that says nothing.
        ModelError: a damaged ONNX file.
        DependencyError: an ONNX file, and the package onnx is not installed.

    Example:
        report = inspect("bundles/vit")
        report.to_json()["sound"]
    """
    place = Path(path)
    if is_hub_name(os.fspath(path)) or revision is not None:
        place = open_bundle(path, revision).path
    if is_address(os.fspath(path)):
        raise InputError(f"{path} is an address, not a bundle", hint=hub_hint(os.fspath(path), "bundle"))
    if not place.exists():
        raise InputError(f"there is nothing at {place}", hint="name a bundle's folder, or a file in it")
    if place.name == MANIFEST and place.is_file():
        place = place.parent
    return _inspect_folder(place) if place.is_dir() else _inspect_file(place, trusted)


def _inspect_folder(folder: Path) -> BundleReport:
    if not Bundle.is_bundle(folder):
        raise _no_bundle(folder)
    bundle = Bundle.open(folder)
    return BundleReport(folder, bundle.manifest, _states(bundle), _bench(bundle))


def _no_bundle(folder: Path) -> VitdeployError:
    if (folder / "config.json").is_file():
        return BundleError(
            f"{folder} is a checkpoint, not a bundle",
            hint=f"vitdeploy export {quoted(folder)} --output BUNDLE makes one of it",
        )
    inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    hint = f"vitdeploy inspect {quoted(inside[0])}" if inside else "name a folder that vitdeploy export wrote"
    return BundleError(f"{folder} is not a bundle: it has no {MANIFEST}", hint=hint)


def _inspect_file(path: Path, trusted: bool) -> FileReport:
    bundle, state = _entry(path)
    graph = read_graph(path) if path.suffix == ".onnx" else None
    engine = _engine(path, state, trusted)
    if graph is None and state is None and engine is None:
        raise _unknown_file(path, bundle)
    return FileReport(path, path.stat().st_size, None if bundle is None else bundle.path, state, graph, engine)


def _engine(path: Path, state: FileState | None, trusted: bool) -> EngineFacts | None:
    """What is known of an engine; None for another file, and for one of unknown origin that tells nothing unloaded."""
    if state is None:
        if path.suffix not in SUFFIXES:
            return None
        if trusted:
            return read_engine_file(path, None)
        plan = read_plan(path)
        reason = (
            "no bundle describes the file, so it is not loaded; --trusted loads it on a GPU, which runs the code in it"
        )
        return None if plan is None else EngineFacts(None, plan, reason=reason)
    if state.artifact.kind != "engine":
        return None
    if state.state != "ok":
        return EngineFacts(None, reason="the file is not the one that the manifest describes, so it is not loaded")
    return read_engine_file(path, state.artifact)


def _entry(path: Path) -> tuple[Bundle | None, FileState | None]:
    """The bundle around a file, and what its manifest says about the file."""
    file = Path(os.path.abspath(path))
    for folder in file.parents[:3]:
        if Bundle.is_bundle(folder):
            bundle = Bundle.open(folder)
            name = file.relative_to(folder).as_posix()
            states = [state for state in _states(bundle, only=name) if state.artifact.path == name]
            return bundle, states[0] if states else None
    return None, None


def _unknown_file(path: Path, bundle: Bundle | None) -> VitdeployError:
    if path.suffix in SUFFIXES:
        what = "is not in the manifest of its bundle" if bundle is not None else "lies outside a bundle"
        return InputError(
            f"{path} {what}, and an engine alone does not say what it was built for",
            hint="inspect it in the bundle it was built in, or build it again: vitdeploy build-engine BUNDLE --fp16; if"
            " you built it yourself, --trusted reads its layers on a GPU, which runs the code in it",
        )
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth") or path.name == "config.json":
        return ModelError(
            f"{path} is part of a checkpoint",
            hint=f"vitdeploy export {quoted(path.parent)} --output BUNDLE makes a bundle",
        )
    return InputError(
        f"{path} is neither an ONNX file nor a file of a bundle", hint="name a bundle's folder, or a file in it"
    )


def _require_sound(folder: Path, files: tuple[FileState, ...]) -> None:
    bad = [f"{file.artifact.path} is {file.state}" for file in files if file.state != "ok"]
    if bad:
        raise BundleError(
            f"{folder} does not match its manifest: {', '.join(bad)}",
            hint="copy the whole folder again, or rebuild the file; do not load a file that was tampered with",
        )


def _states(bundle: Bundle, only: str | None = None) -> tuple[FileState, ...]:
    """Every file of the bundle; with `only`, just that file's hash is computed and the others count as ok."""
    stale = bundle.out_of_date()
    return tuple(
        FileState(
            artifact,
            bundle.state(artifact) if only in (None, artifact.path) else "ok",
            stale.get(artifact.path),
        )
        for artifact in bundle.manifest.artifacts
    )


def _bench(bundle: Bundle) -> dict[str, Any] | None:
    """The last benchmark report in a few fields: path, created, sentence, images, forms, current.

    `current` says whether every graph and engine that was measured is still the one in the bundle. A report that
    can't be read has path and error only.
    """
    reports = [artifact for artifact in bundle.select(kind="bench") if artifact.path.endswith(".json")]
    if not reports:
        return None
    last = max(reports, key=lambda artifact: str(artifact.built_with.get("created", "")))
    try:
        found = Measurements.of(bundle, last)
    except BundleError as error:
        return {"path": last.path, "error": error.message}
    here = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    ran = [form for form in found.rows if form.status == "ok"]
    ours = [form for form in ran if runs_bundles(form.backend)]
    return {
        "path": last.path,
        "created": found.created,
        "sentence": found.recommendation.sentence,
        "images": found.dataset.count,
        "forms": [form.key for form in ran],
        "current": all(here.get(form.artifact.path) == form.sha256 for form in ours if form.artifact),
    }


def describe_preprocessing(spec: PreprocessSpec) -> list[str]:
    """What happens to an image before the network sees it, one plain line per step.

    Example:
        describe_preprocessing(bundle.manifest.preprocess)
        # ["resize to 224x224, bicubic as Pillow does", "scale to 0..1", "normalise by mean ... and deviation ..."]
    """
    steps = []
    resize = spec.resize
    if resize is not None:
        if resize.shortest_edge is not None:
            size = f"so that the shorter side is {resize.shortest_edge}"
            if resize.longest_edge is not None:
                size += f" and the longer at most {resize.longest_edge}"
        else:
            size = f"to {resize.height}x{resize.width} (height x width)"
        steps.append(f"resize {size}, {resize.resample} as Pillow does")
    if spec.crop is not None:
        steps.append(f"cut {spec.crop[0]}x{spec.crop[1]} (height x width) from the centre")
    if spec.rescale is not None:
        top = 255 * spec.rescale
        steps.append(f"scale 0..255 to 0..{top:.4g}")
    normalise = [
        f"{name} {' '.join(f'{value:g}' for value in values)}"
        for name, values in (("mean", spec.mean), ("deviation", spec.std))
        if values is not None
    ]
    if normalise:
        steps.append(f"normalise by {' and '.join(normalise)} (red green blue)")
    if spec.channels == "bgr":
        steps.append("put the channels in the order blue green red")
    return steps or ["none: the pixels go in as they are"]
