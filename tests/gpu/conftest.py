"""What the tests on a GPU share: which TensorRT can build and run here, and what is said of the run in the end.

VITDEPLOY_GPU_REPORT names a JSON file to write that to: the machine, its versions, each test's outcome and its reason.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools.on_gpu import seconds_by_test
from vitdeploy.compiler.build import build
from vitdeploy.compiler.engine import EngineOptions, Profile
from vitdeploy.core.machine import gpus, has_module, machine, versions
from vitdeploy.core.specs import ShapeRange

OUTCOMES = ("passed", "failed", "error", "skipped")


@pytest.fixture(scope="session", autouse=True)
def _kernels_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What TensorRT-RTX compiles in these tests is not kept among what it compiled for the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITDEPLOY_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.fixture(scope="session")
def built_fast(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EngineOptions]:
    """Options for engines whose speed does not matter: `built_fast(flavour, profiles=...)`. TensorRT then tries few
    kernels, and those that were timed once in this run not again."""
    cache = tmp_path_factory.mktemp("timings") / "cache"

    def options(flavour: str, **more: Any) -> EngineOptions:
        fast: dict[str, Any] = {"optimization_level": 1, "timing_cache": cache} if flavour == "tensorrt" else {}
        return EngineOptions(flavour=flavour, **fast, **more)

    return options


@pytest.fixture(scope="session", params=["tensorrt", "tensorrt-rtx"])
def runtime_flavour(request: pytest.FixtureRequest) -> str:
    """Each kind of TensorRT that can build an engine for the GPU here and run it."""
    if not gpus():
        pytest.skip("needs an NVIDIA GPU and its driver, and there is none here")
    if not has_module("cuda.bindings.runtime") and not has_module("cuda.cudart"):  # by its name before 12.6.1
        pytest.skip("cuda-python is not installed: pip install cuda-python")
    from vitdeploy.backends.registry import find
    from vitdeploy.compiler.engine import why_not

    obstacle = why_not(request.param) or find(request.param).obstacle()  # RTX builds for GPUs that are not here
    if obstacle is not None:
        pytest.skip(f"{obstacle[0]}; {obstacle[1]}")
    return str(request.param)


@pytest.fixture(scope="session")
def engine_bundle(
    tiny_bundle: Path,
    runtime_flavour: str,
    built_fast: Callable[..., EngineOptions],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny bundle with FP16 and INT8 engines for images of 16 to 128 pixels and batches up to 4. Read-only: copy it
    to change it."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("engines") / "bundle"))
    side = ShapeRange(16, 32, 128)
    options = built_fast(runtime_flavour, profiles=(Profile(ShapeRange(1, 1, 4), side, side),))
    build(path, ["fp16", "int8"], target=runtime_flavour, engine_options=options)
    return path


def reason_of(report: Any) -> str | None:
    """Why a test was skipped, or the last line of its failure."""
    if report.outcome == "passed":
        return None
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return (str(report.longrepr).splitlines() or [""])[-1]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    path = os.environ.get("VITDEPLOY_GPU_REPORT")
    if not path:
        return
    seconds = seconds_by_test(terminalreporter.stats)
    tests = [
        {
            "test": report.nodeid,
            "outcome": outcome,
            "seconds": round(seconds[report.nodeid], 2),
            "reason": reason_of(report),
        }
        for outcome in OUTCOMES
        for report in terminalreporter.stats.get(outcome, ())
    ]
    host, installed = machine(), versions()
    found = {"schema_version": 1, "machine": host, "versions": installed, "tests": tests}
    terminalreporter.section("on this GPU")
    rows = [
        *host.items(),
        *installed.items(),
        ("seconds", round(sum(seconds.values()))),
        *Counter(test["outcome"] for test in tests).items(),
    ]
    for name, value in rows:
        terminalreporter.line(f"{name:20} {value}")
    for reason, count in Counter(test["reason"] for test in tests if test["outcome"] == "skipped").most_common():
        terminalreporter.line(f"{'skipped':20} {count}: {reason}")
    Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    terminalreporter.line(f"{'report':20} {path}")
