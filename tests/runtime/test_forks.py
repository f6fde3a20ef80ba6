"""Forked processes: what is loaded before a fork, in it, and how such a process ends."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy import InputError, load

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
PROGRAM = """
import os, sys, time
import numpy as np
from vitdeploy import RunnerClosedError, load

bundle, backend, image = sys.argv[1], sys.argv[2], np.zeros((32, 32, 3), np.uint8)

def opened(backend=backend, **options):
    return load(bundle, backend, "int8", threads=2, **options)

def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(7)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hung"

"""


def run(bundle: Path, backend: str, code: str) -> str:
    command = [sys.executable, "-c", PROGRAM + code, str(bundle), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_child_of_a_process_that_uses_a_backend_ends(tiny_bundle: Path, backend: str) -> None:
    """With sys.exit, whatever it holds of the parent's: threads, a classifier, one that was closed."""
    code = """
import asyncio
held = opened(max_batch=4)
asyncio.run(held.predict_async(image))
print(child(lambda: None), end=" ")
print(child(held.close), end=" ")
held.close()
print(child(lambda: None), end=" ")
del held
print(child(lambda: None))
"""
    assert run(tiny_bundle, backend, code) == "7 7 7 7"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_child_loads_its_own_or_is_told_what_to_do(tiny_bundle: Path, backend: str) -> None:
    code = """
def own(backend=backend):
    try:
        with opened(backend) as mine:
            print(mine.backend, mine.predict(image).label == expected, end=" ", flush=True)
    except RunnerClosedError as error:
        print("spawn" in error.hint and "fork" in error.message, end=" ", flush=True)

with opened() as classifier:
    expected = classifier.predict(image).label
    own()
print(child(own), end=" ")
print(child(lambda: own("auto")), end=" ")
own()
"""
    said = run(tiny_bundle, backend, code).split()
    assert said[:2] == said[-2:] == [backend, "True"]
    of_children = ["True", "7"] if backend == "openvino" else [backend, "True", "7"]
    assert said[2:-5] == of_children
    assert said[-5] in ("native", "onnxruntime", "openvino") and said[-4:-2] == ["True", "7"]
    assert (backend, said[-5]) != ("openvino", "openvino")


def test_a_classifier_that_is_pickled_or_copied_says_what_to_do_instead(tiny_bundle: Path) -> None:
    with load(tiny_bundle, precision="fp32", threads=1) as classifier:
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(InputError, match="can't be pickled") as caught:
                way(classifier)
            assert "vitdeploy.load(" in str(caught.value.hint) and str(tiny_bundle) in str(caught.value.hint)


@pytest.mark.parametrize("threads", [100_000, 0, -1, True, 1.5, "2"])
def test_a_number_of_threads_that_there_are_no_processors_for(tiny_bundle: Path, threads: object) -> None:
    with pytest.raises(InputError, match=f"this machine has {os.cpu_count()} processors"):
        load(tiny_bundle, threads=threads)  # type: ignore[arg-type]
    with load(tiny_bundle, "onnxruntime", "fp32", threads=os.cpu_count()) as classifier:
        assert classifier.labels
