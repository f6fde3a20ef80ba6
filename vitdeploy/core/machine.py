"""What machine this is and what is installed on it: processor, memory, NVIDIA GPUs, package versions.

Nothing here imports a heavy package, and nothing names a person or a place, so all of it may go into a report.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

from vitdeploy.core.cgroup import available_bytes, cpu_quota, memory_limit
from vitdeploy.core.errors import InputError

__all__ = [
    "BUSY",
    "HELD_BYTES",
    "PACKAGES",
    "BusyMeter",
    "Gpu",
    "check_threads",
    "cpu_flags",
    "cpu_name",
    "gpus",
    "has_module",
    "identity",
    "jetson_release",
    "machine",
    "memory_bytes",
    "physical_cores",
    "problem_with_gpu",
    "products_of_bytes",
    "quota_threads",
    "release",
    "saturates",
    "system_name",
    "usable_cores",
    "version",
    "versions",
]

_INT8 = {  # flag of a processor: what it is called
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "i8mm": "ARM I8MM",
    "asimddp": "ARM dot product",
}
PACKAGES = (
    *("vitdeploy", "numpy", "pillow", "torch", "torchvision", "transformers", "datasets", "accelerate"),
    *("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "tensorrt-rtx", "cuda-python", "scikit-learn"),
)
_ALSO_CALLED = {"tensorrt": ("tensorrt-cu13", "tensorrt-cu12")}
# What decides how fast INT8 and 16-bit floats are on a CPU: x86 names, then ARM's.
NOTABLE_FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
_CUDA_MAJOR, _CUDA_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_CUDA_INTEGRATED = 18


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU: `compute_capability` as NVIDIA writes it ("8.6"), `driver` of its kernel module or None."""

    name: str
    compute_capability: str
    memory_bytes: int
    driver: str | None
    cuda: str  # the newest CUDA version that the driver knows
    integrated: bool  # it shares the machine's memory, as on a Jetson

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory, GPUs and system as JSON-ready data."""
    flags = cpu_flags()
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "cpu_flags": [flag for flag in NOTABLE_FLAGS if flag in flags],
        "memory_bytes": memory_bytes("MemTotal"),
        "gpu": [gpu.to_json() for gpu in gpus()],
        "jetson": jetson_release(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def identity() -> dict[str, Any]:
    """What decides which form is the fastest, to recognise a machine by: processor, usable cores, GPUs, architecture.

    A measurement holds where this is what it was when it was made.
    """
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "gpu": [gpu.name for gpu in gpus()],
        "system": f"{platform.system()} {platform.machine()}",
    }


def system_name() -> str:
    """The operating system in words: "Ubuntu 24.04.1 LTS (Linux 6.8.0, x86_64)"."""
    kernel = f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}"
    with contextlib.suppress(OSError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']} ({kernel})"
    return kernel


def version(package: str) -> str | None:
    """The installed version of a distribution, read from its metadata; None where it is not installed.

    TensorRT's has a name for each CUDA: "tensorrt" is any of them.
    """
    from importlib import metadata  # which brings email and zipfile

    for name in (package, *_ALSO_CALLED.get(package, ())):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python's version and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        number = version(package)
        if number is not None:
            found[package] = number
    return found


def has_module(name: str) -> bool:
    """Whether `import name` would find something; it is not imported.

    A system's own TensorRT (a Jetson's, a container's) may have a module and no distribution.
    """
    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def check_threads(threads: int | None) -> None:
    """Refuse a number of CPU threads that is none, or more than there are processors; None is the backend's choice.

    Raises:
        InputError: it is.
    """
    most = os.cpu_count() or 1
    if threads is None or (isinstance(threads, int) and not isinstance(threads, bool) and 1 <= threads <= most):
        return
    raise InputError(
        f"threads is {threads!r}, and this machine has {most} processors",
        hint=f"give a whole number from 1 to {most}, or leave it out",
    )


def usable_cores() -> int:
    """CPU cores this process may use: its affinity, and its container's quota where there is one."""
    cores = _cores_of_affinity()
    quota = cpu_quota()
    return cores if quota is None else min(cores, max(1, round(quota)))


def quota_threads() -> int | None:
    """How many threads a package is to be told to use: None, its own choice, where no container's quota is below it.

    They look at the processors and not at the quota, and what they start beyond it is stopped in the middle of calls.
    """
    cores = usable_cores()
    return cores if cores < _cores_of_affinity() else None


