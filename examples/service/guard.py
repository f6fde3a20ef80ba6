"""What keeps a service answering while clients hold on to it: connections, uploads and pixels under way, all bounded.

A client that connects and says nothing, sends half a header or half a body, or a hundred large images at a time must
cost little and keep nobody out. So: a request's head has to come in time; the oldest idle connection makes room for a
new one; of uploads so many, and so many bytes, are held, and one that has stood still makes room; and only so many
pixels are decoded at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

BUSY = {"Retry-After": "1"}
CLOSE = {"Connection": "close"}  # what is still to come of the body is not read


def guarded_protocol(max_connections: int, head_seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, for connections that can't be held open without use.

    Args:
        max_connections: with more, the oldest one without a request is closed; if all have one, the new one is refused.
        head_seconds: time for the whole head of a request, from the connection or the answer before it.
    """

    class Guarded(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.since = self.loop.time()
            self.limit: asyncio.TimerHandle | None = None
            self._wait_for_a_head()
            if len(self.connections) > max_connections:
                idle = [other for other in self.connections if other is not self and other.is_idle()]
                if idle:
                    min(idle, key=lambda other: other.since).transport.abort()
                else:
                    self._end(503, "Service Unavailable")

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            if not self.is_idle():
                self._stop_waiting()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.since = self.loop.time()
            self._wait_for_a_head()

        def is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _wait_for_a_head(self) -> None:
            self._stop_waiting()
            self.limit = self.loop.call_later(head_seconds, self._end, 408, "Request Timeout")

        def _stop_waiting(self) -> None:
            if self.limit is not None:
                self.limit.cancel()

        def _end(self, status: int, reason: str) -> None:
            if not self.transport.is_closing():
                head = f"HTTP/1.1 {status} {reason}\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                self.transport.write(head.encode())
                self.transport.close()

    return Guarded


@dataclass(eq=False)
class _Upload:
    expected: int  # bytes
    task: asyncio.Task[bytes]
    moved: float  # when the last part of it came


@dataclass
class Uploads:
    """Bodies that are being received, no more of them and of their bytes than there is room for.

    Args:
        max_count, max_total: of uploads, and of the bytes that they may hold together.
        max_bytes: of one.
        seconds: for one.
        stalled: seconds without a byte after which one makes room for another.
    """

    max_count: int
    max_total: int
    max_bytes: int
    seconds: float
    stalled: float = 0.5
    _held: set[_Upload] = field(default_factory=set)

    async def receive(self, request: Request) -> bytes:
        """The body of a request.

        Raises:
            HTTPException: 408 too slow, 413 too large, 415 a form, 400 nothing, 503 no room for it now.
            starlette.requests.ClientDisconnect: the client left.
        """
        too_large = HTTPException(413, f"the file is larger than {self.max_bytes} bytes", headers=CLOSE)
        if request.headers.get("content-type", "").startswith("multipart/"):
            message = "send the image file itself as the body, not a form: curl --data-binary @cat.jpg"
            raise HTTPException(415, message, headers=CLOSE)
        announced = request.headers.get("content-length", "")
        expected = int(announced) if announced.isdecimal() and len(announced) < 20 else self.max_bytes
        if expected > self.max_bytes:
            raise too_large
        self._make_room(expected)
        upload: _Upload | None = None

        async def read() -> bytes:
            body = bytearray()
            try:
                async for chunk in request.stream():
                    body.extend(chunk)
                    assert upload is not None
                    upload.moved = asyncio.get_running_loop().time()
                    if len(body) > expected:
                        raise too_large
                return bytes(body)
            finally:
                body.clear()  # an error's traceback would keep it until Python next looks for cycles

        task = asyncio.create_task(read())
        upload = _Upload(expected, task, asyncio.get_running_loop().time())
        self._held.add(upload)
        try:
            body = await asyncio.wait_for(asyncio.shield(task), self.seconds)
        except asyncio.TimeoutError as error:
            message = f"the upload took longer than {self.seconds:g} seconds"
            raise HTTPException(408, message, headers=CLOSE) from error
        except asyncio.CancelledError:
            if upload in self._held:  # the request itself is cancelled
                raise
            message = "the upload stood still while others waited: send it again"
            raise HTTPException(408, message, headers=CLOSE) from None
        finally:
            self._held.discard(upload)
            task.cancel()
        if not body:
            raise HTTPException(400, "the body is empty: send an image file")
        return body

    def _make_room(self, expected: int) -> None:
        """End uploads that stand still, the longest first, until there is room.

        Raises:
            HTTPException: 503, there is none.
        """
        late = asyncio.get_running_loop().time() - self.stalled
        for upload in sorted(self._held, key=lambda upload: upload.moved):
            if self._fits(expected) or upload.moved > late:
                break
            self._held.discard(upload)
            upload.task.cancel()
        if not self._fits(expected):
            raise HTTPException(503, "too many uploads at a time: try again soon", headers={**BUSY, **CLOSE})

    def _fits(self, expected: int) -> bool:
        total = sum(upload.expected for upload in self._held)
        return len(self._held) < self.max_count and total + expected <= self.max_total


class PixelBudget:
    """So many pixels at a time, for images from their decoding to their answer; the others wait in line.

    Args:
        pixels: an image of more has the budget for itself.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = self.free = pixels
        self._changed = asyncio.Condition()
        self._line: list[object] = []

    @contextlib.asynccontextmanager
    async def take(self, pixels: int, seconds: float) -> AsyncIterator[None]:
        """Hold room for an image inside the block.

        Raises:
            HTTPException: 503, there was none in time.
        """
        pixels = min(pixels, self.pixels)
        place = object()
        self._line.append(place)
        try:
            async with self._changed:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._line[0] is place and self.free >= pixels), seconds
                )
                self.free -= pixels
        except asyncio.TimeoutError as error:
            raise HTTPException(503, "too many large images at a time: try again soon", headers=BUSY) from error
        finally:
            self._line.remove(place)
            await self._tell()
        try:
            yield
        finally:
            self.free += pixels
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
