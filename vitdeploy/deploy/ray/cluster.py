"""A Ray cluster: started or joined, and how many workers of which size it takes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.errors import InputError, VitdeployError, require

__all__ = ["Workers", "cause_of", "cluster", "plan"]

_MOST_CPUS = 8  # of a worker without a GPU: more workers scale better than more threads of one
_MOST_DECODERS = 16  # what a stream takes at most: CPUs of a worker with a GPU


@dataclass(frozen=True)
class Workers:
    """`count` workers of so many CPUs and GPUs each."""

    count: int
    num_cpus: int
    num_gpus: float


def plan(nodes: Iterable[Mapping[str, float]], num_gpus: float, num_cpus: int | None = None) -> Workers:
    """How many workers fit.

    Nothing runs beside the workers, which read, decode and write themselves, so they may take every CPU; one that finds
    no room waits for it, and the others work meanwhile.

    Args:
        nodes: the resources of each machine, as Ray names them: CPU, GPU.
        num_gpus: of each worker; 0: it runs on the CPU.
        num_cpus: of each worker; None: all CPUs of the smallest machine shared out among its workers, 8 at most, and
            16 with a GPU.

    Raises:
        InputError: not even one fits.
    """
    nodes = list(nodes)
    fits = [_fitting(node, num_gpus, num_cpus) for node in nodes]
    if not sum(fits):
        wanted = f"{num_gpus:g} GPUs" if num_gpus else f"{num_cpus or 1} CPUs"
        there = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise InputError(
            f"no machine of the cluster has {wanted} for a worker: they have {there or 'nothing'}",
            hint="ask for fewer, or add machines; what others of the cluster use is not counted",
        )
    if num_cpus is None:
        shares = [int(node.get("CPU", 0)) // slots for node, slots in zip(nodes, fits, strict=True) if slots]
        num_cpus = min(*shares, _MOST_DECODERS) if num_gpus else min(max(1, min(shares)), _MOST_CPUS)
        if not num_gpus:
            fits = [_fitting(node, 0, num_cpus) for node in nodes]
    return Workers(sum(fits), num_cpus, num_gpus)


def _fitting(node: Mapping[str, float], num_gpus: float, num_cpus: int | None) -> int:
    """Workers that a machine has room for; without `num_cpus` one for all its CPUs, or as its GPUs allow."""
    cpus = int(node.get("CPU", 0))
    by_cpu = (cpus // num_cpus if num_cpus else int(cpus > 0)) if num_cpus or not num_gpus else None
    by_gpu = int(node.get("GPU", 0) / num_gpus + 1e-9) if num_gpus else None
    return min(limit for limit in (by_cpu, by_gpu) if limit is not None)


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray, joined at `address` or started here for as long as the block lasts; one that runs in this process is used.

    Args:
        address: "auto", `host:port`, "ray://host:port"; None: RAY_ADDRESS, or a cluster of this machine alone.

    Raises:
        InputError: no cluster answers at the address.
        DependencyError: Ray is not installed.
    """
    ray = require("ray", extra="ray")
    require("ray.data", extra="ray")
    if ray.is_initialized():
        with redirect_stdout(sys.stderr):  # Ray tells there of workers that died
            yield ray
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it would write warnings of its own to standard error
    local: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    with progress.task("Starting Ray" if address is None else "Joining the cluster"):
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
        except Exception as error:  # a plain Exception where it does not start in time
            raise InputError(
                f"can't use the Ray cluster at {address or 'this machine'}: {error}",
                hint="start a cluster as Ray's documentation says, or leave --address away to use this machine alone",
            ) from error
    try:
        with redirect_stdout(sys.stderr):
            yield ray
    finally:
        ray.shutdown()


def cause_of(error: BaseException) -> VitdeployError | None:
    """The error of ours that a worker raised, which Ray wraps in others."""
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        if isinstance(inner, VitdeployError):
            return inner
        seen.add(id(inner))
        inner = getattr(inner, "cause", None) or inner.__cause__ or inner.__context__
    return None
