"""What the numbers were measured on and with; nothing that names a person or a place."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["BusyMeter", "gpus", "load_average", "machine", "memory_bytes", "public_text", "usable_cores", "versions"]

_PACKAGES = (
    *("vitdeploy", "numpy", "pillow", "torch", "torchvision", "transformers"),
    *("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
_SEGMENT = r"[^\s/:'\",;()]"
_PATH = re.compile(rf"(?<![\w:/.~-])(?:(?:~|\.\.)/(?:{_SEGMENT}+/)*|/(?:{_SEGMENT}+/)+)({_SEGMENT}*)")


def machine() -> dict[str, Any]:
    """CPU, usable cores, memory, GPUs and system, as they go into a report."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in _cpu_flags()],
        "memory_bytes": memory_bytes("MemTotal"),
        "gpu": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": load_average(),
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that take part and are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def usable_cores() -> int:
    """CPU cores this process may use: its affinity, and its container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def load_average() -> float | None:
    """Programs that wanted a core, on average over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def memory_bytes(name: str) -> int | None:
    """A line of /proc/meminfo ("MemTotal", "MemAvailable") in bytes; None where there is no such file."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs by nvidia-smi: name, driver, compute capability, memory, clock, temperature, power as read."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = ("name", "driver_version", "compute_cap", "memory.total", "clocks.sm", "temperature.gpu", "power.draw")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        rows = [[value.strip() for value in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
        return [
            dict(zip((f.replace(".", "_") for f in fields), row, strict=True))
            for row in rows
            if len(row) == len(fields)
        ]
    return []


def public_text(value: Any) -> Any:
    """`value` (text, or lists and dicts of it) with every path that leads out of here cut to its last part.

    A report is read by others: /home/ada/models/vit says who measured and nothing about what was measured.
    """
    if isinstance(value, str):
        return _PATH.sub(lambda match: match[1] or match[0].rstrip("/").rpartition("/")[2], value)
    if isinstance(value, dict):
        return {key: public_text(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public_text(item) for item in value]
    return value


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return set(line.partition(":")[2].split())
    return set()


class BusyMeter:
    """How much of the machine other programs use between `__init__` and `other_share`, by /proc/stat."""

    def __init__(self) -> None:
        self._began = _ticks()

    def other_share(self) -> float | None:
        """The share of all cores' time that was used and not by this process, 0..1; None where it can't be told."""
        ended = _ticks()
        if self._began is None or ended is None or ended[0] <= self._began[0]:
            return None
        total, busy, own = (after - before for before, after in zip(self._began, ended, strict=True))
        return min(1.0, max(0.0, (busy - own) / total))


def _ticks() -> tuple[float, float, float] | None:
    """Seconds since the start of the system, summed over cores: all, not idle, of this process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        rate = os.sysconf("SC_CLK_TCK")
        idle = fields[3] + fields[4]
        times = os.times()
        return sum(fields) / rate, (sum(fields) - idle) / rate, times.user + times.system
    return None
