"""How a run on a Ray cluster is carried out: the one settings object of `predict_files` and `embed_files`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vitdeploy.bulk.settings import AnswerSettings
from vitdeploy.core.machine import check_threads
from vitdeploy.core.settings import AT_LEAST_ONE, AT_LEAST_ZERO

__all__ = ["RaySettings"]


@dataclass(frozen=True, kw_only=True)
class RaySettings(AnswerSettings):
    """A run on a Ray cluster; what it shares with one on this machine is in `AnswerSettings`.

    Attributes:
        address: of the cluster; None: RAY_ADDRESS, or this machine alone.
        num_gpus: of each worker, as Ray counts them: 0.5 lets two share one. 0: they run on the CPU.
        num_cpus: of each worker; None: see `cluster.plan`.
        backend, precision: see `load`; every worker runs the form that "auto" means on the first.
        threads: see `load`; None: the worker's CPUs.
        threshold: from which score one of several labels counts; see `load`. An embedding has none.
        workers: see `Classifier.stream`; None: the worker's CPUs.
        block: images of a part.

    Raises:
        InputError: a value out of range.
    """

    address: str | None = None
    num_gpus: Annotated[float, AT_LEAST_ZERO] = 0
    num_cpus: Annotated[int | None, AT_LEAST_ONE] = None
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    threshold: float | None = None
    block: Annotated[int, AT_LEAST_ONE] = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threads(self.threads)
