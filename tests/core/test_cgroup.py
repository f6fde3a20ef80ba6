"""A container's limits of CPU time and memory, as Linux states them, in both versions of control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy.core import cgroup, machine
from vitdeploy.data import images

GIB = 2**30
V2 = "30 23 0:26 {mounted} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"
V1 = (
    "33 31 0:30 {mounted} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "36 31 0:32 {mounted} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def system(root: Path, version: int, files: dict[str, str], path: str = "/", mounted: str = "/") -> Path:
    """The files of a machine whose process is in the group `path`; `mounted` is what of the hierarchy is seen."""
    lines = f"0::{path}\n" if version == 2 else f"7:cpu,cpuacct:{path}\n4:memory:{path}\n2:cpuset:/\n0::/\n"
    mounts = "22 1 8:1 / / rw - ext4 /dev/sda rw\n" + (V2 if version == 2 else V1).format(mounted=mounted)
    for name, text in {"proc/self/cgroup": lines, "proc/self/mountinfo": mounts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_version_2(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/"
    files = {
        f"{group}cpu.max": "150000 100000\n",
        f"{group}memory.max": f"{2 * GIB}\n",
        f"{group}memory.current": f"{GIB}\n",
        f"{group}memory.stat": f"anon 5\ninactive_file {GIB // 4}\n",
    }
    root = system(tmp_path, 2, files)
    assert cgroup.cpu_quota(root) == 1.5
    assert cgroup.memory_limit(root) == 2 * GIB
    assert cgroup.available_bytes(root) == GIB + GIB // 4


def test_version_1(tmp_path: Path) -> None:
    cpu, memory = "sys/fs/cgroup/cpu,cpuacct/docker/abc/", "sys/fs/cgroup/memory/docker/abc/"
    files = {
        f"{cpu}cpu.cfs_quota_us": "50000\n",
        f"{cpu}cpu.cfs_period_us": "100000\n",
        f"{memory}memory.limit_in_bytes": f"{GIB}\n",
        f"{memory}memory.usage_in_bytes": f"{GIB // 2}\n",
        f"{memory}memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 8}\n",
    }
    root = system(tmp_path, 1, files, "/docker/abc")
    assert cgroup.cpu_quota(root) == 0.5
    assert cgroup.memory_limit(root) == GIB
    assert cgroup.available_bytes(root) == GIB // 2 + GIB // 8


@pytest.mark.parametrize(
    ("version", "files"),
    [
        (2, {"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"}),
        (2, {"sys/fs/cgroup/cpu.max": "damaged\n", "sys/fs/cgroup/memory.max": "\n"}),
        (
            1,
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
        ),
        (1, {}),
    ],
)
def test_no_limit(tmp_path: Path, version: int, files: dict[str, str]) -> None:
    root = system(tmp_path, version, files)
    assert (cgroup.cpu_quota(root), cgroup.memory_limit(root), cgroup.available_bytes(root)) == (None, None, None)


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert (cgroup.cpu_quota(tmp_path), cgroup.memory_limit(tmp_path), cgroup.available_bytes(tmp_path)) == (None,) * 3


def test_the_tightest_of_the_groups_above_holds(tmp_path: Path) -> None:
    """A pod of Kubernetes: the container's own group asks for more than the pod's allows."""
    top = "sys/fs/cgroup/kubepods/pod1/"
    files = {
        f"{top}cpu.max": "100000 100000\n",
        f"{top}memory.max": f"{GIB}\n",
        f"{top}app/cpu.max": "400000 100000\n",
        f"{top}app/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/other/cpu.max": "1000 100000\n",
    }
    root = system(tmp_path, 2, files, "/kubepods/pod1/app")
    assert cgroup.cpu_quota(root) == 1 and cgroup.memory_limit(root) == GIB


@pytest.mark.parametrize("path", ["/docker/abc", "/", "/../../docker/abc"])
def test_a_group_whose_own_folder_alone_is_mounted(tmp_path: Path, path: str) -> None:
    """As in a container without a namespace of its own, or with one."""
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    root = system(tmp_path, 1, files, path, mounted="/docker/abc")
    assert cgroup.cpu_quota(root) == 2


def test_threads_and_images_go_by_what_the_container_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.usable_cores(), machine.memory_bytes("MemTotal"), machine.memory_bytes("MemAvailable")
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.4)
    monkeypatch.setattr(machine, "memory_limit", lambda: 240_000_000)
    monkeypatch.setattr(machine, "available_bytes", lambda: 1000)
    assert (machine.usable_cores(), machine.physical_cores()) == (1, 1)
    assert machine.quota_threads() == (1 if before[0] > 1 else None)
    assert machine.memory_bytes("MemTotal") == machine.machine()["memory_bytes"] == 240_000_000
    assert machine.memory_bytes("MemAvailable") == 1000
    assert images.most_pixels.__wrapped__() == 10_000_000
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1e6)
    monkeypatch.setattr(machine, "memory_limit", lambda: 2**59)
    monkeypatch.setattr(machine, "available_bytes", lambda: 2**59)
    assert machine.quota_threads() is None
    assert machine.usable_cores() == len(os.sched_getaffinity(0))
    assert machine.memory_bytes("MemTotal") == before[1]
    assert images.most_pixels.__wrapped__() == min(images.MAX_PIXELS, (before[1] or 0) // 24)


V1_ROOT = Path("/sys/fs/cgroup")


@pytest.mark.skipif(not os.access(V1_ROOT / "cpu" / "cgroup.procs", os.W_OK), reason="no group can be made here")
def test_a_real_group_decides_how_many_threads_a_backend_starts(tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    group = V1_ROOT / "cpu" / f"vitdeploy-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("100000")
        code = (
            "import os, sys, numpy, vitdeploy\n"  # OpenBLAS has a thread of its own, not the backend's
            f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            "before = len(os.listdir('/proc/self/task'))\n"
            "with vitdeploy.load(sys.argv[1], 'onnxruntime', 'fp32') as classifier:\n"
            "    print(vitdeploy.doctor().machine['cores'], len(os.listdir('/proc/self/task')) - before)\n"
        )
        command = [sys.executable, "-c", code, str(tiny_bundle)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.split() == ["1", "0"]
    finally:
        group.rmdir()
