"""A process that forked from one with an open classifier: it ends, and it can load its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy.backends.native.library import kernels_obstacle

PROGRAM = """
import os, sys, threading, time
import numpy as np
import vitdeploy
from vitdeploy.core.errors import RunnerClosedError

bundle, backend, precision = sys.argv[1:]
image = np.zeros((32, 32, 3), np.uint8)
opened = vitdeploy.load(bundle, backend=backend, precision=precision, threads=2)
opened.predict(image)
busy = True

def work():
    while busy:
        opened.predict([image] * 8)

worker = threading.Thread(target=work, daemon=True)
worker.start()
for turn in range(6):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        busy = False
        if turn % 3 == 0:
            sys.exit(5)
        if turn % 3 == 1:
            try:
                opened.predict(image)
            except RunnerClosedError:
                opened.close()
                sys.exit(5)
        with vitdeploy.load(bundle, backend=backend, precision=precision, threads=2) as own:
            own.predict(image)
        sys.exit(5)
    until = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(child, 9)
            sys.exit(f"the child of turn {turn} does not end")
        time.sleep(0.01)
    if os.waitstatus_to_exitcode(ended[1]) != 5:
        sys.exit(f"the child of turn {turn} ended with {os.waitstatus_to_exitcode(ended[1])}")
busy = False
worker.join()
print("ok", opened.predict(image).label != "")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        pytest.param(
            "native", "int8", marks=pytest.mark.skipif(bool(kernels_obstacle()), reason=str(kernels_obstacle()))
        ),
        ("onnxruntime", "fp32"),
    ],
)
def test_a_fork_ends_and_can_load_its_own(backend: str, precision: str, tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_bundle), backend, precision]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.stdout == "ok True\n", done.stderr[-2000:]
