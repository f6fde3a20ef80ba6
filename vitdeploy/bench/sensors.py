"""Clocks, temperatures and power while something is measured: read from time to time, never set."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Sensors", "gpu_mhz", "read_gpus"]

_GPU = ("clocks.sm", "temperature.gpu", "power.draw")
_SM_CLOCK = 1  # NVML_CLOCK_SM
_EVERY = 5.0  # seconds between two readings


class Sensors:
    """Reads the machine's sensors at most every five seconds; `call` it between timed calls.

    Each entry of `taken` has `seconds` since the first, `cpu_mhz` (mean over cores), `cpu_celsius` (the hottest zone),
    and per GPU `clock_mhz`, `celsius` and `watt`; what the machine does not say is null.
    """

    def __init__(self, gpus: int, now: Callable[[], float] = time.monotonic) -> None:
        self._gpus = gpus
        self._now = now
        self._began: float | None = None
        self._last = float("-inf")
        self.taken: list[dict[str, Any]] = []

    def __call__(self) -> None:
        """Take a reading if it is time for one."""
        now = self._now()
        if now - self._last < _EVERY:
            return
        self._began = now if self._began is None else self._began
        self._last = now
        self.taken.append(
            {
                "seconds": round(now - self._began, 1),
                "cpu_mhz": cpu_mhz(),
                "cpu_celsius": cpu_celsius(),
                "gpu": read_gpus() if self._gpus else [],
            }
        )


def cpu_mhz(root: Path = Path("/")) -> float | None:
    """The mean clock of the cores now."""
    with contextlib.suppress(OSError, ValueError):
        files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        clocks = [int(file.read_text()) / 1000 for file in files]
        if not clocks:
            text = (root / "proc/cpuinfo").read_text()
            clocks = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, flags=re.M)]
        if clocks:
            return round(sum(clocks) / len(clocks), 1)
    return None


def cpu_celsius(root: Path = Path("/")) -> float | None:
    """The temperature of the hottest thermal zone."""
    found = []
    for file in (root / "sys/class/thermal").glob("thermal_zone*/temp"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(file.read_text()) / 1000)
    return max(found, default=None)


def read_gpus() -> list[dict[str, float | None]]:
    """Clock, temperature and power of each GPU by nvidia-smi; empty where it can't be asked."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            [program, f"--query-gpu={','.join(_GPU)}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        rows = [line.split(",") for line in answer.stdout.splitlines() if line.strip()]
        names = ("clock_mhz", "celsius", "watt")
        return [dict(zip(names, map(_number, row), strict=True)) for row in rows if len(row) == len(names)]
    return []


def gpu_mhz() -> float | None:
    """The clock of the GPU that runs fastest now, the one that computes; None where NVIDIA's management library (NVML)
    is not there, as on a Jetson. It takes microseconds."""
    nvml = _nvml()
    count, clock, handle = ctypes.c_uint(0), ctypes.c_uint(0), ctypes.c_void_p()
    if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return None
    clocks = [
        clock.value
        for index in range(count.value)
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
        and nvml.nvmlDeviceGetClockInfo(handle, _SM_CLOCK, ctypes.byref(clock)) == 0
    ]
    return float(max(clocks)) if clocks else None


@cache
def _nvml() -> Any | None:
    with contextlib.suppress(OSError):
        library = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
        return library if library.nvmlInit_v2() == 0 else None
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None
