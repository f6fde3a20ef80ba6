"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. Inside a callback from native code, in a module
that is being imported or in a destructor, it may be swallowed there or come out as another error. Inside `remembered`
every Ctrl-C is also written down, and `check`, which stands where a step begins or ends and before anything is put
in place, raises it again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["acknowledge", "check", "pending", "remembered"]

_seen: list[int] = []
_remembering = False


@contextmanager
def remembered() -> Iterator[None]:
    """Write down each Ctrl-C inside the block; it goes to the handler from before too.

    Does nothing outside the main thread, inside another such block, and where the process ignores SIGINT.
    """
    global _remembering
    before = signal.getsignal(signal.SIGINT)
    if _remembering or threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def remember(number: int, frame: FrameType | None) -> None:
        _seen.append(number)
        before(number, frame)

    _seen.clear()
    _remembering = True
    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _remembering = False
        _seen.clear()


def pending() -> bool:
    """Whether a Ctrl-C was seen that nobody has acknowledged."""
    return bool(_seen)


def check() -> None:
    """Raise the Ctrl-C that was seen.

    Raises:
        KeyboardInterrupt: one is pending, and this is the main thread.
    """
    if _seen and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def acknowledge() -> None:
    """Say that the Ctrl-C was heeded, by who catches KeyboardInterrupt and goes on."""
    _seen.clear()
