"""What lies in a folder, and the next step for each of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vitdeploy.bundle import MANIFEST, Bundle
from vitdeploy.bundle.measurements import last_report
from vitdeploy.core.errors import BundleError
from vitdeploy.core.precisions import precisions, title
from vitdeploy.models.tasks import TASKS

__all__ = ["NextStep", "next_steps"]

_FOLDERS = 200  # looked at of a folder
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class NextStep:
    """What was found where, and the command that goes on with it. Words in capitals are the user's to fill in."""

    path: Path
    found: str
    command: str


def next_steps(folder: Path) -> list[NextStep]:
    """One step for each bundle in `folder` and two levels below, and for each checkpoint that no bundle here is of.

    Example:
        >>> next_steps(Path("demo"))
        [NextStep(path=Path("demo/digits-vit"), found="a bundle of FP32, FP16, INT8; measured", ...)]
    """
    places = [folder, *(inner for place in _folders(folder) for inner in (place, *_folders(place)))]
    bundles = [place for place in places if (place / MANIFEST).is_file()]
    sources: set[str] = set()
    steps = [_of_bundle(place, sources) for place in bundles]
    for place in places:
        is_checkpoint = (place / "config.json").is_file() and any((place / name).is_file() for name in _WEIGHTS)
        if is_checkpoint and place.resolve().name not in sources:
            name = place.resolve().name
            output = place.parent / f"{name}-bundle" if place != folder else Path("..") / f"{name}-bundle"
            steps.append(NextStep(place, "a checkpoint", _line("export", place, "--output", output)))
    return steps


def _folders(folder: Path) -> Iterator[Path]:
    try:
        found = sorted(islice((path for path in folder.iterdir() if path.is_dir()), _FOLDERS))
    except OSError:
        return iter(())
    return (path for path in found if not path.name.startswith("."))


def _of_bundle(place: Path, sources: set[str]) -> NextStep:
    """The step for a bundle; the name of the checkpoint it was made of is added to `sources`."""
    try:
        bundle = Bundle.open(place)
    except BundleError as error:
        return NextStep(place, f"a bundle that can't be opened: {error.message}", _line("inspect", place))
    sources.add(Path(str(bundle.manifest.model.get("name", ""))).name)
    held = {artifact.precision for artifact in bundle.select(kind="onnx")}
    found = "a bundle of " + ", ".join(title(precision) for precision in precisions() if precision in held)
    if stale := bundle.out_of_date():
        return NextStep(place, f"{found}; out of date: {', '.join(stale)}", _line("inspect", place))
    if len(held) == 1:
        data = () if bundle.find(kind="calibration") else ("--calibration-data", "DATASET")  # export --from has it
        return NextStep(place, found, _line("build-engine", place, "--fp16", "--int8", *data))
    if last_report(bundle) is None:
        return NextStep(place, f"{found}; not measured", _line("bench", place, "--dataset", "DATASET"))
    return NextStep(place, f"{found}; measured", TASKS[bundle.manifest.task].kind.line(place))


def _line(*words: object) -> str:
    return shlex.join(["vitdeploy", *map(str, words)])
