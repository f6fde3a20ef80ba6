"""Where a run keeps what it needs to be taken up again: a folder beside its output, of checkpoints that are whole.

    runs/vit.training/     settings.json       what must be the same when it is taken up
                           checkpoint-120/     the weights, the optimizer, the randomness, the log so far
                           tensorboard/

A checkpoint is written under another name, flushed and renamed, so one that is there is complete. Two are kept: the
last and the best. The folder goes when the output is there, or when a run ends before its first checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.errors import InputError, OutputExistsError
from vitdeploy.core.storage import disk_errors, fsync_path, locked, read_json, write_atomically
from vitdeploy.training.processes import Processes

__all__ = ["Workspace", "workspace"]

_SETTINGS = "settings.json"
_CHECKPOINT = "checkpoint-"
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Workspace:
    """The folder of one run, `start` the checkpoint it goes on from, `resumed_from` the steps it was taken up at."""

    path: Path
    start: Path | None
    resumed_from: tuple[int, ...] = ()

    def checkpoint(self, step: int) -> Path:
        return self.path / f"{_CHECKPOINT}{step}"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @contextmanager
    def new_checkpoint(self, step: int, processes: Processes) -> Iterator[Path]:
        """A folder for all processes to write to, which becomes the checkpoint of `step` when the block ends well."""
        partial = self.path / f"{_PARTIAL}{step}"
        with disk_errors(str(self.checkpoint(step))):
            if processes.is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
            processes.wait()
            try:
                yield partial
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            processes.wait()
            if processes.is_main:
                for root, _, names in os.walk(partial):
                    for name in names:
                        fsync_path(Path(root, name))
                    fsync_path(Path(root))
                shutil.rmtree(self.checkpoint(step), ignore_errors=True)
                os.rename(partial, self.checkpoint(step))
                fsync_path(self.path)
        processes.wait()

    def keep_only(self, steps: set[int]) -> None:
        """Remove all checkpoints but those of `steps`."""
        for step, folder in _checkpoints(self.path).items():
            if step not in steps:
                shutil.rmtree(folder, ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder: its output is there."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def workspace(
    output: Path, settings: dict[str, Any], processes: Processes, *, overwrite: bool, resume: bool
) -> Iterator[Workspace]:
    """The folder of the run that will write `output`.

    Raises:
        OutputExistsError: an interrupted run of it is there, and it is neither taken up nor dropped.
        InputError: the interrupted run had other settings.
        BundleError: another process is at work on it.
    """
    output = Path(os.path.abspath(output))
    path = output.with_name(f"{output.name}.training")
    if not processes.is_main:
        processes.wait()
        yield Workspace(path, _last(path) if resume else None)
        return
    with disk_errors(str(path)):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path / ".lock"):
        start, resumed_from = _prepare(path, settings, overwrite=overwrite, resume=resume)
        processes.wait()
        try:
            yield Workspace(path, start, resumed_from)
        except BaseException:
            last = _last(path)
            if last is None:
                shutil.rmtree(path, ignore_errors=True)
            else:
                progress.note(f"{path} keeps the run as it was at step {_step(last)}: --resume goes on from there.")
            raise


def _prepare(
    path: Path, settings: dict[str, Any], *, overwrite: bool, resume: bool
) -> tuple[Path | None, tuple[int, ...]]:
    last = _last(path)
    if last is not None and not (resume or overwrite):
        raise OutputExistsError(
            f"a run of this output was interrupted at step {_step(last)} or later",
            hint="go on with --resume, or start again with --overwrite",
        )
    if last is None or not resume:
        last = None
        for entry in path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
    for abandoned in path.glob(f"{_PARTIAL}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    resumed_from: list[int] = []
    if last is not None:
        before = read_json(path / _SETTINGS)
        _compare(before["settings"], settings)
        resumed_from = [*before["resumed_from"], _step(last)]
        progress.note(f"Going on from step {_step(last)}.")
    elif resume:
        progress.note("No checkpoint to continue from: starting at the beginning.")
    write_atomically(
        path / _SETTINGS, json.dumps({"settings": settings, "resumed_from": resumed_from}, indent=2) + "\n"
    )
    return last, tuple(resumed_from)


def _compare(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old == new or name not in now:  # what an earlier version compared besides
            continue
        if isinstance(new, dict):
            count = old["count"] if isinstance(old, dict) else "other"
            these = f"there are {new['count']} now" if count != new["count"] else "some are others now"
            raise InputError(
                f"the interrupted run had {count} {name}, and {these}",
                hint="give --resume the dataset as it was, or start again with --overwrite",
            )
        raise InputError(
            f"the interrupted run had {name} = {old!r}, not {new!r}",
            hint="give --resume the settings it was started with, or start again with --overwrite",
        )


def _checkpoints(path: Path) -> dict[int, Path]:
    found = path.glob(f"{_CHECKPOINT}*") if path.is_dir() else ()
    return {_step(folder): folder for folder in found}


def _last(path: Path) -> Path | None:
    found = _checkpoints(path)
    return found[max(found)] if found else None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_CHECKPOINT))
