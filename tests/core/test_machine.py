"""What is known of this machine, and that knowing it loads nothing heavy."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from vitdeploy.core import machine


def test_the_machine_is_described_in_json() -> None:
    found = machine.machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"] and found["cores"] == machine.usable_cores() >= 1
    assert found["memory_bytes"] is None or found["memory_bytes"] > 1e8
    assert set(found["cpu_flags"]) <= machine.cpu_flags()
    assert platform.machine() in found["system"] and platform.machine() in machine.system_name()


def test_a_machine_is_recognised_by_what_does_not_change() -> None:
    found = machine.identity()
    assert found == machine.identity() == json.loads(json.dumps(found))
    assert found["cpu"] == machine.cpu_name() and found["cores"] == machine.usable_cores()
    assert found["gpu"] == [gpu.name for gpu in machine.gpus()]


def test_a_line_that_meminfo_lacks_is_none() -> None:
    assert machine.memory_bytes("NoSuchLine") is None


def test_versions_are_those_of_the_metadata() -> None:
    found = machine.versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == metadata.version("numpy")
    assert machine.version("no-such-package-here") is None
    assert set(machine.versions(["numpy", "no-such-package-here"])) == {"python", "numpy"}


@pytest.mark.parametrize(
    ("name", "there"), [("numpy", True), ("no_such_module", False), ("no_such.module", False), ("numpy.linalg", True)]
)
def test_modules_are_found_without_an_error(name: str, there: bool) -> None:
    assert machine.has_module(name) is there


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n", "R36.4.3"),
        ("# R35 (release), REVISION: 6.0, GCID: 1, BOARD: t186ref, EABI: aarch64\n", "R35.6.0"),
        ("something else\n", None),
    ],
)
def test_a_jetson_says_its_release(tmp_path: Path, text: str, release: str | None) -> None:
    file = tmp_path / "nv_tegra_release"
    file.write_text(text)
    assert machine.jetson_release(file) == release
    assert machine.jetson_release(tmp_path / "none") is None


@pytest.mark.skipif(bool(machine.gpus()), reason="the GPU of this machine is in order")
@pytest.mark.parametrize(
    ("vendor", "kind", "problem"),
    [("0x10de", "0x030200", True), ("0x10de", "0x040300", False), ("0x1002", "0x030000", False)],
)
def test_a_card_without_a_driver_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, kind: str, problem: bool
) -> None:
    """A 3D controller of NVIDIA's counts; its sound device and another maker's card do not."""
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = machine.problem_with_gpu(tmp_path)
    assert (found is not None) is problem
    assert found is None or ": " in found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # somebody wants it so
    assert machine.problem_with_gpu(tmp_path) is None


def test_gpus_have_what_an_engine_needs_to_know() -> None:
    for gpu in machine.gpus():
        assert gpu.name and gpu.memory_bytes > 1e8
        assert float(gpu.compute_capability) >= 3 and float(gpu.cuda) >= 10


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from vitdeploy.core import machine; machine.machine(); machine.versions(); machine.system_name();"
        "machine.has_module('torch'); print([m for m in ('numpy', 'torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores are usable")
def test_two_threads_of_a_core_are_one(tmp_path: Path) -> None:
    topology = str(tmp_path / "{}")
    assert machine.physical_cores(topology) == machine.usable_cores()  # where it is not said
    for number in os.sched_getaffinity(0):
        (tmp_path / str(number)).write_text("0-7\n")
    assert machine.physical_cores(topology) == 1
    for number in os.sched_getaffinity(0):
        (tmp_path / str(number)).write_text(f"{number}\n")
    assert machine.physical_cores(topology) == machine.usable_cores()
    assert 1 <= machine.physical_cores() <= machine.usable_cores()


@pytest.mark.parametrize(
    ("system", "flags", "name", "saturates"),
    [
        ("x86_64", {"avx2"}, None, True),
        ("AMD64", {"avx2", "avx512f"}, None, True),
        ("x86_64", {"avx2", "avx_vnni"}, "AVX VNNI", False),
        ("x86_64", {"avx512_vnni", "amx_int8"}, "AMX", False),
        ("aarch64", {"asimd"}, None, False),
        ("aarch64", {"asimddp"}, "ARM dot product", False),
    ],
)
def test_which_processors_saturate(
    system: str, flags: set[str], name: str | None, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: system)
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags))
    assert machine.products_of_bytes() == name and machine.saturates() is saturates
