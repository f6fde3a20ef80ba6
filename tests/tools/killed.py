"""What a command leaves that was killed: the work runs in a child of this process, which ends at a chosen moment."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

KILLED = -signal.SIGKILL
_CHANGES = ("replace", "fsync", "mkdir", "unlink", "rename", "rmdir")


def in_a_child(work: Callable[[], object]) -> int:
    """Do the work in a child of this process: 0, 1 after an error, or -9 if it was killed. It runs no cleanup."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended_well(child: int, seconds: int = 60) -> bool:
    """Whether a forked process ends by itself, with 0; one that hangs is killed."""
    for _ in range(20 * seconds):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def kill_at(step: int) -> None:
    """From here on, kill this process when it is about to change the disk for the `step`th time, counted from 0."""
    left = step

    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*arguments, **named)

        return call

    for name in _CHANGES:
        setattr(os, name, guard(getattr(os, name)))
    shutil.rmtree = guard(shutil.rmtree)  # type: ignore[assignment]


def limit_files(size: int) -> None:
    """No file of this process may grow beyond so many bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
