"""Results on the disk while they grow: whole parts in a folder beside the output, joined when all is done.

    results.parquet.partial/
      job.json               what is being done: a run with other settings does not go on with it
      part-000000.parquet    finished rows, never changed once they are there
      joined.json            all is done, and `joined` is the whole file or was renamed to the output already

Each file appears whole under its name. A run that is killed before `joined.json` loses the rows that were not in a part
yet; one that is killed after it has lost nothing, and whoever opens the results next does the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.bulk.formats import FORMATS, Format, Layout, Row, format_of
from vitdeploy.bulk.sources import Done
from vitdeploy.bulk.vectors import VECTOR_FORMATS
from vitdeploy.core.decoding import decode
from vitdeploy.core.errors import OutputExistsError, VitdeployError
from vitdeploy.core.storage import check_apart, disk_errors, fsync_path, locked, read_json, write_atomically

__all__ = [
    "FAILURES_KEPT",
    "SCHEMA_VERSION",
    "Results",
    "check_output",
    "differences",
    "open_results",
    "partial_folder",
]

SCHEMA_VERSION = 1
_JOB, _JOINED, _WHOLE, _LOCK = "job.json", "joined.json", "joined", ".lock"
FAILURES_KEPT = 100


def partial_folder(output: Path) -> Path:
    """Where the results of an unfinished run are."""
    return output.with_name(f"{output.name}.partial")


def check_output(
    output: str | os.PathLike[str], *, overwrite: bool, inputs: Sequence[str] = (), vectors: bool = False
) -> None:
    """Refuse an output that can't be written, before anything is loaded. `vectors`: it is for an embedding's.

    Raises:
        InputError: its suffix names no format.
        DependencyError: the format needs a package that is not installed.
        OutputExistsError: it is there, and `overwrite` is off; or it is a folder.
    """
    path = Path(output)
    kind = format_of(path, VECTOR_FORMATS if vectors else FORMATS)
    kind.check()
    names = _files(path, kind)
    for name in names:
        check_apart(name, inputs)
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder", hint="name a file in it as --output")
    there = [name for name in names if name.exists()]
    if there and not overwrite and not (partial_folder(path) / _JOINED).exists():
        raise OutputExistsError(
            f"{there[-1]} already exists", hint="choose another --output, or replace it with --overwrite"
        )


def _files(path: Path, kind: Format) -> tuple[Path, ...]:
    """All that a format writes for an output, the output last."""
    return (path,) if kind.beside is None else (path.with_name(path.name + kind.beside), path)


@dataclass(frozen=True)
class _Summary:
    """What is kept of a run whose rows are joined."""

    images: int
    failed: int
    failures: tuple[tuple[str, int | None, str], ...]


class Results:
    """The rows of a run: `count` of them, `failed` with an error, `failures` the first hundred of those.

    `open_results` makes it. `done` is what an earlier run answered and this one need not; `complete` says that nothing
    is left to do at all.
    """

    def __init__(self, output: Path, layout: Layout, job: dict[str, Any], summary: _Summary | None = None) -> None:
        self._output, self._layout, self._job = output, layout, job
        self._folder = partial_folder(output)
        self._format = _format(output, layout)
        self._waiting: list[Row] = []
        self.complete = summary is not None
        self.done = Done()
        self.count = self.failed = 0
        self.failures: list[tuple[str, int | None, str]] = []
        if summary is not None:
            self.count, self.failed, self.failures = summary.images, summary.failed, list(summary.failures)
            return
        for part in self._parts():
            for name, row, error in self._read(part):
                self._count_in(name, row, error)

    def add(self, row: Row) -> None:
        """Take a row; it is on the disk after the next `flush`."""
        self._waiting.append(row)
        self._count_in(row["image"], row["row"], row["error"])

    @property
    def waiting(self) -> int:
        """Rows that are not on the disk yet."""
        return len(self._waiting)

    def flush(self) -> None:
        """Write the rows that wait as a part."""
        if not self._waiting:
            return
        number = len(self._parts())
        path = self._folder / f"part-{number:06}{self._format.suffix}"
        write_atomically(path, self._format.encode(self._waiting, self._layout))
        self._waiting = []

    def finish(self) -> None:
        """Join the parts to the output and remove them."""
        self.flush()
        whole = self._folder / _WHOLE
        with disk_errors(str(self._output)):
            self._format.join(self._parts(), whole, self._layout, self._job)
            for file in _files(whole, self._format):
                fsync_path(file)
            summary = {"images": self.count, "failed": self.failed, "failures": self.failures}
            write_atomically(self._folder / _JOINED, json.dumps(summary) + "\n")
            _finish(self._folder, self._output, self._format)

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob(f"part-*{self._format.suffix}"))

    def _read(self, part: Path) -> Iterator[tuple[str, int | None, str | None]]:
        try:
            yield from self._format.read(part, self._layout)
        except Exception as error:  # each format's reader has errors of its own
            raise VitdeployError(
                f"{part} is damaged: {error}", hint="remove that file: its images are done again"
            ) from error

    def _count_in(self, name: str, row: int | None, error: str | None) -> None:
        self.done.add(name, row)
        self.count += 1
        if error is not None:
            self.failed += 1
            if len(self.failures) < FAILURES_KEPT:
                self.failures.append((name, row, error))


@contextmanager
def open_results(output: Path, layout: Layout, job: dict[str, Any], *, overwrite: bool) -> Iterator[Results]:
    """The results at `output`: new ones, or those of a run that was stopped.

    Args:
        output: the file to be; its suffix names the format.
        layout: its columns.
        job: what decides the rows; a stopped run is gone on with only where all of it is the same.
        overwrite: replace an output that exists, and begin again where a stopped run did something else.

    Raises:
        OutputExistsError: `output` exists, or a stopped run did something else, and `overwrite` is off.
        BundleError: another command is writing to `output`.
    """
    vectors = layout.dimensions is not None
    check_output(output, overwrite=overwrite, vectors=vectors)
    folder = partial_folder(output)
    if folder.exists() and not _ours(folder):
        raise OutputExistsError(f"{folder} is in the way", hint="choose another --output, or move it away")
    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / _LOCK):
        if not (folder / _JOINED).exists():
            check_output(output, overwrite=overwrite, vectors=vectors)  # another run may have ended since
            _take_up(folder, job, overwrite)
            yield Results(output, layout, job)
            return
        same = not _differences(folder / _JOB, job)
        try:
            summary: _Summary = decode(_Summary, read_json(folder / _JOINED))
        except (OSError, ValueError) as error:
            raise VitdeployError(
                f"{folder / _JOINED} is damaged: {error}", hint=f"the results are whole in {folder / _WHOLE}: move it"
            ) from error
        _finish(folder, output, _format(output, layout))
        if same:
            yield Results(output, layout, job, summary)
            return
    with open_results(output, layout, job, overwrite=overwrite) as results:  # what was ended there was another run
        yield results


def _ours(folder: Path) -> bool:
    return folder.is_dir() and all(
        path.name in (_JOB, _LOCK) or path.name.startswith(("part-", ".part-", ".job", _WHOLE, ".joined"))
        for path in folder.iterdir()
    )


def _take_up(folder: Path, job: dict[str, Any], overwrite: bool) -> None:
    """Make sure that what lies in the folder belongs to `job`."""
    for path in folder.iterdir():  # what a killed run was just writing
        if path.name != _LOCK and path.name.startswith("."):
            path.unlink(missing_ok=True)
    path = folder / _JOB
    if any(folder.glob("part-*")):
        differences = _differences(path, job)
        if not differences:
            return
        if not overwrite:
            raise OutputExistsError(
                f"{folder} holds the results of a run that was stopped, and that one had {'; '.join(differences)}",
                hint="give the same bundle, options and images to go on with it, or --overwrite to begin again",
            )
    _remove(folder, keep=(_LOCK,))
    write_atomically(path, json.dumps({"schema_version": SCHEMA_VERSION, **job}, indent=2) + "\n")


def _differences(path: Path, job: dict[str, Any]) -> list[str]:
    try:
        before = read_json(path)
    except (OSError, ValueError):
        before = None
    return differences(before, job)


def differences(before: Any, job: dict[str, Any]) -> list[str]:
    """In which settings the job of a stopped run, `before` as it was read, was another one, in words."""
    try:
        version = before["schema_version"]
    except (KeyError, TypeError):
        return ["a job.json that can't be read"]
    if version != SCHEMA_VERSION:
        return [f"the schema {version} (of another version of vitdeploy)"]
    now = json.loads(json.dumps(job))
    return [
        f"{name} {_short(before.get(name))}, not {_short(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _format(output: Path, layout: Layout) -> Format:
    return format_of(output, FORMATS if layout.dimensions is None else VECTOR_FORMATS)


def _finish(folder: Path, output: Path, kind: Format) -> None:
    """Do what is left once all is joined: rename the whole file and what belongs to it, then remove the parts."""
    for made, target in zip(_files(folder / _WHOLE, kind), _files(output, kind), strict=True):
        if made.exists():
            os.replace(made, target)
            fsync_path(output.parent)
    _remove(folder, keep=(_JOINED, _JOB, _LOCK))
    for name in (_JOINED, _JOB, _LOCK):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def _remove(folder: Path, keep: tuple[str, ...]) -> None:
    for path in folder.iterdir():
        if path.name not in keep:
            path.unlink(missing_ok=True)
