"""`vitdeploy` in a process of its own, forked from one that has its libraries already: to start costs no seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.tools.killed import limit_files

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "torch",
        "transformers.trainer",
        "transformers.models.vit.image_processing_vit",
        "transformers.models.vit.modeling_vit",
        "onnxscript",
        "sklearn.datasets",
        "vitdeploy.cli.app",
    ]
)


class Command:
    """A command that runs in a folder; what it says goes into the file stderr.txt there."""

    def __init__(
        self, folder: Path, arguments: Sequence[object], file_limit: int | None = None, imported: bool = True
    ) -> None:
        """`file_limit` is the most bytes that a file may have, as if the disk were full then; not `imported`: a new
        process, which has its libraries to import first."""
        self._file = folder / "stderr.txt"
        self._file.write_text("")
        server = _SERVER if imported else multiprocessing.get_context("spawn")
        self._process = server.Process(target=_run, args=(folder, list(map(str, arguments)), file_limit))
        self._process.start()

    @property
    def said(self) -> str:
        return self._file.read_text()

    def wait(self) -> int:
        """Its exit code, -9 if it was killed."""
        self._process.join(240)
        assert self._process.exitcode is not None, f"it does not end: {self.said}"
        return self._process.exitcode

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until it has come somewhere."""
        deadline = time.monotonic() + 240
        while not ready():
            assert self._process.exitcode is None, f"it ended before: {self.said}"
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def send(self, number: int) -> int:
        """Send it a signal: its exit code."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        return self.wait()


def _run(folder: Path, arguments: list[str], file_limit: int | None) -> None:
    from vitdeploy.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(folder / "stderr.txt", os.O_WRONLY), 2)
    os.chdir(folder)
    os.environ.update(COLUMNS="200", OMP_NUM_THREADS="1")
    if file_limit is not None:
        limit_files(file_limit)
    main(arguments)
