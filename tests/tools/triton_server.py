"""A real tritonserver: the one that the package nvidia-pytriton brings, which has the python backend alone.

It lives in an environment of its own, which `make test-triton` makes, since it pins an older NumPy.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TritonServer", "environment", "run_there", "triton_server"]

ROOT = Path(__file__).parents[2]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def environment() -> Path | None:
    """The environment with nvidia-pytriton that VITDEPLOY_TRITON names; None where it names none."""
    value = os.environ.get("VITDEPLOY_TRITON")
    return Path(value).absolute() if value else None


def _packages(venv: Path) -> Path:
    return venv / "lib" / f"python{VERSION}" / "site-packages"


def run_there(venv: Path, code: str, *arguments: object) -> str:
    """What a program prints that runs in that environment, with this checkout's vitdeploy."""
    done = subprocess.run(
        [venv / "bin" / "python", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@dataclass
class TritonServer:
    """A running server: its ports on the loopback address, its log, its process."""

    http: int
    grpc: int
    log: Path
    process: subprocess.Popen[bytes]

    def stubs(self) -> list[int]:
        """Processes in which python models run."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")
            except OSError:
                continue
            if "triton_python" in fields[0] and int(fields[2].split()[1]) == self.process.pid:
                found.append(int(entry.parent.name))
        return found

    def is_ready(self, model: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/models/{model}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def triton_server(venv: Path, repository: Path, scratch: Path, *models: str) -> Iterator[TritonServer]:
    """A server of these models of a repository; it has answered that they are ready, or its log says why not.

    Raises:
        RuntimeError: it ended, with the end of its log.
    """
    packages = _packages(venv)
    home = packages / "pytriton" / "tritonserver"
    backends = scratch / "backends"
    if not backends.exists():
        shutil.copytree(home / "backends", backends)
        shutil.copy(home / "python_backend_stubs" / VERSION / "triton_python_backend_stub", backends / "python")
    http, grpc, metrics = _free_ports(3)
    log = scratch / "tritonserver.log"
    command = [
        home / "bin" / "tritonserver", f"--model-repository={repository}", f"--backend-directory={backends}",
        "--model-control-mode=explicit", *(f"--load-model={name}" for name in models), f"--http-port={http}",
        f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1", "--backend-config=python,shm-default-byte-size=67108864",
    ]  # fmt: skip
    # Its python backend embeds a shared libpython, which takes its standard library from the Python on the PATH.
    python = Path(sys.base_prefix) if sysconfig.get_config_var("Py_ENABLE_SHARED") else Path("/usr")
    env = {
        **os.environ,
        "PYTHONPATH": f"{packages}:{ROOT}",
        "PATH": f"{python / 'bin'}:/usr/bin:/bin",
        "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{python / 'lib'}",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
    server = TritonServer(http, grpc, log, process)
    try:
        until = time.monotonic() + 180
        while not all(map(server.is_ready, models)):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text(errors="replace")[-20_000:])
            time.sleep(0.2)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
