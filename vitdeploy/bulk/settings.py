"""How many images are answered: the one settings object of `predict_files` and `embed_files`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vitdeploy.core.settings import AT_LEAST_ONE, check
from vitdeploy.core.specs import TOP_K

__all__ = ["AnswerSettings", "BulkSettings"]


@dataclass(frozen=True)
class AnswerSettings:
    """What runs over many images share, here and on a cluster.

    Attributes:
        top_k: how many of the best classes are listed for each image; an embedding has none.
        image_column: of parquet files, where it can't be found by its type or name.
        workers, batch: see `Classifier.stream`.
        overwrite: replace results that are there, and those of a stopped run that had other settings.

    Raises:
        InputError: a value out of range.
    """

    top_k: Annotated[int, AT_LEAST_ONE] = TOP_K
    image_column: str | None = None
    workers: Annotated[int | None, AT_LEAST_ONE] = None
    batch: Annotated[int | None, AT_LEAST_ONE] = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class BulkSettings(AnswerSettings):
    """A run over many images into one file; what it shares with one on a cluster is in `AnswerSettings`.

    Attributes:
        chunk: rows that a kill may lose at most.
        csv_safe: in CSV, put a `'` before texts that a spreadsheet would compute (they begin with = + - or @).

    Raises:
        InputError: a value out of range.
    """

    chunk: Annotated[int, AT_LEAST_ONE] = 1000
    csv_safe: bool = False
