"""What the container of this process allows: CPU time and memory, by Linux's control groups of version 1 and 2.

A process belongs to a group of each hierarchy (/proc/self/cgroup), which lies below the hierarchy's mount point
(/proc/self/mountinfo); every group up to there may set a limit, and the tightest one holds. In a container the group's
path may be the host's while its own group alone is mounted: then the mount point is the group.

Sources: cgroups(7); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

__all__ = ["available_bytes", "cpu_quota", "memory_limit"]

_N = TypeVar("_N", int, float)
_NO_LIMIT = 2**60  # version 1 writes a number near 2^63 for "none"


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the container may take, such as 1.5; None: no limit. `root` is where / is."""
    quotas = [*_found(root, "cpu", _quota), *_found(root, "", _quota)]
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory that the container may hold; None: no limit."""
    limits = [*_found(root, "memory", _limit), *_found(root, "", _limit)]
    return min(limits, default=None)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that the container may still take, of its limit: files that the kernel would drop count as free."""
    free = [*_found(root, "memory", _free), *_found(root, "", _free)]
    return min(free, default=None)


def _found(root: Path, controller: str, read: Callable[[Path], _N | None]) -> list[_N]:
    return [value for group in _groups(root, controller) if (value := read(group)) is not None]


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group of a controller and those above it; "" is version 2's one hierarchy."""
    with suppress(OSError, ValueError, IndexError):
        path = _path_of(root, controller)
        for mounted, top in _mounts(root, controller):
            inside = PurePosixPath(path)
            below = inside.is_relative_to(mounted) and ".." not in inside.parts
            parts = inside.relative_to(mounted).parts if below else ()
            for length in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:length])


def _path_of(root: Path, controller: str) -> str:
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    raise ValueError(f"no group of {controller or 'version 2'}")


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, Path]]:
    """(what part of the hierarchy is mounted, where)."""
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2" if not controller else kind == "cgroup" and controller in options.split(","):
            mounted, where = left.split(" ")[3:5]
            yield mounted, root / where.lstrip("/")


def _number(file: Path, field: str | None = None) -> int | None:
    """What a file says, or the line of it that begins with `field`; None where there is no number."""
    with suppress(OSError, ValueError, IndexError):
        text = file.read_text()
        if field is not None:
            text = next((line.split()[1] for line in text.splitlines() if line.split()[0] == field), "")
        return int(text)
    return None


def _quota(group: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    quota_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us is not None and quota_us > 0 and period_us else None


def _limit(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _number(group / name)
        if limit is not None and limit < _NO_LIMIT:
            return limit
    return None


def _free(group: Path) -> int | None:
    limit = _limit(group)
    if limit is None:
        return None
    for used_file, droppable in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
        used = _number(group / used_file)
        if used is not None:
            return max(0, limit - used + (_number(group / "memory.stat", droppable) or 0))
    return limit