def _cores_of_affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores(topology: str = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list") -> int:
    """The cores behind those of `usable_cores`, of which two may be threads of one that share its arithmetic."""
    with contextlib.suppress(OSError, AttributeError):
        cores = {Path(topology.format(number)).read_text() for number in os.sched_getaffinity(0)}
        return max(1, min(len(cores), usable_cores()))
    return usable_cores()


def memory_bytes(name: str = "MemTotal") -> int | None:
    """A line of /proc/meminfo ("MemTotal", "MemAvailable") in bytes, or what the container allows where that is less;
    None where there is no such file."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                allowed = {"MemTotal": memory_limit, "MemAvailable": available_bytes}[name]()
                found = int(line.split()[1]) * 1024
                return found if allowed is None else min(found, allowed)
    return None


HELD_BYTES = min(256 * 2**20, (memory_bytes() or 2**63) // 16)
"""Decoded pixels that may be held at a time: until they are in a batch, and as many again in batches."""


BUSY = 0.15  # share of the processor that other programs may use while something is timed


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


def cpu_name() -> str:
    """The processor's name as its maker writes it."""
    return _cpu_info("model name", "hardware") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The instruction sets of the processor, by Linux's names; empty where they can't be read."""
    return frozenset(_cpu_info("flags", "features").split())


def products_of_bytes() -> str | None:
    """What makes INT8 fast on this processor, and adds products of bytes exactly; None where it has no such thing."""
    flags = cpu_flags()
    return next((name for flag, name in _INT8.items() if flag in flags), None)


def saturates() -> bool:
    """Whether the fastest products of bytes are not exact here: x86 without VNNI adds pairs of them in 16 bits."""
    return platform.machine().lower() in ("x86_64", "amd64") and products_of_bytes() is None


@cache
def _cpu_info(*names: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(names):
                return line.partition(":")[2].strip()
    return ""


def jetson_release(file: Path = Path("/etc/nv_tegra_release")) -> str | None:
    """The Jetson Linux release ("R36.4.3") as `file` says it, None on another machine."""
    with contextlib.suppress(OSError):
        text = file.read_text()
        found = re.search(r"# (R\d+)[^,]*, REVISION: ([\d.]+)", text)
        if found:
            return f"{found[1]}.{found[2]}"
    return None


@cache
def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs that the driver offers to this process (it obeys CUDA_VISIBLE_DEVICES); empty without a driver.

    The driver's library is asked and not nvidia-smi, which a Jetson may lack.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return ()
    count, number = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    driver.cuDriverGetVersion(ctypes.byref(number))
    cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return tuple(_gpu(driver, index, cuda) for index in range(count.value))


def problem_with_gpu(bus: Path = Path("/sys/bus/pci/devices")) -> str | None:
    """Why a card of NVIDIA's that is on the bus is not among `gpus`, ": " and what to do; None if nothing is wrong.

    An empty CUDA_VISIBLE_DEVICES, or -1, is a wish to do without.
    """
    if gpus() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    on_bus = False
    for device in bus.glob("*"):
        with contextlib.suppress(OSError):
            maker, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            on_bus = on_bus or (maker == "0x10de" and kind.startswith(("0x0300", "0x0302")))
    if not on_bus:
        return None
    if _driver_version() is None:
        return "an NVIDIA GPU is on the bus, but its driver is not loaded: install NVIDIA's driver"
    return (
        "an NVIDIA GPU and its driver are here, but not offered to this process: check CUDA_VISIBLE_DEVICES, start the"
        " container with --gpus all, or restart after an update of the driver"
    )


def _gpu(driver: ctypes.CDLL, index: int, cuda: str) -> Gpu:
    device, name, memory = ctypes.c_int(0), ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{attribute(_CUDA_MAJOR)}.{attribute(_CUDA_MINOR)}",
        memory_bytes=memory.value,
        driver=_driver_version(),
        cuda=cuda,
        integrated=attribute(_CUDA_INTEGRATED) != 0,
    )


def _driver_version() -> str | None:
    for path in ("/sys/module/nvidia/version", "/proc/driver/nvidia/version"):
        with contextlib.suppress(OSError):
            found = re.search(r"\d+\.\d+(\.\d+)?", Path(path).read_text())
            if found:
                return found[0]
    return None


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: "2026.4.1-22982-ab" -> (2026, 4, 1); () for one that begins otherwise."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
