"""The processes that `torchrun`, `accelerate launch` or `mpirun` started: which one this is, waiting for the others."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.errors import require

__all__ = ["Processes", "is_main_process", "joined"]


# As accelerate reads them: torchrun's, Intel MPI's, Open MPI's, MVAPICH's.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints; without a launcher there is only one."""
    return _first(_RANKS, 0) == 0


def _first(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), default)


@dataclass(frozen=True)
class Processes:
    """`rank` 0 writes; there are `count` processes in all."""

    rank: int
    count: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            require("torch.distributed", extra="build").barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        require("torch.distributed", extra="build").all_gather_object(values, value)
        return values


_ONE_ONLY = (
    "accelerate launch started one process only: with --cpu it needs mpirun for more. Give it --multi_gpu instead of"
    " --cpu, or use torchrun: both start several on a CPU too."
)


class _Silent:
    def task(self, description: str, total: float | None, unit: str) -> Any:
        return nullcontext(self)

    def note(self, message: str) -> None:
        pass

    def advance(self, amount: float = 1) -> None:
        pass

    def update(self, **what: Any) -> None:
        pass


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes inside the block; only the main one reports progress.

    Its end waits for the group's threads. One that drops a tensor while Python is ending aborts the process, so nothing
    in the block's caller may hold the group: neither a trainer nor its model.
    """
    if _first(_COUNTS, 1) == 1:
        if {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= set(os.environ) and "WORLD_SIZE" not in os.environ:
            progress.note(_ONE_ONLY)
        yield Processes(0, 1)
        return
    torch = require("torch", extra="build")
    accelerate = require("accelerate", extra="build")
    distributed = require("torch.distributed", extra="build")
    require("torch._dynamo", extra="build")  # DistributedDataParallel does; imported inside, it would hold the group
    ours = not distributed.is_initialized()
    accelerate.PartialState(cpu=not torch.cuda.is_available())
    here = Processes(distributed.get_rank(), distributed.get_world_size())
    with nullcontext() if here.is_main else progress.use(_Silent()):
        yield here
    if ours:
        here.wait()
        gc.collect()  # the wrapped model and its trainer are circles, and hold the group
        distributed.destroy_process_group()
