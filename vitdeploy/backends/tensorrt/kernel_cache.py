"""The kernels that TensorRT-RTX compiled for an engine on this machine, kept so that the next start compiles none.

One file for each engine, version of TensorRT-RTX, GPU and driver, in the user's own cache folder: a bundle is the same
on every machine and is not written to while it runs. The file begins with the SHA-256 of the rest; TensorRT-RTX
compares what is in it with the machine itself. Where it can't be read or written there is no cache, and nothing else
changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from vitdeploy.core.errors import VitdeployError
from vitdeploy.core.machine import Gpu
from vitdeploy.core.storage import write_atomically

__all__ = ["KernelCache", "cache_folder"]

_DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Where it lies: VITDEPLOY_CACHE, else below the system's folder for caches."""
    own = os.environ.get("VITDEPLOY_CACHE")
    if own:
        return Path(own)
    usual = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(usual or Path.home() / ".cache") / "vitdeploy"


class KernelCache:
    """The file of one engine on one GPU.

    Args:
        engine_sha256: of the engine's file.
        version: of TensorRT-RTX.
        gpu: the one that runs it.
    """

    def __init__(self, engine_sha256: str, version: str, gpu: Gpu) -> None:
        key = "\0".join((engine_sha256, version, gpu.name, gpu.compute_capability, str(gpu.driver)))
        self._name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.kernels"
        self._written: bytes | None = None

    @property
    def path(self) -> Path:
        return cache_folder() / "tensorrt-rtx" / self._name

    def read(self) -> bytes | None:
        """What an earlier run left; None where there is nothing, or it is damaged."""
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: nobody knows of a home folder
            data = self.path.read_bytes()
            content = data[_DIGEST:]
            if content and hashlib.sha256(content).digest() == data[:_DIGEST]:
                self._written = data[:_DIGEST]
                return content
        return None

    def write(self, content: bytes) -> None:
        """Keep what TensorRT-RTX has now, if it is not what the file holds."""
        digest = hashlib.sha256(content).digest()
        if not content or digest == self._written:
            return
        with contextlib.suppress(OSError, RuntimeError, VitdeployError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.path, digest + content)
            self._written = digest
