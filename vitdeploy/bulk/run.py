"""A bulk run: images -> `Classifier.stream` -> results, a part at a time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from vitdeploy import progress
from vitdeploy.bulk.formats import Layout, to_row
from vitdeploy.bulk.results import Results, check_output, open_results, partial_folder
from vitdeploy.bulk.sources import Images, Item, find_images, printable
from vitdeploy.errors import ImageError, InputError, VitdeployError
from vitdeploy.runtime.classifier import Classifier
from vitdeploy.specs import Prediction

__all__ = ["BulkResult", "check_output", "predict_files"]

_CHUNK_SECONDS = 30.0


@dataclass(frozen=True)
class BulkResult:
    """What a bulk run did.

    `images` rows are in `output`, `failed` of them with an error; `resumed` of them are an earlier run's. `seconds`
    are this run's. `failures` are the first hundred: image, row of the table or None, error.
    """

    output: Path
    images: int
    failed: int
    resumed: int
    seconds: float
    failures: tuple[tuple[str, int | None, str], ...]

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
    top_k: int = 5,
    image_column: str | None = None,
    workers: int | None = None,
    batch: int | None = None,
    chunk: int = 1000,
    overwrite: bool = False,
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

    Raises:
        InputError: an argument, or a suffix that names no format.
        DatasetError: images that can't be found or read.
        OutputExistsError: the output is there, or a stopped run had other settings, and `overwrite` is off.
        DependencyError: parquet without pyarrow.
        BundleError: another command is writing to `output`.

    Example:
        predict_files(classifier, ["photos"], "results.parquet")
    """
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise InputError(f"chunk is {chunk!r}", hint="give a whole number of rows of at least 1")
    classifier.stream([], top_k, workers=workers, batch=batch)  # refuses wrong options before anything is written
    target = Path(output)
    check_output(target, overwrite=overwrite)
    names = [os.fspath(path) for path in paths]
    images = find_images(names, image_column=image_column, skip=(target, partial_folder(target)))
    layout = Layout(images.has_rows, min(top_k, len(classifier.labels)))
    began = time.monotonic()
    with open_results(target, layout, _job(classifier, names, images, top_k), overwrite=overwrite) as results:
        resumed = results.count
        if not results.complete:
            _classify(classifier, images, results, top_k, workers, batch, chunk)
    seconds = time.monotonic() - began
    return BulkResult(target, results.count, results.failed, resumed, seconds, tuple(results.failures))


def _job(classifier: Classifier, paths: list[str], images: Images, top_k: int) -> dict[str, Any]:
    """What decides the rows of a run."""
    form = classifier.describe()
    return {
        "model": form["sha256"],
        "precision": form["precision"],
        "backend": form["backend"],
        "labels": sha256("\n".join(classifier.labels).encode()).hexdigest(),
        "top_k": top_k,
        "paths": [printable(path) for path in paths],
        "folder": printable(os.getcwd()) if any(not os.path.isabs(path) for path in paths) else None,
        "tables": images.to_json(),
    }


def _classify(
    classifier: Classifier,
    images: Images,
    results: Results,
    top_k: int,
    workers: int | None,
    batch: int | None,
    chunk: int,
) -> None:
    total, done = images.count(results.done)
    if done:
        progress.note(f"Going on after {done} of {total} images.")
    try:
        with progress.task("Classifying", total, "images") as step:
            step.update(completed=done)
            written = time.monotonic()
            for item, answer in _answers(classifier, images, results, top_k, workers, batch):
                results.add(to_row(item.name, item.row, answer))
                step.advance()
                if results.waiting >= chunk or time.monotonic() - written > _CHUNK_SECONDS:
                    results.flush()
                    written = time.monotonic()
        results.finish()
    except BaseException:
        with suppress(VitdeployError, OSError):  # a full disk may be what ended it
            results.flush()
        kept = results.count - results.waiting
        progress.note(f"{kept} of {total} images are kept: the same command goes on from there.")
        raise


def _answers(
    classifier: Classifier, images: Images, results: Results, top_k: int, workers: int | None, batch: int | None
) -> Iterator[tuple[Item, Prediction | ImageError]]:
    asked: deque[Item] = deque()  # pulled by the stream and not answered yet

    def contents() -> Iterator[str | bytes]:
        for item in images.items(results.done):
            asked.append(item)
            yield b"" if isinstance(item.content, ImageError) else item.content

    answers = classifier.stream(contents(), top_k, errors="return", workers=workers, batch=batch)
    for index, answer in enumerate(answers):
        item = asked.popleft()
        if isinstance(item.content, ImageError):
            answer = item.content
        elif isinstance(answer, ImageError):  # its place in this run says nothing
            answer = ImageError(answer.message.removeprefix(f"image {index}: "), hint=answer.hint)
        yield item, answer
