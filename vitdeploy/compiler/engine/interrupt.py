"""Work of TensorRT's that Ctrl-C can end.

A Ctrl-C that reached Python inside one of TensorRT's callbacks would have to fly through C++, so the work goes into a
thread of its own, and the main thread takes it and asks TensorRT to stop. TensorRT does so between two steps. One step
may be most of a build (TensorRT-RTX writes all kernels in one), so after some seconds, or at a second Ctrl-C, the
thread is left to itself: what it works on it holds, and if it still works when the process ends, the process ends
without waiting for it.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from vitdeploy.core import progress

__all__ = ["run_interruptible"]

GRACE_SECONDS = 5.0
_Result = TypeVar("_Result")


def run_interruptible(work: Callable[[], _Result], cancel: Callable[[], None]) -> _Result:
    """What `work` gives; whatever it raises is raised here.

    Args:
        work: holds all that it needs: it may go on after this has returned.
        cancel: asks it to end early; called in the main thread, at Ctrl-C.

    Raises:
        KeyboardInterrupt: Ctrl-C; the work has ended, or is left behind.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []
    done = threading.Event()  # and no join: one that was interrupted takes the thread for ended (bpo-45274)

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    try:
        threading.Thread(target=run, daemon=True).start()
        while not done.wait(0.5):
            pass
    except KeyboardInterrupt:
        try:
            cancel()
            _wait_a_little(done)
        finally:
            atexit.register(_leave, done)
        raise
    if errors:
        raise errors[0]
    return results[0]


def _wait_a_little(done: threading.Event) -> None:
    """Wait until TensorRT has stopped, for some seconds or until the next Ctrl-C."""
    progress.note("Stopping at TensorRT's next step, or in a few seconds; Ctrl-C again stops at once.")
    until = time.monotonic() + GRACE_SECONDS
    while not done.wait(0.1) and time.monotonic() < until:
        pass


def _leave(done: threading.Event) -> None:
    """End the process now if TensorRT still works: its threads would call into an interpreter that is gone."""
    if not done.is_set():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(130)
