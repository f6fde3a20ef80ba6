"""Our INT8 kernels: where tests of them can run, and their sources, compiled one by one as each says."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from vitdeploy.backends.native.library import kernels_obstacle
from vitdeploy.core.machine import has_module

SOURCES = Path(vitdeploy.__file__).parent / "backends" / "native"
FORM = "model.int8-cpu.onnx"
_OBSTACLE = kernels_obstacle()
needs_kernels = pytest.mark.skipif(_OBSTACLE is not None, reason=": ".join(_OBSTACLE or ()))
needs_compiled = pytest.mark.skipif(
    not has_module("vitdeploy.backends.native._kernels"), reason="vitdeploy was installed without its kernels"
)


def images(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    """The same noise at each call, uint8 (count, height, width, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def compiled(folder: Path, options: Sequence[str], *more: Path, compiler: str = "g++", machine: str = "") -> list[Path]:
    """The objects of the sources that are for a machine (this one), and of `more`, in `folder`."""
    machine = machine or platform.machine()
    made = []
    for source in [*sorted(SOURCES.rglob("*.cpp")), *more]:
        stated = re.match(r"// Compiled for (\S+) with (.*)", source.read_text(encoding="utf-8"))
        wanted, flags = (stated[1], stated[2].split()) if stated else ("any", [])
        if wanted not in ("any", machine):
            continue
        # what the test asks for comes last: it decides on the level of optimisation
        command = [compiler, "-std=c++17", "-ffp-contract=off", "-fPIC", *flags, *options, "-c", str(source)]
        made.append(folder / f"{source.stem}.o")
        subprocess.run([*command, "-o", str(made[-1])], check=True, capture_output=True, timeout=600)
    return made
