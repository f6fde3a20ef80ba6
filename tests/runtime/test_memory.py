"""Memory: none is left behind, and when there is not enough it is said and the classifier goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.tools.backends import CPU_BACKENDS

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, which only Linux has")

NO_MEMORY = """
import resource, sys
import numpy as np
from vitdeploy import load
from vitdeploy.core.errors import OutOfMemoryError

path, backend, max_batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
precision = "int8" if backend == "native" else "fp32"
with load(path, backend=backend, precision=precision, threads=1, max_batch=max_batch) as classifier:
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    big = np.zeros((6000, 8000, 3), np.uint8)
    before = classifier.predict(small)
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    room = 600 << 20 if precision == "fp32" else 100 << 20  # in INT8 for CPUs pixels stay bytes
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room,) * 2)
    for images in (big, [big, big], [big] * 8):
        try:
            classifier.predict(images)
        except OutOfMemoryError as error:
            assert error.hint, error
        else:
            raise AssertionError("it found the memory")
        assert classifier.predict(small) == before
print("fine")
"""

FLAT = """
import sys
import numpy as np
from vitdeploy import load
from vitdeploy.core.errors import ImageError

path, backend, calls, max_batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
draw = np.random.default_rng(0)
images = [draw.integers(0, 256, (32 + 8 * (i % 3), 32, 3), dtype=np.uint8) for i in range(9)]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

with load(path, backend=backend, precision="int8", threads=1, max_batch=max_batch) as classifier:
    def call(number):
        if number % 50 == 0:
            try:
                classifier.predict(b"no image")
            except ImageError:
                return
        elif number % 10 == 0:
            classifier.predict(images)
        else:
            classifier.predict(images[number % 9])
    for number in range(calls // 10):
        call(number)
    before = resident()
    for number in range(calls):
        call(number)
    after = resident()
mib = [round(value / 2**20, 1) for value in (before, after)]
print(f"{mib[0]} MiB before, {mib[1]} MiB after {calls} calls: {100 * (after / before - 1):+.2f} %")
sys.exit(after > 1.02 * before)
"""


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_out_of_memory_is_said_and_survived(tiny_bundle: Path, backend: str, max_batch: int) -> None:
    assert run(NO_MEMORY, tiny_bundle, backend, max_batch) == "fine"


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_memory_stays_flat(tiny_bundle: Path, backend: str) -> None:
    print(run(FLAT, tiny_bundle, backend, 1500, 1))


@pytest.mark.full
@pytest.mark.parametrize("max_batch", [1, 8])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_memory_stays_flat_over_20000_calls(tiny_bundle: Path, backend: str, max_batch: int) -> None:
    print(run(FLAT, tiny_bundle, backend, 20_000, max_batch))


LOADED = """
import sys
import vitdeploy

with vitdeploy.load(sys.argv[1], sys.argv[2], "int8", device="cpu") as classifier:
    classifier.predict(sys.argv[3])
print(*sys.modules)
"""
UNWANTED = {"asyncio", "ssl", "urllib.request", "email", "zipfile", "importlib.metadata", "onnx", "click", "rich"}
UNWANTED |= {"PIL.AvifImagePlugin", "PIL.PdfImagePlugin", "google.protobuf", "ml_dtypes"}


@pytest.mark.parametrize("backend", [name for name in CPU_BACKENDS if name != "openvino"])
def test_what_a_device_does_not_need_is_not_loaded(backend: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """To load a bundle and to answer an image; each of these would take megabytes, and milliseconds."""
    Image.new("RGB", (12, 9)).save(tmp_path / "image.png")
    command = [sys.executable, "-c", LOADED, tiny_bundle, backend, tmp_path / "image.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    loaded = set(done.stdout.split())
    assert "PIL.PngImagePlugin" in loaded and loaded & UNWANTED == set()
