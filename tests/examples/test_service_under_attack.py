"""examples/service on the loopback address, held by clients that mean no good: it goes on answering, and stays small.

Every attack is bounded in number and time. Each of them kept everyone out, or took gigabytes, before there were limits.
"""

from __future__ import annotations

import gc
import io
import json
import re
import select
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tools.running import load_service
from vitdeploy import load

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'vitdeploy[examples]'")


class Service:
    """A running service and a client of it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self, data: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), 60)
        connection.settimeout(60)
        connection.sendall(data)
        return connection

    def ask(self, request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers, body; status 0: the connection was closed without an answer."""
        with self.connect() as connection:
            answer = b""
            try:
                connection.sendall(request)
                while chunk := connection.recv(1 << 16):
                    answer += chunk
            except OSError:
                pass
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]) if head else 0, headers, body

    def get(self, path: str) -> tuple[int, dict[bytes, bytes], bytes]:
        return self.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    def post(self, body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        return self.ask(head(len(body), "Connection: close\r\n") + body)

    def is_well(self) -> bool:
        """It says so, and classifies an image, while the others still hold on: their own time is longer than ours."""
        for _ in range(10):
            if self.get("/health")[0] == 200 and self.post(png(8, 8))[0] == 200:
                return True
            time.sleep(0.6)  # what stands still makes room after half a second
        return False

    def counted(self, status: int) -> float:
        found = re.search(rf'vitdeploy_requests_total{{status="{status}"}} ([0-9.]+)', self.get("/metrics")[2].decode())
        return float(found[1]) if found else 0.0


def head(length: int, more: str = "") -> bytes:
    return f"POST /predict HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {length}\r\n\r\n".encode()


def png(width: int, height: int) -> bytes:
    """A black image: a small file however large it is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(height * (3 * width + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


PATIENCE = {"head_seconds": 600.0, "upload_seconds": 600.0, "timeout_ms": 60_000.0}
IMPATIENCE = {"head_seconds": 2.0, "upload_seconds": 2.0}


@pytest.fixture
def service(tiny_bundle: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """With so much time for clients that nothing is over by itself, unless a test asks for less."""
    import uvicorn

    app = load_service()
    limits = app.Limits(
        max_bytes=2**20, max_waiting=8, max_uploading=4 * 2**20, max_decoding=8_000_000, max_pixels=4_000_000,
        max_connections=40, **getattr(request, "param", PATIENCE),
    )  # fmt: skip
    classifier = load(
        tiny_bundle, "onnxruntime", "fp32", threads=1, max_batch=4, max_queue=limits.max_waiting, when_full="raise",
        max_pixels=limits.max_pixels,
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(app.server_config(app.create_app(classifier, limits), limits, "127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    found = Service(listener.getsockname()[1])
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield found
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive()


HELD: dict[str, Any] = {
    "idle": b"",
    "half a header": b"POST /predict HTTP/1.1\r\nHost: x\r\nX: ",
    "half a small body": head(1000) + b"a",
    "half a large body": head(2**20) + bytes(2**19),
    "a body of unknown length": b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
    "a body after an answer": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nPOST /predict HT",
}


@pytest.mark.parametrize("kind", HELD)
def test_clients_that_hold_on_keep_nobody_out(kind: str, service: Service) -> None:
    with ExitStack() as stack:
        for _ in range(60):
            try:
                stack.enter_context(service.connect(HELD[kind]))
            except OSError:  # refused: that is allowed to them
                continue
        assert service.is_well()
    assert service.is_well()


@pytest.mark.parametrize("service", [IMPATIENCE], indirect=True)
def test_a_connection_without_a_request_or_its_body_is_closed_in_time(service: Service) -> None:
    for start in ("half a header", "half a small body"):
        with service.connect(HELD[start]) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
    with service.connect() as connection:
        while connection.recv(100):
            pass


def test_bodies_under_way_take_a_bounded_memory(service: Service) -> None:
    """More than is held at a time is refused with a time to come back at, and nothing of it is kept."""
    body = head(2**20) + bytes(2**20 - 1)
    gc.disable()  # what is kept until Python looks for cycles is kept
    tracemalloc.start()
    stack = ExitStack()
    stack.callback(tracemalloc.stop)
    stack.callback(gc.enable)
    with stack, ThreadPoolExecutor(12) as pool:
        waiting = list(pool.map(lambda _: _sent(service, body, stack), range(24)))
        answers: list[bytes] = []
        while len(waiting) > 4:  # of a megabyte, so many are held at a time
            ready, _, _ = select.select(waiting, [], [], 60)
            assert ready, "nobody is refused"
            answers += map(_first, ready)
            waiting = [connection for connection in waiting if connection not in ready]
        assert all(b" 503 " in answer or b" 408 " in answer or not answer for answer in answers)
        assert any(answers) and all(b"retry-after" in answer.lower() for answer in answers if b" 503 " in answer)
        assert service.is_well()
        assert tracemalloc.get_traced_memory()[0] < 10 * 2**20  # of 24 MB that were sent


def _sent(service: Service, request: bytes, stack: ExitStack) -> socket.socket:
    connection = stack.enter_context(service.connect())
    with suppress(OSError):  # it may be refused before the end
        connection.sendall(request)
    return connection


def _first(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1000)
    except OSError:
        return b""


def test_large_images_wait_for_each_other(service: Service) -> None:
    image = png(2000, 1900)
    assert len(image) < 2**20
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(service.post, [image] * 20))
        assert {status for status, *_ in answers} <= {200, 503, 504} and any(status == 200 for status, *_ in answers)
        assert all(b"retry-after" in headers for status, headers, _ in answers if status == 503)
    assert service.is_well()


def test_who_leaves_is_counted_and_leaves_no_traceback(service: Service, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(30):
        service.connect(head(1000) + b"abc").close()
    deadline = time.monotonic() + 60
    while service.counted(499) + service.counted(503) < 30 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert service.counted(499) + service.counted(503) == 30  # there is room for 16 uploads at a time
    assert service.counted(499) > 0
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_crowd_is_answered_or_told_when_to_come_back(service: Service) -> None:
    body = io.BytesIO()
    Image.new("RGB", (64, 64)).save(body, "JPEG")
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(service.post, [body.getvalue()] * 120))
    assert {status for status, *_ in answers} <= {200, 503, 0}
    assert sum(status == 200 for status, *_ in answers) > 0
    for status, headers, answer in answers:
        if status == 503 and answer:
            assert b"retry-after" in headers and "error" in json.loads(answer)
    assert service.is_well()
