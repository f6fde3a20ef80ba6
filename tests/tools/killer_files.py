"""A file system of fsspec's, `killer:///folder`: the files of this disk, of which killer.* kills who reads it."""

from __future__ import annotations

import os
import signal
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = ["KillerFiles"]


class KillerFiles(LocalFileSystem):
    protocol = "killer"

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if "/killer." in path:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._open(path, mode, block_size, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("killer://")))


fsspec.register_implementation("killer", KillerFiles)
