"""A form in a process of its own: its memory is its own, its failures stay there."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tools.small_bundle import write_small_bundle
from vitdeploy.backends.registry import RunnerSpec
from vitdeploy.bench import probe as probe_module
from vitdeploy.bench.memory import host_peak_bytes
from vitdeploy.bench.probe import probe
from vitdeploy.core.errors import InputError, ModelError

SMALL, LARGE = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((64, 700, 700, 3), np.uint8)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("small") / "small", engine=False) / "model.onnx"


def test_memory_grows_with_the_batch_and_is_not_this_process_s(graph: Path) -> None:
    ballast = np.ones(300 * 2**20, np.uint8)  # what this process holds is no matter of the form
    found = probe(RunnerSpec("onnxruntime", str(graph), 1), [SMALL, LARGE])
    small, large = (memory.host_peak_bytes or 0 for memory in found.memory)
    assert 2e7 < small < (host_peak_bytes() or 0) - ballast.nbytes / 2
    # Pixels of the large batch: 94 MB as uint8, four times that as float32.
    assert large - small > 3 * LARGE.nbytes
    assert found.memory[0].device_peak_bytes is None and (found.idle_bytes or 0) < small
    start = found.cold_start
    assert min(start.import_ms, start.load_ms, start.first_ms) > 0
    assert start.total_ms == start.import_ms + start.load_ms + start.first_ms


def test_an_error_comes_back_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ONNX file"):
        probe(RunnerSpec("onnxruntime", str(tmp_path / "none.onnx"), 1), [SMALL])


def test_a_process_that_dies_is_a_failure_with_its_cause(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crash in native code does to the process that loads it."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, sys\nif 'vitdeploy.bench.probe' in sys.orig_argv: os.kill(os.getpid(), {int(signal.SIGSEGV)})\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(ModelError, match="kills its process .SIGSEGV"):
        probe(RunnerSpec("onnxruntime", str(graph), 1), [SMALL])


def test_a_process_that_hangs_is_ended(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\nif 'vitdeploy.bench.probe' in sys.orig_argv:\n"
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(probe_module, "_TIMEOUT", 3.0)
    with pytest.raises(ModelError, match="no answer within 3 s"):
        probe(RunnerSpec("onnxruntime", str(graph), 1), [SMALL])
    if pid.is_file():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


def test_ctrl_c_ends_the_process_too(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys, time\nif 'vitdeploy.bench.probe' in sys.orig_argv:\n"
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n    os.kill(os.getppid(), signal.SIGINT)\n"
        "    time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(KeyboardInterrupt):
        probe(RunnerSpec("onnxruntime", str(graph), 1), [SMALL])
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_this_process_is_read() -> None:
    before = host_peak_bytes()
    assert before is not None and before > 1e7
    block = np.ones(before + 2**20, np.uint8)  # more than was ever held
    after = host_peak_bytes()
    assert after is not None and after >= block.nbytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compares with /proc")
def test_the_peak_is_the_same_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and BSD, which say it in other units each."""
    import resource

    told = host_peak_bytes()
    monkeypatch.setattr("vitdeploy.bench.memory.Path", lambda name: Path("no such file"))
    assert told is not None and abs((host_peak_bytes() or 0) - told) < 0.2 * told
    monkeypatch.setattr(sys, "platform", "darwin")
    assert host_peak_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
