"""The kernels without Python: under GCC's sanitizers, and for ARM in an emulator, where the bits are the same."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tools.native import compiled
from vitdeploy.backends.native.library import instruction_sets, kernels_obstacle

DRIVER = Path(__file__).parent / "driver.cpp"
ARM = ("aarch64-linux-gnu-g++", "qemu-aarch64")
BITS = "48cd7abfffdb35c9"  # they change with the arithmetic, and with the driver's models


def build(folder: Path, *options: str, compiler: str = "g++", machine: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    objects = compiled(folder, options, DRIVER, compiler=compiler, machine=machine)
    command = [compiler, *options, *map(str, objects), "-pthread", "-o", str(folder / "driver")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "driver"


def run(*command: str | Path) -> list[str]:
    """The instruction sets that ran, and what stands for their bits."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def runnable() -> Sequence[str]:
    return [isa.name for isa in instruction_sets() if isa.missing is None]


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_kernels_under_a_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    """No thread reads what another writes, and no step reads beyond its memory."""
    driver = build(tmp_path, "-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    # without random addresses: ThreadSanitizer knows only some layouts of memory
    *names, bits = run(*(["setarch", "-R"] if shutil.which("setarch") else []), driver)
    assert bits == BITS
    if kernels_obstacle() is None:
        assert names == runnable()


@pytest.mark.full
@pytest.mark.skipif(None in map(shutil.which, ARM), reason=f"needs {' and '.join(ARM)}: make test-arm")
@pytest.mark.parametrize(
    ("processor", "names"),
    [
        ("max", ["neon_i8mm", "neon_dot", "portable"]),
        ("neoverse-n1", ["neon_dot", "portable"]),
        ("cortex-a72", ["portable"]),
    ],
)
def test_the_kernels_for_arm_give_the_same_bits(processor: str, names: list[str], tmp_path: Path) -> None:
    driver = build(tmp_path, "-O2", "-static", compiler=ARM[0], machine="aarch64")
    assert run(ARM[1], "-cpu", processor, driver, "2") == [*names, BITS]
