"""`Predictor`: a bundle as a stage of anybody's Ray Data pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.bulk.formats import to_row
from vitdeploy.bulk.run import answers, check_task
from vitdeploy.bulk.settings import AnswerSettings
from vitdeploy.bulk.tables import Item
from vitdeploy.core.errors import ImageError, InputError, require
from vitdeploy.core.specs import TOP_K
from vitdeploy.data.columns import IMAGE_NAMES, PATH_NAMES
from vitdeploy.deploy.ray.shipping import Shipped, folder_of
from vitdeploy.models.tasks import CLASSIFICATION, EMBEDDING
from vitdeploy.runtime.classifier import Classifier
from vitdeploy.runtime.loading import load

__all__ = ["Predictor", "open_classifier"]

_COLUMNS = {  # of a kind of answer, as the files of `predict` and `embed` have them; `labels` and `error` follow
    CLASSIFICATION: ("label", "index", "score", "top_k"),
    EMBEDDING: ("embedding",),
}


class Predictor:
    """Classifies the images of batches, or gives their vectors; an actor of Ray Data opens it once.

    A row gets the columns of `predict --output`: `label`, `index`, `score`, `top_k`, of several labels an image
    `labels`, and `error`; or, of a bundle of an embedding, those of `embed`: `embedding`, a list of float32, and
    `error`. Its other columns stay, but for the images themselves. An image that can't be used is a row with its error,
    and None elsewhere.

    Example:
        ds = ray.data.read_binary_files("s3://bucket/photos")
        ds = ds.map_batches(
            Predictor,
            fn_constructor_kwargs={"bundle": ship("bundles/vit")},
            batch_size=256,
            num_cpus=4,
            compute=ray.data.ActorPoolStrategy(size=2),
        )

    Args:
        bundle: what `ship` gave, or a bundle's folder on each machine, or `owner/name` of one on the Hub.
        column: the column of encoded images, paths, structs of both, or uint8 arrays (height, width, 3); None: the
            first of the usual names ("image", "bytes", "path" ...).
        top_k: how many of the best classes are listed for each image; nothing to an embedding.
        prefix: stands before the names of the new columns, where the rows have a `label` or the like already.
        backend, precision, device: see `load`.
        threads: CPU threads of one call; None: the CPUs that Ray gave the actor.
        threshold: from which score one of several labels counts; see `load`.
        workers, batch: see `Classifier.stream`.

    Raises:
        InputError: a wrong option, or a regression, which has no classes.
    """

    def __init__(
        self,
        bundle: Shipped | str | os.PathLike[str],
        *,
        column: str | None = None,
        top_k: int = TOP_K,
        prefix: str = "",
        backend: str = "auto",
        precision: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        threshold: float | None = None,
        workers: int | None = None,
        batch: int | None = None,
    ) -> None:
        own = assigned_cpus() or 1 if workers is None else workers
        self._settings = AnswerSettings(top_k, workers=own, batch=batch)
        self._classifier = open_classifier(bundle, backend, precision, device, threads, threshold)
        self._column, self._prefix = column, prefix
        task = self._classifier.task
        if task.kind is CLASSIFICATION:
            check_task(task, self._classifier.describe()["bundle"])
        self._columns = (*_COLUMNS[task.kind], *(("labels",) if task.several else ()), "error")

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """A batch of Ray's format "numpy", its default, with the new columns.

        Raises:
            InputError: it has no column of images, or has columns of the names of the new ones.
        """
        column = self._image_column(batch)
        names = [self._prefix + name for name in self._columns]
        if taken := [name for name in names if name in batch and name != column]:
            raise InputError(
                f"the rows have a column {taken[0]!r} already", hint='give the new ones a prefix: prefix="predicted_"'
            )
        wanted = (Item("", None, _content(value)) for value in batch[column])
        found = answers(self._classifier, wanted, self._settings)
        rows = [to_row("", None, answer) for _, answer in found]
        for row in rows:
            if row["embedding"] is not None:  # a list is a list in Arrow, too, and may have nulls beside it
                row["embedding"] = list(row["embedding"])
        kept = {name: values for name, values in batch.items() if name != column or isinstance(values[0], str)}
        return kept | {self._prefix + name: _objects([row[name] for row in rows]) for name in self._columns}

    def _image_column(self, batch: Mapping[str, Any]) -> str:
        if not isinstance(batch, Mapping):
            raise InputError(f"a batch is a {type(batch).__name__}", hint='leave batch_format at its default, "numpy"')
        wanted = [self._column] if self._column else [*IMAGE_NAMES, *PATH_NAMES]
        for name in wanted:
            if name in batch:
                return name
        raise InputError(
            f"the rows have no column of images; they have {', '.join(batch)}",
            hint="say which: fn_constructor_kwargs={..., 'column': NAME}",
        )


def open_classifier(
    bundle: Shipped | str | os.PathLike[str],
    backend: str,
    precision: str,
    device: str | None,
    threads: int | None,
    threshold: float | None = None,
) -> Classifier:
    """A classifier in an actor or task of Ray's, on the CPUs that Ray gave it."""
    return load(folder_of(bundle), backend, precision, device, threads or assigned_cpus(), threshold=threshold)


def assigned_cpus() -> int | None:
    """Whole CPUs that Ray gave this actor or task, at least 1; None outside of one."""
    ray = require("ray", extra="ray")
    if not ray.is_initialized():
        return None
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU")
    return None if cpus is None else max(1, int(cpus))


def _content(value: Any) -> Any:
    """What `Classifier.stream` takes of a cell: a path, encoded bytes or pixels; an ImageError where there is none."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        return ImageError("there is no image in this row", hint="remove that row")
    return value


def _objects(values: list[Any]) -> npt.NDArray[Any]:
    found = np.empty(len(values), object)
    found[:] = values
    return found
