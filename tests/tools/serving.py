"""A web service of examples/ in a process of its own, as its user starts it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.tools.running import ENVIRONMENT, EXAMPLES

__all__ = ["Service", "serving", "serving_here"]


@dataclass(frozen=True)
class Service:
    port: int
    process: subprocess.Popen[str] | None = None

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=isinstance(body, Iterator))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def predict(self, body: Any, query: str = "", **headers: str) -> tuple[int, dict[str, Any]]:
        status, _, answer = self.ask("POST", f"/predict{query}", body, headers)
        return status, json.loads(answer)

    def metric(self, line: str) -> float:
        """The value of one line of /metrics."""
        text = self.ask("GET", "/metrics")[2].decode()
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, flags=re.M)
        return float(found[1]) if found else 0.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def serving(example: str, *arguments: object) -> Iterator[Service]:
    """`python examples/EXAMPLE ARGUMENTS --port P`, once GET /health says that it is ready; it must end without a
    traceback."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / example), *map(str, arguments), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    running = Service(port, process)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            try:
                if running.ask("GET", "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.05)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err


@contextmanager
def serving_here(config: Callable[[int], Any]) -> Iterator[Service]:
    """The same in a thread of this process; `config` makes uvicorn's configuration for a port."""
    import uvicorn

    port = free_port()
    server = uvicorn.Server(config(port))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        yield Service(port)
    finally:
        server.should_exit = True
        thread.join()
