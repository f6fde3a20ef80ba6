"""A build as it is watched: progress, Ctrl-C, TensorRT's log in plain words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.tools.engines import Recorder, needs_rtx
from vitdeploy.compiler.engine import EngineOptions, build_engine
from vitdeploy.compiler.engine.interrupt import run_interruptible
from vitdeploy.compiler.engine.watch import BuildLog, BuildPhases, explain_error


@needs_rtx
def test_progress_rises_to_the_end_and_names_phases(
    tiny_bundle: Path, tmp_path: Path, options: EngineOptions, recorder: Recorder
) -> None:
    build_engine(tiny_bundle / "model.fp16.onnx", tmp_path / "e", options)
    assert recorder.completed == sorted(recorder.completed)
    assert recorder.completed[-1] == 100
    assert len({round(done) for done in recorder.completed}) > 10
    assert "Cloning network graph" in recorder.details


CANCELLED = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    from contextlib import nullcontext
    from pathlib import Path
    from vitdeploy.core import progress
    from vitdeploy.compiler.engine import EngineOptions, build_engine
    from vitdeploy.bundle import Bundle

    class Slow:
        said = False
        def task(self, *_): return nullcontext(self)
        def note(self, message): pass
        def advance(self, amount=1): pass
        def update(self, **_):
            if not self.said:
                print("building", flush=True)
            self.said = True
            time.sleep(0.01)

    bundle = Bundle.open(sys.argv[1])
    with progress.use(Slow()):
        try:
            build_engine(bundle.path / "model.onnx", Path(sys.argv[2]), EngineOptions().for_manifest(bundle.manifest))
            print("built")
        except KeyboardInterrupt:
            print("cancelled")
"""


@needs_rtx
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_the_build_and_leaves_the_old_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "old.engine"
    output.write_bytes(b"the old one")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CANCELLED), tiny_bundle, output],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    # 130: it ended before TensorRT had stopped, as it does on a busy machine
    assert out == "cancelled\n" and process.returncode in (0, 130), err
    said = output.with_suffix(".log").read_text()
    assert "Opset version" in said and "Engine generation completed" not in said  # TensorRT stopped, and did not finish
    assert output.read_bytes() == b"the old one"
    assert {path.name for path in tmp_path.iterdir()} == {"old.engine", "old.log"}


STUBBORN = """
    import signal, sys, threading, time
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from vitdeploy.compiler.engine.interrupt import run_interruptible

    asked = threading.Event()

    def work():
        print("working", flush=True)
        if sys.argv[1] == "obeys":
            asked.wait(100)
            print("ended", flush=True)
        else:
            time.sleep(100)  # a step that looks at nothing

    def cancel():
        print("cancelled", flush=True)
        asked.set()

    try:
        run_interruptible(work, cancel)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("work", "signals"), [("obeys", 1), ("does not", 1), ("does not", 2)])
def test_work_that_does_not_stop_is_left_behind(work: str, signals: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STUBBORN), work],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    lines = [process.stdout.readline()]
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        lines += [process.stdout.readline()] if len(lines) == 1 else []
    lines += process.stdout.readlines()  # not communicate(), which passes over what readline() read ahead
    err = process.stderr.read()
    process.wait(60)
    if work == "obeys":
        assert lines == ["working\n", "cancelled\n", "ended\n", "interrupted\n"] and process.returncode == 0, err
    else:  # it would still sleep
        assert lines == ["working\n", "cancelled\n", "interrupted\n"] and process.returncode == 130, err
    assert err == ""


def test_what_the_work_raises_is_raised() -> None:
    def work() -> int:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_interruptible(work, lambda: None)
    assert run_interruptible(lambda: 7, lambda: None) == 7


def test_phases_nest_and_never_fall() -> None:
    phases, seen = BuildPhases(), []
    phases.start("whole", None, 2)
    phases.start("first", "whole", 4)
    for step in range(4):
        phases.advance("first", step)
        seen.append(phases.done())
    phases.finish("first")
    phases.advance("whole", 0)
    phases.start("second", "whole", 10)
    seen.append(phases.done())
    assert seen == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])  # by hand: a half of the whole in quarters
    assert phases.current() == "second"
    phases.finish("second")
    phases.finish("whole")
    assert phases.done() == 1


def test_warnings_that_matter_are_told_in_plain_words(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:
        log = BuildLog(file)
        for message in (
            "Detected layernorm nodes in FP16: running them may cause overflow",
            "Skipping tactic 0x1 due to insufficient memory on requested size of 9",
            "Skipping tactic 0x2 due to insufficient memory on requested size of 9",
            "Something nobody needs to know",
        ):
            log.add("WARNING", message)
    assert len(log.notes()) == 2
    assert "vitdeploy bench" in log.notes()[0] and "--workspace" in log.notes()[1]
    assert "nobody needs" in (tmp_path / "log").read_text()


def test_an_unknown_error_is_shown_without_its_place(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:
        log = BuildLog(file)
        log.add("ERROR", "IBuilder::f: Error Code 9: Something new In compile at /_src/a/b.cpp:12")
        log.add("ERROR", "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35: driver)")
    assert explain_error(log) == ("IBuilder::f: Error Code 9: Something new", None)
