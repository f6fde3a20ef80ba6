"""A bulk run on a Ray cluster: images -> blocks -> workers -> a folder of parts, which a later run goes on with."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vitdeploy.bulk.files import without_secrets
from vitdeploy.bulk.formats import Layout
from vitdeploy.bulk.results import FAILURES_KEPT, SCHEMA_VERSION, differences
from vitdeploy.bulk.run import BulkResult, check_task, job_of
from vitdeploy.bulk.sources import find_images
from vitdeploy.bundle import Bundle
from vitdeploy.core import progress
from vitdeploy.core.errors import OutputExistsError, VitdeployError, require
from vitdeploy.core.storage import check_apart, parse_json
from vitdeploy.core.text import first_line
from vitdeploy.data.outside import are_outside_paths_allowed
from vitdeploy.deploy.ray import output as results
from vitdeploy.deploy.ray.blocks import Block, cut, digest, places
from vitdeploy.deploy.ray.cluster import Workers, cause_of, cluster, plan
from vitdeploy.deploy.ray.output import DONE, JOB, Folder, folder_at, is_ours
from vitdeploy.deploy.ray.settings import RaySettings
from vitdeploy.deploy.ray.shipping import Shipped, ship
from vitdeploy.deploy.ray.worker import Attempts, Orders, Worker, describe
from vitdeploy.models.tasks import EMBEDDING, TASKS
from vitdeploy.runtime.remote import open_bundle

__all__ = ["RayResult", "check_output", "embed_files", "predict_files"]

_RETRIES = 3  # where the first worker is killed as it opens the bundle
_BLOCKS_A_CALL = 8
_ORIGIN = ("model", "precision", "backend", "labels", "top_k", "threshold", "embedding")  # of a job, in each part


@dataclass(frozen=True)
class RayResult(BulkResult):
    """`output` is a folder, or its address; `backend` and `precision` are of the form that every worker ran."""

    backend: str
    precision: str


@dataclass(frozen=True)
class _Run:
    """What is to be done: the blocks that are left, and of those that are done the failed images; `doing` says it."""

    doing: str
    folder: Folder
    blocks: list[Block]
    done: dict[int, int]
    images: int


def predict_files(
    bundle: Bundle | str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: RaySettings = RaySettings(),  # noqa: B008 (it is frozen)
    *,
    revision: str | None = None,
) -> RayResult:
    """Classify images on the machines of a Ray cluster, and write one row an image into a folder of parquet files.

    The rows are those of `vitdeploy.predict_files`, in the same order. Every worker runs the same form of the bundle. A
    killed worker's blocks are done again by another one; a run that was stopped is gone on with by the same call.

    Args:
        bundle: an open one, its folder, or `owner/name` of one on the Hub.
        paths: files, folders and parquet files, by paths that every machine has, or by address (s3://, gs://, hdfs://,
            and what fsspec knows).
        output: a folder that every machine can write to, by path or address.
        settings: how.
        revision: of a bundle on the Hub.

    Raises:
        InputError: no such cluster, or none that has room for a worker; a bundle whose answers are no classes.
        DatasetError: images that can't be found or read.
        OutputExistsError: the results are there, or others are, and `overwrite` is off.
        DependencyError: Ray is not installed.
    """
    opened = open_bundle(bundle, revision)
    check_task(TASKS[opened.manifest.task], str(opened.path))
    return _answer_all(opened, paths, output, settings)


def embed_files(
    bundle: Bundle | str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: RaySettings = RaySettings(),  # noqa: B008 (it is frozen)
    *,
    revision: str | None = None,
) -> RayResult:
    """Write the vectors of images, by the workers of a Ray cluster: the rows of `vitdeploy.embed_files`.

    Args:
        bundle: of an embedding; the others are those of `predict_files`.

    Raises:
        InputError: a bundle of a classifier; the others are those of `predict_files`.
    """
    opened = open_bundle(bundle, revision)
    TASKS[opened.manifest.task].require(EMBEDDING, str(opened.path))
    return _answer_all(opened, paths, output, replace(settings, top_k=1))


def _answer_all(
    opened: Bundle,
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: RaySettings,
) -> RayResult:
    names = [os.fspath(path) for path in paths]
    folder = check_output(output, overwrite=settings.overwrite, inputs=names)
    images = find_images(names, image_column=settings.image_column, skip=(os.fspath(output),), addresses=True)
    blocks = list(cut(images, settings.block))
    began = time.monotonic()
    with cluster(settings.address) as ray:
        machines = (node["Resources"] for node in ray.nodes() if node["Alive"])
        team = plan(machines, settings.num_gpus, settings.num_cpus)
        shipped = ship(opened)
        form = _form(ray, team, shipped, settings)
        job = job_of(form, opened.manifest.labels, list(map(without_secrets, names)), images, settings.top_k)
        task = TASKS[opened.manifest.task]
        layout = Layout(images.has_rows, min(settings.top_k, len(opened.manifest.labels)), several=task.several)
        if form.get("embedding"):
            job |= {"embedding": form["embedding"]}
            layout = Layout(images.has_rows, dimensions=form["embedding"]["dimensions"])
        with folder.lock():
            _take_up(folder, job | {"block": settings.block, "images": digest(blocks)}, settings.overwrite)
            done = results.finished(folder, ((one.number, len(one)) for one in blocks))
            left = [one for one in blocks if one.number not in done]
            run = _Run(task.kind.doing, folder, left, done, sum(map(len, blocks)))
            orders = Orders(
                shipped,
                form,
                replace(settings, workers=settings.workers or team.num_cpus or None),
                tuple(places(images)),
                are_outside_paths_allowed(),
                folder,
                layout,
                {name: job[name] for name in _ORIGIN if name in job},
                side_by_side=2 if settings.num_gpus else 1,
                attempts=ray.remote(num_cpus=0, max_restarts=-1)(Attempts).remote(),
            )
            resumed = run.images - sum(map(len, left))
            failed = _work(ray, run, team, orders)
            return _finish(folder, failed, run.images, resumed, time.monotonic() - began, form)


def check_output(output: str | os.PathLike[str], *, overwrite: bool, inputs: Sequence[str] = ()) -> Folder:
    """The folder of the results, if it may be written, before anything is started.

    Raises:
        OutputExistsError: results are there and `overwrite` is off, or it holds other files, or an input.
        InputError: an address of no known file system.
        DependencyError: pyarrow is not installed.
    """
    require("pyarrow.parquet", extra="ray")
    folder = folder_at(os.fspath(output))
    check_apart(output, inputs)
    if os.path.isfile(output):
        raise OutputExistsError(f"{output} is a file", hint="name a folder as --output")
    names = folder.names()
    if foreign := [name for name in names if not is_ours(name)]:
        raise OutputExistsError(f"{folder.name} holds other files: {foreign[0]}", hint="choose another --output")
    if DONE in names and not overwrite:
        raise OutputExistsError(
            f"{folder.name} already exists", hint="choose another --output, or replace it with --overwrite"
        )
    return folder


def _form(ray: Any, team: Workers, shipped: Shipped, settings: RaySettings) -> dict[str, Any]:
    """What the first worker to be found room for would run."""
    task = ray.remote(num_cpus=team.num_cpus, num_gpus=team.num_gpus, max_retries=_RETRIES)(describe)
    with progress.task("Opening the bundle on a worker"), _translated(ray):
        device = "cuda" if team.num_gpus else "cpu"
        asked = task.remote(shipped, settings.backend, settings.precision, device, settings.threads, settings.threshold)
        found: dict[str, Any] = ray.get(asked)
    return found


def _take_up(folder: Folder, job: Mapping[str, Any], overwrite: bool) -> None:
    """Make sure that what lies in the folder belongs to `job`."""
    names = folder.names()
    if any(name.startswith("part-") or name == DONE for name in names):
        try:
            before = parse_json(folder.read(JOB))
        except (OSError, ValueError):
            before = None
        others = differences(before, dict(job))
        if others and not overwrite:
            raise OutputExistsError(
                f"{folder.name} holds the results of a run that was stopped, and that one had {'; '.join(others)}",
                hint="give the same bundle, options and images to go on with it, or --overwrite to begin again",
            )
        if DONE in names or others:
            for name in (DONE, JOB, *(name for name in names if name.startswith("part-"))):
                if name in names:
                    folder.remove(name)
    for name in names:  # what a killed worker was just writing
        if name.startswith((".part-", f".{JOB}", f".{DONE}")):
            folder.remove(name)
    folder.write(JOB, _json({"schema_version": SCHEMA_VERSION, **job}))


def _work(ray: Any, run: _Run, team: Workers, orders: Orders) -> dict[int, int]:
    """Let the workers do the blocks that are left; {number: failed images} of all blocks."""
    failed, kept = dict(run.done), run.images - sum(map(len, run.blocks))
    if kept:
        progress.note(f"Going on after {kept} of {run.images} images.")
    try:
        with progress.task(run.doing, run.images, "images") as step, _translated(ray):
            step.update(completed=kept)
            for row in _rows(ray, run.blocks, team, orders):
                failed[row["number"]] = row["failed"]
                kept += row["images"]
                step.advance(row["images"])
    except BaseException:
        progress.note(f"{kept} of {run.images} images are kept: the same command goes on from there.")
        raise
    return failed


def _rows(ray: Any, blocks: list[Block], team: Workers, orders: Orders) -> Iterator[dict[str, Any]]:
    """What the workers say of each block, as they come."""
    if not blocks:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it raises says as much
    count = min(team.count, len(blocks))
    a_call = max(1, min(_BLOCKS_A_CALL, len(blocks) // (4 * count)))
    asked = ray.data.from_items(
        [{"block": block.to_text()} for block in blocks], override_num_blocks=-(-len(blocks) // a_call)
    )
    yield from asked.map_batches(
        Worker,
        fn_constructor_kwargs={"orders": orders},
        batch_size=a_call,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=team.num_cpus,
        num_gpus=team.num_gpus or None,
    ).iter_rows()


@contextmanager
def _translated(ray: Any) -> Iterator[None]:
    """Errors of workers as what they are."""
    try:
        yield
    except ray.exceptions.RayError as error:
        ours = cause_of(error)
        if ours is not None:
            raise ours from error
        raise VitdeployError(
            f"the workers fail: {first_line(error)}",
            hint="install one version of vitdeploy and its backend on every machine; Ray's log says more",
        ) from error


def _finish(
    folder: Folder, failed: Mapping[int, int], images: int, resumed: int, seconds: float, form: Mapping[str, Any]
) -> RayResult:
    failures = results.failures(folder, (number for number in sorted(failed) if failed[number]), FAILURES_KEPT)
    total = sum(failed.values())
    folder.write(DONE, _json({"images": images, "failed": total}))
    return RayResult(folder.name, images, total, resumed, seconds, tuple(failures), form["backend"], form["precision"])


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
