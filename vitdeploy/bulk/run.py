"""A bulk run: images -> `Classifier.stream` -> results, a part at a time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from vitdeploy.bulk.files import printable
from vitdeploy.bulk.formats import Layout, to_row
from vitdeploy.bulk.results import Results, check_output, open_results, partial_folder
from vitdeploy.bulk.settings import AnswerSettings, BulkSettings
from vitdeploy.bulk.sources import Images, find_images, tables_below
from vitdeploy.bulk.tables import Item
from vitdeploy.core import progress
from vitdeploy.core.errors import ImageError, InputError, VitdeployError
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
    settings: BulkSettings | None = None,
    **options: Any,
) -> BulkResult:
    """Classify image files, folders of them and parquet files, and write one row an image.

    Finished rows go to the disk every `chunk` rows or 30 seconds, into the folder `<output>.partial`; the output
    appears whole at the end. A run that was stopped in any way is gone on with by the same call: what is in that folder
    is not done again. An image that can't be used is a row with its error.

    Args:
        classifier: an open one; the rows of a stopped run must be of the same file of the same bundle.
        paths: image files, folders (all images below, or the parquet files if there are none) and parquet files.
        output: the file to write; its suffix says how: .parquet, .csv or .jsonl.
        settings: how.
        options: fields of `BulkSettings` that win over `settings`.

    Raises:
        InputError: an argument, a suffix that names no format, an embedding, or a regression, which has no classes.
        DatasetError: images that can't be found or read.
        OutputExistsError: the output is there, or a stopped run had other settings, and `overwrite` is off.
        DependencyError: parquet without pyarrow.
        BundleError: another command is writing to `output`.

    Example:
        predict_files(classifier, ["photos"], "results.parquet", top_k=3)
    """
    _check_open(classifier)
    check_task(classifier.task, classifier.describe()["bundle"])
    settings = replace(settings or BulkSettings(), **options)
    run = _Run(classifier, paths, output, settings)
    several, csv_safe = classifier.task.several, settings.csv_safe
    layout = Layout(run.images.has_rows, min(settings.top_k, len(classifier.labels)), csv_safe, several=several)
    return run.done(layout, {"csv_safe": csv_safe})


def embed_files(
    classifier: Classifier,
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: BulkSettings | None = None,
    **options: Any,
) -> BulkResult:
    """Write the vectors of image files, folders of them and parquet files, one row an image; else as `predict_files`.

    Args:
        classifier: an open embedding.
        paths: image files, folders (all images below, or the parquet files if there are none) and parquet files.
        output: a .parquet file, with a column `embedding` of fixed-size lists; or .npy, float32 (images, dimensions)
            with NaN where an image can't be used, and OUTPUT.images.jsonl beside it, a line a row.
        settings: how; vectors have no `top_k` and need no `csv_safe`.
        options: fields of `BulkSettings` that win over `settings`.

    Raises:
        InputError: an argument, a suffix that names no format, or a classifier.
        DatasetError, OutputExistsError, DependencyError, BundleError: as `predict_files`.

    Example:
        embed_files(classifier, ["photos"], "vectors.parquet")
    """
    _check_open(classifier)
    described = classifier.describe()
    classifier.task.require(EMBEDDING, described["bundle"])
    run = _Run(classifier, paths, output, replace(settings or BulkSettings(), **{**options, "top_k": 1}))
    layout = Layout(run.images.has_rows, dimensions=described["embedding"]["dimensions"])
    return run.done(layout, {"embedding": described["embedding"]})


def _check_open(classifier: Any) -> None:
    if isinstance(classifier, (str, os.PathLike)):
        name = os.fspath(classifier)
        raise InputError(
            f"{name} is a path, and what is asked for is an open classifier",
            hint=f"with vitdeploy.load({name!r}) as classifier: ..., so that it is opened once for many calls",
        )


class _Run:
    """One bulk run: what there is to answer, checked before anything is written."""

    def __init__(
        self,
        classifier: Classifier,
        paths: Sequence[str | os.PathLike[str]],
        output: str | os.PathLike[str],
        settings: BulkSettings,
    ) -> None:
        self._classifier, self._settings = classifier, settings
        self._target = target = Path(output)
        self._names = names = [os.fspath(path) for path in paths]
        check_output(target, overwrite=settings.overwrite, inputs=names, vectors=classifier.task.kind is EMBEDDING)
        if target.suffix.lower() == ".parquet" and target.exists():
            check_apart(target, tables_below(names, settings.image_column))
        self.images = find_images(names, image_column=settings.image_column, skip=(target, partial_folder(target)))

    def done(self, layout: Layout, decisive: dict[str, Any]) -> BulkResult:
        """Answer what is not answered yet; `decisive` are options that decide the rows."""
        began = time.monotonic()
        form, labels = self._classifier.describe(), self._classifier.labels
        job = job_of(form, labels, self._names, self.images, self._settings.top_k) | decisive
        with open_results(self._target, layout, job, overwrite=self._settings.overwrite) as results:
            resumed = results.count
            if not results.complete:
                _answer_all(self._classifier, self.images, results, self._settings)
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


def _answer_all(classifier: Classifier, images: Images, results: Results, settings: BulkSettings) -> None:
    total, done = images.count(results.done)
    if done:
        progress.note(f"Going on after {done} of {total} images.")
    try:
        with progress.task(classifier.task.kind.doing, total, "images") as step:
            step.update(completed=done)
            written = time.monotonic()
            for item, answer in answers(classifier, images.items(results.done), settings):
                results.add(to_row(item.name, item.row, answer))
                step.advance()
                if results.waiting >= settings.chunk or time.monotonic() - written > _CHUNK_SECONDS:
                    results.flush()
                    written = time.monotonic()
        results.finish()
    except BaseException:
        with suppress(VitdeployError, OSError):  # a full disk may be what ended it
            results.flush()
        kept = results.count - results.waiting
        progress.note(f"{kept} of {total} images are kept: the same command goes on from there.")
        raise


def answers(classifier: Classifier, items: Iterable[Item], settings: AnswerSettings) -> Iterator[tuple[Item, Any]]:
    """Each item with its answer, in order: `Classifier.stream`, whose errors name no place in this run."""
    asked: deque[Item] = deque()  # pulled by the stream and not answered yet

    def contents() -> Iterator[Any]:
        for item in items:
            asked.append(item)
            yield b"" if isinstance(item.content, ImageError) else item.content

    stream = classifier.stream(
        contents(), settings.top_k, errors="return", workers=settings.workers, batch=settings.batch
    )
    for index, answer in enumerate(stream):
        item = asked.popleft()
        if isinstance(item.content, ImageError):
            answer = item.content
        elif isinstance(answer, ImageError):  # its place in this run says nothing
            answer = ImageError(answer.message.removeprefix(f"image {index}: "), hint=answer.hint)
        yield item, answer
