"""How much memory this process and the GPU use; None where that can't be told."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["device_used_bytes", "host_peak_bytes"]


def host_peak_bytes() -> int | None:
    """The most memory that this process has held so far (its resident set), shared libraries included."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None


def device_used_bytes(device: int = 0) -> int | None:
    """Memory of the GPU that is taken now, by this process or another; CUDA's own context is made for the question."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    handle, context = ctypes.c_int(0), ctypes.c_void_p()
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    steps: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(handle), device),
        lambda: driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle),
        lambda: driver.cuCtxPushCurrent_v2(context),
        lambda: driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
        lambda: driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())),
    )
    if any(step() != 0 for step in steps):
        return None
    return total.value - free.value  # the context stays: the runner that is measured uses the same one
