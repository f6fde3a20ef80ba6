"""What runs on a machine of the cluster: blocks of images in, finished parts of the results out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vitdeploy.bulk.files import Files
from vitdeploy.bulk.formats import Layout, Parquet, to_row
from vitdeploy.bulk.run import answers
from vitdeploy.bulk.vectors import VectorParquet
from vitdeploy.core.errors import ModelError, VitdeployError, require
from vitdeploy.deploy.ray.blocks import Block, fetched, items
from vitdeploy.deploy.ray.output import Folder, finished, part_name
from vitdeploy.deploy.ray.predictor import open_classifier
from vitdeploy.deploy.ray.settings import RaySettings
from vitdeploy.deploy.ray.shipping import Shipped

__all__ = ["Attempts", "Orders", "Worker", "describe"]

_ATTEMPTS = 3  # at a block that kills its worker


class Attempts:
    """An actor's state: how often each block was begun. Ray tries again for ever what killed its worker."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """How often the block was begun, this time included."""
        self._begun[number] += 1
        return self._begun[number]


@dataclass(frozen=True)
class Orders:
    """What all workers of a run are told.

    `form` is what `Classifier.describe` said where the form was chosen; `origin` stands in the parts' metadata;
    `side_by_side` blocks are done at a time, so that a GPU has work while one ends and another begins; `attempts` is an
    actor of `Attempts`.
    """

    bundle: Shipped
    form: Mapping[str, Any]
    settings: RaySettings
    places: tuple[Files, ...]
    outside: bool
    output: Folder
    layout: Layout
    origin: Mapping[str, Any]
    side_by_side: int
    attempts: Any


class Worker:
    """An actor's state: an open classifier."""

    def __init__(self, orders: Orders) -> None:
        self._orders, form = orders, orders.form
        self._classifier = open_classifier(
            orders.bundle,
            form["backend"],
            form["precision"],
            form["device"],
            orders.settings.threads,
            form["threshold"],
        )
        found = self._classifier.describe()
        if found["sha256"] != form["sha256"]:
            raise ModelError(
                f"this machine takes {found['artifact']} where another one took {form['artifact']}",
                hint="name the --backend and the --precision",
            )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """The blocks in the column `block` of a batch -> their numbers, images and failed images."""
        blocks = [Block.from_text(str(text)) for text in batch["block"]]
        with ThreadPoolExecutor(self._orders.side_by_side) as pool:
            failed = list(pool.map(self._finish, blocks))
        return {
            "number": [block.number for block in blocks],
            "images": [len(block) for block in blocks],
            "failed": failed,
        }

    def _finish(self, block: Block) -> int:
        orders, settings = self._orders, self._orders.settings
        earlier = finished(orders.output, [(block.number, len(block))])  # by this block's worker that was killed
        if block.number in earlier:
            return earlier[block.number]
        place = orders.places[block.place]
        self._begin(block, place)
        wanted = fetched(items(block, place, outside=orders.outside), place)
        found = answers(self._classifier, wanted, settings)
        rows = [to_row(item.name, item.row, answer) for item, answer in found]
        format = Parquet() if orders.layout.dimensions is None else VectorParquet()
        orders.output.write(part_name(block.number), format.encode(rows, orders.layout, orders.origin))
        return sum(row["error"] is not None for row in rows)

    def _begin(self, block: Block, place: Files) -> None:
        ray = require("ray", extra="ray")
        if ray.get(self._orders.attempts.begin.remote(block.number)) > _ATTEMPTS:
            raise VitdeployError(
                f"{block.title(place)} killed {_ATTEMPTS} workers one after another",
                hint="one may need more memory than a worker has: find it with --engine local, or leave them out",
            )


def describe(
    bundle: Shipped, backend: str, precision: str, device: str, threads: int | None, threshold: float | None
) -> dict[str, Any]:
    """Which form of the bundle runs on this machine: what all workers are to run."""
    with open_classifier(bundle, backend, precision, device, threads, threshold) as classifier:
        return classifier.describe()
