"""What a report may say about where it was made."""

from __future__ import annotations

import time

import pytest

from vitdeploy.bench.machine import BusyMeter, load_average, machine, memory_bytes, public_text, usable_cores, versions

pytestmark = pytest.mark.usefixtures("real_meters")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /home/ada/bundles/vit/model.onnx: gone", "cannot read model.onnx: gone"),
        ("~/models/vit", "vit"),
        ("~/vit", "vit"),
        ("../data/cifar10", "cifar10"),
        ("--json=/tmp/out/report.json", "--json=report.json"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("models/vit and 3/4 of it", "models/vit and 3/4 of it"),
        ("see https://huggingface.co/docs/x", "see https://huggingface.co/docs/x"),
        ("image/png", "image/png"),
    ],
)
def test_paths_that_lead_out_are_cut(text: str, shown: str) -> None:
    assert public_text(text) == shown
    assert public_text({"a": [text, 3]}) == {"a": [shown, 3]}


def test_the_machine_is_described() -> None:
    found = machine()
    assert found["cpu"] and found["cores"] == usable_cores() >= 1 and isinstance(found["gpu"], list)
    assert found["memory_bytes"] is None or found["memory_bytes"] > 1e8
    assert memory_bytes("NoSuchLine") is None
    assert {"python", "numpy", "vitdeploy"} <= set(versions())


def test_a_system_without_a_load_average_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows, which has no such function, or a container that may not read it."""
    assert load_average() is not None
    for missing in (OSError, AttributeError):

        def refuses(missing: type[Exception] = missing) -> None:
            raise missing

        monkeypatch.setattr("os.getloadavg", refuses)
        assert load_average() is None


def test_own_work_does_not_count_as_that_of_others() -> None:
    meter = BusyMeter()
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end:
        sum(range(1000))
    share = meter.other_share()
    assert share is None or 0 <= share <= 1


@pytest.mark.parametrize(
    ("began", "ended", "share"),
    [
        ((10.0, 4.0, 1.0), (20.0, 8.0, 2.0), 0.3),
        ((10.0, 4.0, 1.0), (20.0, 4.5, 2.0), 0.0),  # clocks of two counters: own work seems more than all
        ((10.0, 4.0, 1.0), (10.0, 4.0, 1.0), None),  # too soon
        ((10.0, 4.0, 1.0), None, None),
        (None, (10.0, 4.0, 1.0), None),
        (None, None, None),
    ],
)
def test_the_share_of_others_is_what_is_left(
    began: tuple[float, ...] | None,
    ended: tuple[float, ...] | None,
    share: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(all, not idle, of this process), in seconds; None as on Windows and macOS."""
    told = iter([began, ended])
    monkeypatch.setattr("vitdeploy.core.machine._ticks", lambda: next(told))
    assert BusyMeter().other_share() == share
