"""A bulk run: images -> `Classifier.stream` -> results, a part at a time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from vitdeploy.bulk.files import printable
from vitdeploy.bulk.formats import Layout, to_row
from vitdeploy.bulk.results import Results, check_output, open_results, partial_folder
from vitdeploy.bulk.sources import Images, find_images, tables_below
from vitdeploy.bulk.tables import Item
from vitdeploy.core import progress
from vitdeploy.core.errors import ImageError, InputError, VitdeployError
from vitdeploy.core.specs import TOP_K
from vitdeploy.core.storage import check_apart
from vitdeploy.models.tasks import CLASSIFICATION, EMBEDDING, Task
from vitdeploy.runtime.classifier import Classifier

__all__ = ["BulkResult", "answers", "check_output", "check_task", "embed_files", "job_of", "predict_files"]

_CHUNK_SECONDS = 30.0


@dataclass(frozen=True)
class BulkResult:
    """What a bulk run did.

    `images` rows are in `output`, `failed` of them with an error; `resumed` of them are an earlier run's. `seconds`
    are this run's. `failures` are the first hundred: image, row of the table or None, error.
    """

    output: Path | str
    images: int
    failed: int
    resumed: int
    seconds: float
    failures: tuple[tuple[str, int | None, str], ...]

    def __repr__(self) -> str:
        return f"<BulkResult {self.output}: {self.images} images, {self.failed} failed>"

    @property
    def images_per_second(self) -> float | None:
        """Of this run; None where nothing was left to do."""
        done = self.images - self.resumed
        return done / self.seconds if done else None

    def to_json(self) -> dict[str, Any]:
        failures = [{"image": image, "row": row, "error": error} for image, row, error in self.failures]
        return {
            "output": str(self.output),
            "images": self.images,
            "failed": self.failed,
            "resumed": self.resumed,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "failures": failures,
        }


def predict_files(
    classifier: Classifier,
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    top_k: int = TOP_K,
    image_column: str | None = None,
    workers: int | None = None,
    batch: int | None = None,
    chunk: int = 1000,
    overwrite: bool = False,
    csv_safe: bool = False,
) -> BulkResult:
    """Classify image files, folders of them and parquet files, and write one row an image.

    Finished rows go to the disk every `chunk` rows or 30 seconds, into the folder `<output>.partial`; the output
    appears whole at the end. A run that was stopped in any way is gone on with by the same call: what is in that folder
    is not done again. An image that can't be used is a row with its error.

    Args:
        classifier: an open one; the rows of a stopped run must be of the same file of the same bundle.
        paths: image files, folders (all images below, or the parquet files if there are none) and parquet files.
        output: the file to write; its suffix says how: .parquet, .csv or .jsonl.
        top_k: how many of the best classes are listed for each image.
        image_column: of parquet files, where it can't be found by its type or name.
        workers, batch: see `Classifier.stream`.
        chunk: rows that a kill may lose at most.
        overwrite: replace an output that exists, and results of a stopped run that had other settings.
        csv_safe: in CSV, put a `'` before texts that a spreadsheet would compute (they begin with = + - or @).

    Raises:
        InputError: an argument, a suffix that names no format, an embedding, or a regression, which has no classes.
        DatasetError: images that can't be found or read.
        OutputExistsError: the output is there, or a stopped run had other settings, and `overwrite` is off.
        DependencyError: parquet without pyarrow.
        BundleError: another command is writing to `output`.

    Example:
        predict_files(classifier, ["photos"], "results.parquet")
    """
    check_task(classifier.task, classifier.describe()["bundle"])
    run = _Run(classifier, paths, output, image_column, _Pace(top_k, workers, batch, chunk), overwrite)
    several = classifier.task.several
    layout = Layout(run.images.has_rows, min(top_k, len(classifier.labels)), csv_safe, several=several)
    return run.done(layout, {"csv_safe": csv_safe})


def embed_files(
    classifier: Classifier,
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    workers: int | None = None,
    batch: int | None = None,
    chunk: int = 1000,
    overwrite: bool = False,
) -> BulkResult:
    """Write the vectors of image files, folders of them and parquet files, one row an image; else as `predict_files`.

    Args:
        classifier: an open embedding.
        paths: image files, folders (all images below, or the parquet files if there are none) and parquet files.
        output: a .parquet file, with a column `embedding` of fixed-size lists; or .npy, float32 (images, dimensions)
            with NaN where an image can't be used, and OUTPUT.images.jsonl beside it, a line a row.
        image_column: of parquet files, where it can't be found by its type or name.
        workers, batch: see `Classifier.stream`.
        chunk: rows that a kill may lose at most.
        overwrite: replace an output that exists, and results of a stopped run that had other settings.

    Raises:
        InputError: an argument, a suffix that names no format, or a classifier.
        DatasetError, OutputExistsError, DependencyError, BundleError: as `predict_files`.

    Example:
        embed_files(classifier, ["photos"], "vectors.parquet")
    """
    described = classifier.describe()
    classifier.task.require(EMBEDDING, described["bundle"])
    run = _Run(classifier, paths, output, image_column, _Pace(1, workers, batch, chunk), overwrite)
    layout = Layout(run.images.has_rows, dimensions=described["embedding"]["dimensions"])
    return run.done(layout, {"embedding": described["embedding"]})


@dataclass(frozen=True)
class _Pace:
    """What `Classifier.stream` is given, and the rows of a part."""

    top_k: int
    workers: int | None
    batch: int | None
    chunk: int

    def __post_init__(self) -> None:
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1:
            raise InputError(f"chunk is {self.chunk!r}", hint="give a whole number of rows of at least 1")


class _Run:
    """One bulk run: what there is to answer, checked before anything is written."""

    def __init__(
        self,
        classifier: Classifier,
        paths: Sequence[str | os.PathLike[str]],
        output: str | os.PathLike[str],
        image_column: str | None,
        pace: _Pace,
        overwrite: bool,
    ) -> None:
        self._classifier, self._pace, self._overwrite = classifier, pace, overwrite
        classifier.stream([], pace.top_k, workers=pace.workers, batch=pace.batch)  # refuses wrong options
        self._target = target = Path(output)
        self._names = names = [os.fspath(path) for path in paths]
        check_output(target, overwrite=overwrite, inputs=names, vectors=classifier.task.kind is EMBEDDING)
        if target.suffix.lower() == ".parquet" and target.exists():
            check_apart(target, tables_below(names, image_column))
        self.images = find_images(names, image_column=image_column, skip=(target, partial_folder(target)))

    def done(self, layout: Layout, decisive: dict[str, Any]) -> BulkResult:
        """Answer what is not answered yet; `decisive` are options that decide the rows."""
        began = time.monotonic()
        form, labels = self._classifier.describe(), self._classifier.labels
        job = job_of(form, labels, self._names, self.images, self._pace.top_k) | decisive
        with open_results(self._target, layout, job, overwrite=self._overwrite) as results:
            resumed = results.count
            if not results.complete:
                _answer_all(self._classifier, self.images, results, self._pace)
        seconds = time.monotonic() - began
        return BulkResult(self._target, results.count, results.failed, resumed, seconds, tuple(results.failures))


def check_task(task: Task, model: str) -> None:
    """Refuse a model, of that name, whose answers are no classes.

    Raises:
        InputError: it is an embedding or a regression.
    """
    task.require(CLASSIFICATION, model)
    if task.activation is None:
        raise InputError(
            f"files of results hold classes and scores, and this model gives {task.title}",
            hint="take the numbers from classifier.logits(images), or run predict without --output",
        )


def job_of(
    form: Mapping[str, Any], labels: Sequence[str], paths: Sequence[str], images: Images, top_k: int
) -> dict[str, Any]:
    """What decides the rows of a run; `form` is what `Classifier.describe` says."""
    threshold = {} if form.get("threshold") is None else {"threshold": form["threshold"]}
    return {
        **threshold,
        "model": form["sha256"],
        "precision": form["precision"],
        "backend": form["backend"],
        "labels": sha256("\n".join(labels).encode()).hexdigest(),
        "top_k": top_k,
        "paths": [printable(path) for path in paths],
        "folder": printable(os.getcwd()) if any(not os.path.isabs(path) for path in paths) else None,
        "tables": images.to_json(),
    }


def _answer_all(classifier: Classifier, images: Images, results: Results, pace: _Pace) -> None:
    total, done = images.count(results.done)
    if done:
        progress.note(f"Going on after {done} of {total} images.")
    try:
        with progress.task(classifier.task.kind.doing, total, "images") as step:
            step.update(completed=done)
            written = time.monotonic()
            some = answers(classifier, images.items(results.done), pace.top_k, pace.workers, pace.batch)
            for item, answer in some:
                results.add(to_row(item.name, item.row, answer))
                step.advance()
                if results.waiting >= pace.chunk or time.monotonic() - written > _CHUNK_SECONDS:
                    results.flush()
                    written = time.monotonic()
        results.finish()
    except BaseException:
        with suppress(VitdeployError, OSError):  # a full disk may be what ended it
            results.flush()
        kept = results.count - results.waiting
        progress.note(f"{kept} of {total} images are kept: the same command goes on from there.")
        raise


def answers(
    classifier: Classifier, items: Iterable[Item], top_k: int, workers: int | None, batch: int | None
) -> Iterator[tuple[Item, Any]]:
    """Each item with its answer, in order: `Classifier.stream`, whose errors name no place in this run."""
    asked: deque[Item] = deque()  # pulled by the stream and not answered yet

    def contents() -> Iterator[Any]:
        for item in items:
            asked.append(item)
            yield b"" if isinstance(item.content, ImageError) else item.content

    stream = classifier.stream(contents(), top_k, errors="return", workers=workers, batch=batch)
    for index, answer in enumerate(stream):
        item = asked.popleft()
        if isinstance(item.content, ImageError):
            answer = item.content
        elif isinstance(answer, ImageError):  # its place in this run says nothing
            answer = ImageError(answer.message.removeprefix(f"image {index}: "), hint=answer.hint)
        yield item, answer
