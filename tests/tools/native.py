"""The kernels' sources, compiled one by one with the flags that each states."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import vitdeploy

SOURCES = Path(vitdeploy.__file__).parent / "backends" / "native"


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
