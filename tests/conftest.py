"""Fixtures that many tests share: a seeded tiny ViT, the bundle exported from it, the larger test data."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest

from tests.tools.tiny import (
    copy_frozen_bundle,
    copy_frozen_bundle_with_selftest,
    write_bundle,
    write_checkpoint,
    write_images,
)

# A shell starts background jobs with Ctrl-C ignored; tests that send it need Python's own way.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Without `-m gpu` the tests are about a machine without a GPU, also where there is one."""
    if "gpu" not in str(config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    gc.set_threshold(20_000, 20, 50)  # the libraries make a million objects that stay: looking through them takes long


def pytest_runtest_setup() -> None:
    """PyTorch's exporter reads the sources of its 700 operators for each export, a seventh of its time: the first
    export of a process does it for all."""
    registry = getattr(sys.modules.get("torch.onnx._internal.exporter._registration"), "ONNXRegistry", None)
    if registry is not None and not hasattr(registry.from_torchlib, "cache_info"):
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


if find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    # how long a draw takes says something about the machine
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")

Meters = tuple[Callable[..., float], Callable[..., "str | None"]]

LONGEST = ("test_demo.py", "test_resume.py", "test_finetune.py", "test_tune.py", "test_regularisation.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: with workers side by side, nobody is left to do one of them alone at the end.

    Without OpenVINO, as beside onnxruntime-gpu, what runs it is skipped.
    """
    if find_spec("openvino") is None:
        for item in items:
            if runs_openvino(item):
                item.add_marker(pytest.mark.skip(reason="OpenVINO is not installed: pip install openvino"))
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def no_rests() -> Iterator[None]:
    """A benchmark rests before each call that it keeps, so that the threads of other runtimes sleep, and looks for
    garbage before them all: tests of what it does, not of how fast something is, need not wait for that."""
    from vitdeploy.bench import latency
    from vitdeploy.bench.latency import LatencyRun, WallClock

    rest = LatencyRun._rest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatencyRun, "_rest", lambda run, *call: isinstance(run._clock, WallClock) or rest(run, *call))
        patch.setattr(latency, "gc", SimpleNamespace(collect=int, freeze=gc.freeze, unfreeze=gc.unfreeze))
        yield


@pytest.fixture(scope="session", autouse=True)
def quiet_machine() -> Iterator[Meters]:
    """Benchmarks find the machine quiet, whatever runs beside the tests: times of a busy one choose and recommend
    nothing. Yields what really measures it."""
    from vitdeploy.bench.latency import Track
    from vitdeploy.bench.machine import BusyMeter

    real = BusyMeter.other_share, Track.unsteady
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BusyMeter, "other_share", lambda meter: 0.0)
        patch.setattr(Track, "unsteady", lambda track: None)
        yield real


@pytest.fixture(scope="module")
def exact_products() -> Iterator[None]:
    """`load` tries backends in the order of a processor with VNNI, whichever the tests run on; for what does not ask
    another process."""
    from vitdeploy.core import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "saturates", lambda: False)
        yield


@pytest.fixture(scope="module")
def real_meters(quiet_machine: Meters) -> Iterator[None]:
    """The machine as it is, for the tests of what finds it busy."""
    from vitdeploy.bench.latency import Track
    from vitdeploy.bench.machine import BusyMeter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BusyMeter, "other_share", quiet_machine[0])
        patch.setattr(Track, "unsteady", quiet_machine[1])
        yield


def runs_openvino(item: Any) -> bool:
    """Whether a test uses what runs OpenVINO, is given the backend, or names it and has a bundle to run with it."""
    code = getattr(getattr(item, "obj", None), "__code__", None)
    names, words = of_code(code) if code is not None else ((), ())
    params = map(str, item.callspec.params.values()) if hasattr(item, "callspec") else ()
    has_bundle = not {"tiny_bundle", "small"}.isdisjoint(getattr(item, "fixturenames", ()))
    return (
        any("openvino" in name.lower() for name in names)
        or any(param.startswith("openvino") for param in params)
        or (has_bundle and any("openvino" in word for word in words))
    )


def of_code(code: CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and the words in a function and those inside it."""
    inner = [of_code(value) for value in code.co_consts if isinstance(value, CodeType)]
    flat = [word for value in code.co_consts for word in (value if isinstance(value, tuple) else (value,))]
    words = [word for word in flat if isinstance(word, str)]
    return (
        (*code.co_names, *(name for names, _ in inner for name in names)),
        (*words, *(word for _, found in inner for word in found)),
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a seeded tiny ViT: hidden 48, 3 layers, 4 heads, image 32, patch 8, 10 classes. Read-only."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def one_layer_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT of one layer, which exports in half the time. Read-only."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return write_checkpoint(tmp_path_factory.mktemp("one") / "checkpoint", layers=1)


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `write_images`. Read-only."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_checkpoint` with FP32, FP16 and both INT8 graphs. Read-only: copy it to change it.

    Without PyTorch it is the one that an earlier version wrote; on a GPU without PyTorch one that
    `python -m tests.gpu.make_bundle` wrote elsewhere: VITDEPLOY_TINY_BUNDLE.
    """
    made = os.environ.get("VITDEPLOY_TINY_BUNDLE")
    if made:
        return Path(made)
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    if find_spec("onnx_ir") is None:  # nor is there what builds forms
        return copy_frozen_bundle(path)
    if find_spec("torch") is None:
        return copy_frozen_bundle_with_selftest(path)
    return write_bundle(path, request.getfixturevalue("tiny_checkpoint"), request.getfixturevalue("tiny_images"))


@pytest.fixture
def tiny_bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle` that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The larger test data: a folder with cifar10/ and models/."""
    value = os.environ.get("VITDEPLOY_TEST_DATA")
    if not value:
        pytest.skip("VITDEPLOY_TEST_DATA names no folder with the larger test data")
    return Path(value)


@pytest.fixture
def cli() -> Callable[..., object]:
    """Run the command line in this process: `cli("inspect", path)` -> an Outcome, errors rendered as users see them."""
    from tests.tools.command_line import invoke

    return invoke


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that our own INT8 kernels are not for."""
    from vitdeploy.backends import registry

    spec = replace(registry.find("native"), obstacle=lambda: ("this processor is none for them", "take another"))
    monkeypatch.setitem(registry._specs, "native", spec)
