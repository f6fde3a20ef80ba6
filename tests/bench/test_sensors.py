"""Sensors are read where there are some, now and then, and never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitdeploy.bench import sensors
from vitdeploy.bench.sensors import Sensors, cpu_celsius, cpu_mhz, gpu_mhz, read_gpus


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2600000\n",
        "sys/class/thermal/thermal_zone0/temp": "41000\n",
        "sys/class/thermal/thermal_zone1/temp": "55500\n",
        "sys/class/thermal/thermal_zone2/temp": "none\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_clock_and_temperature_are_read(root: Path) -> None:
    assert cpu_mhz(root) == 2500.0 and cpu_celsius(root) == 55.5


def test_the_clock_is_looked_up_where_there_is_no_governor(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("cpu MHz\t\t: 2000.0\n\ncpu MHz\t\t: 3000.5\n")
    assert cpu_mhz(tmp_path) == 2500.2 and cpu_celsius(tmp_path) is None


def test_a_machine_without_sensors_says_nothing(tmp_path: Path) -> None:
    assert cpu_mhz(tmp_path) is None and cpu_celsius(tmp_path) is None


def test_readings_are_at_least_five_seconds_apart() -> None:
    now = [100.0]
    taken = Sensors(0, now=lambda: now[0])
    for _ in range(21):
        taken()
        now[0] += 1.0
    assert [entry["seconds"] for entry in taken.taken] == [0.0, 5.0, 10.0, 15.0, 20.0]
    assert all(entry["gpu"] == [] for entry in taken.taken)


def test_nvidia_smi_is_asked_for_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "1980, 44, 112.5"\necho "[N/A], 50, [Not Supported]"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sensors.shutil, "which", lambda name: str(program))
    assert read_gpus() == [
        {"clock_mhz": 1980.0, "celsius": 44.0, "watt": 112.5},
        {"clock_mhz": None, "celsius": 50.0, "watt": None},
    ]
    monkeypatch.setattr(sensors.shutil, "which", lambda name: None)
    assert read_gpus() == []


class Nvml:
    """NVIDIA's management library with two GPUs, of which the second is asleep, or with none."""

    def __init__(self, clocks: tuple[int, ...]) -> None:
        self.clocks = clocks

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.clocks)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = 1000 + index
        return 0

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, clock: Any) -> int:
        assert kind == 1  # the multiprocessors'
        clock._obj.value = self.clocks[handle.value - 1000]
        return 0 if clock._obj.value else 3  # NVML_ERROR_NOT_SUPPORTED


@pytest.mark.parametrize(("clocks", "found"), [((1980, 210), 1980.0), ((0,), None), ((), None)])
def test_the_clock_of_the_gpu_that_computes(
    clocks: tuple[int, ...], found: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_nvml", lambda: Nvml(clocks))
    assert gpu_mhz() == found
    monkeypatch.setattr(sensors, "_nvml", lambda: None)
    assert gpu_mhz() is None
